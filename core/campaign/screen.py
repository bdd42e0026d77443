"""Choose from a pool what is worth a label: a cascade that streams, stops, and goes on.

Activations of all candidates are written to a file as they come; the shortlist's rows as well. What
is there when the same command is given again is taken up, as long as pool, model and recipe are
the same. Memory holds a chunk of the pool, the scores, and the shortlist's rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from core.acquisition.coverage import Coverage
from core.acquisition.features import KINDS, Features, Kind, Recipe
from core.acquisition.screening import ACTIVATION_NOISE, Activations, Scores, Shortlist
from core.acquisition.selection import (
    at_random,
    farthest_points,
    greedy_determinant,
    largest_cluster_maximum_distance,
    top,
)
from core.campaign import extxyz, pool
from core.contracts import Potential
from core.errors import InputError
from core.potentials import load
from core.structures import Structure

BATCH = 64
"""Structures whose activations are computed at once."""
SHORTLIST = 5
"""Candidates on the shortlist for each that is wanted."""
STAND = 300
"""Structures drawn from the pool whose rows stand for all of it, when chosen from a shortlist."""
SELECT = ("reduction", "determinant", "lcmd", "farthest", "top", "random")
"""How to choose: each pick takes most off what is left unknown of the pool; or has the most left
unknown itself after those before it; or by clusters or distances of activations, by variance alone,
or at random out of the whole pool."""
PARTS = ".parts"
Progress = Callable[[str, int, float], None]
"""Told the stage, how many structures are done, and the seconds so far."""


@dataclass(frozen=True)
class Order:
    """What to screen.

    Attributes:
        pool: see `core.campaign.pool`. n: how many to choose. train: labelled already, or None.
        out: extended XYZ to be written. recipe: features of the last stage; with activations
            there is only the first. select: how the shortlist is chosen from, see `SELECT`.
        shortlist: its size; 0 for five times n. device: cpu or cuda.
    """

    pool: Path
    n: int
    out: Path
    train: Path | None = None
    model: str = "bundled"
    recipe: Recipe = field(default_factory=lambda: Recipe("joint"))
    select: str = "reduction"
    shortlist: int = 0
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class Choice:
    """One structure that was chosen.

    Attributes:
        index: in the pool. activation, energy, force: variances left when all were unlabelled, the
            first of 1, the others in units of the noise squared; nan where not computed.
        novelty: see `core.acquisition.coverage`; nan without labels.
    """

    index: int
    activation: float
    energy: float
    force: float
    novelty: float

    @property
    def reason(self) -> str:
        """What is least known of it."""
        if np.isnan(self.energy) and np.isnan(self.force):
            return "its atoms' surroundings"
        return "forces" if not self.energy > self.force else "energy"


def screen(order: Order, told: Progress = lambda *_: None) -> dict[str, Any]:
    """Choose, write the chosen structures to `order.out`, and return the figures.

    Raises:
        InputError: pool, training file, kernel or selection are not acceptable. Structures of the
            pool that are not, or have elements unknown to the model, are left out and told of.
        ModelError: the model does not know an element of the training file.
    """
    kind = order.recipe.kind
    for option, given, accepted in (("--kernel", kind, KINDS), ("--select", order.select, SELECT)):
        if given not in accepted:
            raise InputError(f"{option} {given!r} is not known; accepted: {', '.join(accepted)}.")
    if order.out.suffix not in extxyz.SUFFIXES:
        raise InputError(f"{order.out.name}: give a name ending in {' or '.join(extxyz.SUFFIXES)}.")
    if not order.pool.exists():
        raise InputError(f"There is no pool {order.pool}; accepted: {pool.ACCEPTED}.")
    began = time.perf_counter()
    potential = cast(Potential, load(order.model, dtype=order.dtype, device=order.device))
    train = [] if order.train is None else list(pool.structures(order.train))
    for structure in train:
        potential.check(structure)
    source = Source(order.pool, potential)
    parts, clock = _parts(order, potential), _Clock(told)
    known = _activations(order, source, potential, parts, train, clock)
    scores, stages = known.scores(), {"activations": clock.seconds}
    short, stand = _shortlisted(order, known, scores)
    places = np.array(source.places, dtype=int)[short]
    candidates, listed = _read(order.pool, places), None
    left = Scores(np.full(len(short), np.nan), np.full(len(short), np.nan))
    if kind != "activation":
        clock = _Clock(told)
        rows = _tangents(order, potential, parts, short, candidates, clock)
        labelled = Features(potential, order.recipe)(train)
        listed = Shortlist(rows, has_energy=kind != "force-ntk", train=labelled, population=stand)
        left, stages[kind] = listed.scores(), clock.seconds
    picks = _chosen(order, known, scores, short, listed)
    structures = [candidates[i] for i in picks]
    novelties = _novelties(potential, train, structures)
    choices = [
        Choice(
            int(places[i]), float(scores[short[i]]), float(left.energy[i]), float(left.force[i]), d
        )
        for i, d in zip(picks, novelties, strict=True)
    ]
    _write(order.out, structures, choices)
    parts.remove()
    return {
        "pool": len(scores), "left_out": source.left_out, "chosen": len(choices),
        "train": len(train), "kernel": kind, "select": order.select, "stages_s": stages,
        "wall_s": time.perf_counter() - began,
        "choices": [asdict(c) | {"reason": c.reason} for c in choices],
    }  # fmt: skip


def _activations(
    order: Order, source: Source, potential: Potential, parts: Parts, train: list[Structure],
    clock: _Clock,
) -> Activations:  # fmt: skip
    """Return those of the pool and of the training set; what is kept of the pool's is taken up."""
    features = Features(potential, Recipe("activation"))
    kept = parts.rows("activations", features.width)
    rest = itertools.islice(source, len(kept), None)
    kept.extend(_in_batches(features, rest), clock.of("activations", len(kept)))
    labelled = [np.zeros((0, features.width)), *_in_batches(features, iter(train))]
    return Activations(kept.table(), np.concatenate(labelled))


def _in_batches(features: Features, structures: Iterator[Structure]) -> Iterator[np.ndarray]:
    """Yield the activations of structures, (B, D) at once."""
    while batch := list(itertools.islice(structures, BATCH)):
        yield np.concatenate(list(features(batch)))


def _shortlisted(
    order: Order, known: Activations, scores: np.ndarray
) -> tuple[np.ndarray, list[int]]:
    """Return the indices, ascending, of the candidates, and which of them stand for the pool.

    They are those whose activations are worth most or, where the pool does not matter for what is
    chosen, the least known; and some at random, which stand for the pool.
    """
    rng, size = np.random.default_rng(order.recipe.seed), order.shortlist or SHORTLIST * order.n
    if order.select == "random":
        return np.sort(np.array(at_random(len(scores), order.n, rng), dtype=int)), []
    if order.select != "reduction":
        return np.sort(np.array(top(scores, size), dtype=int)), []
    some = STAND if order.n and order.recipe.kind != "activation" else 0
    stand = np.sort(np.array(at_random(len(scores), some, rng), dtype=int))
    short = np.unique(np.concatenate([np.array(top(known.worth(), size), dtype=int), stand]))
    return short, np.searchsorted(short, stand).tolist()


def _chosen(
    order: Order, known: Activations, scores: np.ndarray, short: np.ndarray,
    listed: Shortlist | None,
) -> list[int]:  # fmt: skip
    """Return places in the shortlist, in the order of choosing."""
    n = order.n
    if order.select == "reduction":
        return known.choose(short, n) if listed is None else listed.choose(n)
    vectors = known.of(short)
    if order.select == "lcmd":
        return largest_cluster_maximum_distance(vectors, n, train=known.train)
    if order.select == "farthest":
        return farthest_points(vectors, n, train=known.train)
    if order.select in ("top", "random"):
        return top(scores[short] if listed is None else listed.scores().total, n)
    if listed is not None:
        return listed.most_unknown(n)
    return greedy_determinant(vectors, n, noise=ACTIVATION_NOISE, train=known.train)


def _tangents(
    order: Order, potential: Potential, parts: Parts, short: np.ndarray,
    candidates: list[Structure], clock: _Clock,
) -> Sequence[np.ndarray]:  # fmt: skip
    """Return the rows of every candidate of the shortlist; what is kept of them is taken up."""
    kind, features = order.recipe.kind, Features(potential, order.recipe)
    ends = np.cumsum([0, *(_height(kind, s) for s in candidates)])
    key = hashlib.sha256(short.tobytes()).hexdigest()[:12]
    kept = parts.rows(f"{kind}-{key}", features.width)
    done = int(np.searchsorted(ends, len(kept), side="right")) - 1
    kept.cut(int(ends[done]))
    kept.extend(features(candidates[done:]), clock.of(kind, done, by_row=False))
    return Blocks(kept, ends)


def _height(kernel: Kind, structure: Structure) -> int:
    return {"ntk": 1, "force-ntk": 3 * len(structure)}.get(kernel, 1 + 3 * len(structure))


def _read(path: Path, wanted: np.ndarray) -> list[Structure]:
    """Return some of the pool's structures, in the order they are wanted."""
    asked = set(wanted.tolist())
    found = {i: s for i, s in enumerate(pool.each(path)) if i in asked}
    return [cast(Structure, found[i]) for i in wanted.tolist()]


def _novelties(
    potential: Potential, train: list[Structure], chosen: list[Structure]
) -> list[float]:
    if not train or not chosen:
        return [float("nan")] * len(chosen)
    found = potential.predict([*train, *chosen], forces=False, features=True).features
    assert found is not None
    known = Coverage([s.numbers for s in train], found[: len(train)])
    return [known.novelty(s.numbers, f) for s, f in zip(chosen, found[len(train) :], strict=True)]


def _write(path: Path, chosen: list[Structure], choices: list[Choice]) -> None:
    extxyz.save(
        path,
        (
            extxyz.write(
                s,
                {
                    "pool_index": c.index, "variance_activation": c.activation,
                    "variance_energy": c.energy, "variance_force": c.force, "novelty": c.novelty,
                    "reason": c.reason, "charge": s.charge, "spin": s.spin,
                },
                {"pos": s.positions},
            )
            for s, c in zip(chosen, choices, strict=True)
        ),
    )  # fmt: skip


class Source:
    """A pool's structures that the model can take.

    Attributes:
        places: of those read so far, their numbers in the pool. left_out: the reason by number.
    """

    def __init__(self, path: Path, potential: Potential) -> None:
        self._path, self._potential = path, potential
        self.places: list[int] = []
        self.left_out: dict[int, str] = {}

    def __iter__(self) -> Iterator[Structure]:
        """Read the pool once.

        Raises:
            InputError: there is no pool, the file is broken, or nothing in it can be taken.
        """
        for place, given in enumerate(pool.each(self._path)):
            try:
                if isinstance(given, InputError):
                    raise given
                self._potential.check(given)
            except InputError as error:
                self.left_out[place] = str(error)
                continue
            self.places.append(place)
            yield given
        if self.left_out and not self.places:
            first, why = next(iter(self.left_out.items()))
            raise InputError(
                f"None of the {len(self.left_out)} structures of {self._path.name} can be taken; "
                f"structure {first}: {why}"
            )


class _Clock:
    """Seconds since the stage began, told with what is done."""

    def __init__(self, told: Progress) -> None:
        self._told, self._began = told, time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def of(self, stage: str, first: int, *, by_row: bool = True) -> Callable[[int], None]:
        """Return what is to be called with the rows of every part done after the `first`."""
        done = first

        def count(rows: int) -> None:
            nonlocal done
            done += rows if by_row else 1
            self._told(stage, done, self.seconds)

        return count


class Rows:
    """Rows of float32 in a file that only grows, whatever interrupts the writing."""

    def __init__(self, path: Path, width: int) -> None:
        self._path, self._width = path, width
        path.touch()
        self.cut(len(self))

    def __len__(self) -> int:
        return self._path.stat().st_size // (4 * self._width)

    def cut(self, n: int) -> None:
        """Keep the first n rows."""
        with open(self._path, "r+b") as file:
            file.truncate(4 * self._width * n)

    def extend(self, parts: Iterable[np.ndarray], count: Callable[[int], None]) -> None:
        """Append parts (R, D), each written before the next is computed."""
        with open(self._path, "ab") as file:
            for part in parts:
                file.write(np.ascontiguousarray(part, dtype="<f4").tobytes())
                file.flush()
                count(len(part))

    def table(self) -> np.ndarray:
        """Return all rows, mapped from the file."""
        n = len(self)
        if n == 0:
            return np.zeros((0, self._width), dtype=np.float32)
        return np.memmap(self._path, dtype="<f4", mode="r", shape=(n, self._width))

    def part(self, first: int, end: int) -> np.ndarray:
        """Return rows `first` to `end`, read from the file."""
        each = 4 * self._width
        read = np.fromfile(self._path, "<f4", (end - first) * self._width, offset=each * first)
        return read.reshape(-1, self._width)


class Blocks(Sequence[np.ndarray]):
    """The rows of each of several candidates, read from the file whenever they are asked for.

    Pages mapped from a file count as memory in use; a shortlist's would be there twice.
    """

    def __init__(self, rows: Rows, ends: np.ndarray) -> None:
        self._rows, self._ends = rows, ends.tolist()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: Any) -> Any:
        return self._rows.part(self._ends[i], self._ends[i + 1])


class Parts:
    """The folder beside the output that holds what is done."""

    def __init__(self, folder: Path, what: dict[str, Any]) -> None:
        self._folder = folder
        told = folder / "order.json"
        if told.exists() and json.loads(told.read_text()) != what:
            self.remove()
        folder.mkdir(parents=True, exist_ok=True)
        told.write_text(json.dumps(what))

    def rows(self, name: str, width: int) -> Rows:
        """Return the rows kept under a name."""
        return Rows(self._folder / f"{name}.f32", width)

    def remove(self) -> None:
        """Delete the folder."""
        for file in self._folder.iterdir():
            file.unlink()
        self._folder.rmdir()


def _parts(order: Order, potential: Potential) -> Parts:
    """Return the folder, emptied where pool, model or recipe are not those it was begun with."""
    given = order.pool.stat()
    what = {
        "pool": [str(order.pool.resolve()), given.st_size, given.st_mtime_ns],
        "weights": potential.weights_hash(), "dtype": order.dtype,
        "recipe": json.loads(json.dumps(asdict(order.recipe))),
    }  # fmt: skip
    return Parts(order.out.with_name(order.out.name + PARTS), what)
