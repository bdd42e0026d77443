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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from core.acquisition.coverage import Coverage
from core.acquisition.features import KINDS, Features, Kind, Recipe
from core.acquisition.screening import Scores, Shortlist, activation_scores
from core.acquisition.selection import largest_cluster_maximum_distance
from core.campaign import extxyz, pool
from core.contracts import Potential
from core.errors import InputError
from core.potentials import load
from core.structures import Structure

BATCH = 64
"""Structures whose activations are computed at once."""
SHORTLIST = 5
"""Candidates on the shortlist for each that is wanted."""
PARTS = ".parts"
Progress = Callable[[str, int, float], None]
"""Told the stage, how many structures are done, and the seconds so far."""


@dataclass(frozen=True)
class Order:
    """What to screen.

    Attributes:
        pool: see `core.campaign.pool`. n: how many to choose. train: labelled already, or None.
        out: extended XYZ to be written. kernel: of the last stage; "activation" ends after the
            first. shortlist: candidates of the last stage; 0 for five times n.
    """

    pool: Path
    n: int
    out: Path
    train: Path | None = None
    model: str = "bundled"
    kernel: Kind = "joint"
    shortlist: int = 0
    recipe: Recipe = field(default_factory=lambda: Recipe("joint"))
    dtype: str = "float32"


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
        InputError: pool, training file or kernel are not acceptable. ModelError: the model does
            not know an element.
    """
    if order.kernel not in KINDS:
        raise InputError(f"--kernel {order.kernel!r} is not known; accepted: {', '.join(KINDS)}.")
    if order.out.suffix not in extxyz.SUFFIXES:
        raise InputError(f"{order.out.name}: give a name ending in {' or '.join(extxyz.SUFFIXES)}.")
    began = time.perf_counter()
    if not order.pool.exists():
        raise InputError(f"There is no pool {order.pool}; accepted: {pool.ACCEPTED}.")
    potential = cast(Potential, load(order.model, dtype=order.dtype))
    train = [] if order.train is None else list(pool.structures(order.train))
    parts = _parts(order, potential)
    clock = _Clock(told)
    activations = Features(potential, Recipe("activation"))
    known = parts.rows("activations", activations.width)
    known.extend(_activations(activations, order.pool, len(known)), clock.of("activations"))
    table = known.table()
    observed = [row for (row,) in _batched(activations, train)]
    scores = activation_scores(
        table, np.concatenate(observed) if observed else np.zeros((0, activations.width))
    )
    stages = {"activations": clock.seconds}
    if order.kernel == "activation":
        picks = np.array(_spread(table, scores, observed, order.n), dtype=int)
        chosen = _read(order.pool, picks)
        left = Scores(np.full(len(picks), np.nan), np.full(len(picks), np.nan))
    else:
        short = _highest(scores, min(len(scores), order.shortlist or SHORTLIST * order.n))
        candidates = _read(order.pool, short)
        clock = _Clock(told)
        rows = _tangents(order, potential, parts, short, candidates, train, clock)
        listed = Shortlist(rows[0], has_energy=order.kernel != "force-ntk", train=rows[1])
        before = listed.scores()
        order_of = listed.choose(order.n)
        picks, chosen = short[order_of], [candidates[i] for i in order_of]
        left = Scores(before.energy[order_of], before.force[order_of])
        stages[order.kernel] = clock.seconds
    choices = [
        Choice(int(i), float(scores[i]), float(e), float(f), novelty)
        for i, e, f, novelty in zip(
            picks, left.energy, left.force, _novelties(potential, train, chosen), strict=True
        )
    ]
    _write(order.out, chosen, choices)
    parts.remove()
    return {
        "pool": len(scores), "chosen": len(choices), "train": len(train), "kernel": order.kernel,
        "stages_s": stages, "wall_s": time.perf_counter() - began,
        "choices": [asdict(c) | {"reason": c.reason} for c in choices],
    }  # fmt: skip


def _activations(features: Features, path: Path, done: int) -> Iterator[np.ndarray]:
    """Yield the activations of the pool's structures after the first `done`, (B, D) at once."""
    rest = itertools.islice(pool.structures(path), done, None)
    while batch := list(itertools.islice(rest, BATCH)):
        yield np.concatenate(list(features(batch)))


def _batched(features: Features, given: list[Structure]) -> Iterator[list[np.ndarray]]:
    for start in range(0, len(given), BATCH):
        for rows in features(given[start : start + BATCH]):
            yield [rows]


def _tangents(
    order: Order, potential: Potential, parts: Parts, short: np.ndarray,
    candidates: list[Structure], train: list[Structure], clock: _Clock,
) -> tuple[list[np.ndarray], Iterator[np.ndarray]]:  # fmt: skip
    """Return the rows of every candidate of the shortlist, and those of the training set."""
    recipe = Recipe(**asdict(order.recipe) | {"kind": order.kernel})
    features = Features(potential, recipe)
    counts = [_height(order.kernel, s) for s in candidates]
    ends = np.cumsum([0, *counts])
    key = hashlib.sha256(short.tobytes()).hexdigest()[:12]
    known = parts.rows(f"{order.kernel}-{key}", features.width)
    done = int(np.searchsorted(ends, len(known), side="right")) - 1
    known.cut(int(ends[done]))
    known.extend(features(candidates[done:]), clock.of(order.kernel, by_row=False, first=done))
    table = known.table()
    rows = [np.asarray(table[a:b]) for a, b in itertools.pairwise(ends)]
    return rows, features(train)


def _height(kernel: Kind, structure: Structure) -> int:
    return {"ntk": 1, "force-ntk": 3 * len(structure)}.get(kernel, 1 + 3 * len(structure))


def _highest(scores: np.ndarray, n: int) -> np.ndarray:
    """Return the indices of the n highest scores, ascending."""
    return np.sort(np.argsort(-scores, kind="stable")[:n])


def _spread(table: np.ndarray, scores: np.ndarray, observed: list[np.ndarray], n: int) -> list[int]:
    """Return n of the highest scores that differ among themselves and from the training set."""
    short = _highest(scores, min(len(scores), SHORTLIST * n))
    scale = np.maximum(np.asarray(table[short]).std(axis=0), 1e-12) if len(short) else 1.0
    train = np.concatenate(observed) / scale if observed else None
    picks = largest_cluster_maximum_distance(np.asarray(table[short]) / scale, n, train=train)
    return [int(short[i]) for i in picks]


def _read(path: Path, wanted: np.ndarray) -> list[Structure]:
    """Return some of the pool's structures, in the order they are wanted."""
    asked = set(wanted.tolist())
    found = {i: s for i, s in enumerate(pool.structures(path)) if i in asked}
    return [found[i] for i in wanted.tolist()]


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


class _Clock:
    """Seconds since the stage began, told with what is done."""

    def __init__(self, told: Progress) -> None:
        self._told, self._began = told, time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def of(self, stage: str, *, by_row: bool = True, first: int = 0) -> Callable[[int], None]:
        """Return what is to be called with the rows of every part that is done."""
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
        "recipe": json.loads(json.dumps(asdict(order.recipe))), "kernel": order.kernel,
    }  # fmt: skip
    return Parts(order.out.with_name(order.out.name + PARTS), what)
