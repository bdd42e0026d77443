"""Which frames of a pool to label: kernels of the model itself, beside what others choose by.

    flywise bench acquisition [--only WORD] [--list]

Three reactions at GFN2-xTB (see `pools`) and 3BPA, from the bundled GFN1-xTB model; one pool is
biased: the Diels-Alder reaction's with the product's side only, tested on the whole. Every method
is given the same ten labelled frames, chosen at random, and chooses the rest of the budget from a
thousand; the bundled model is fine-tuned naively on all of them, and tested on frames fixed
beforehand. Ours choose by what takes most off the unknown of the pool. The rivals choose as they
are used elsewhere: at random, farthest in SOAP, by clusters of a random network's activations
(LCMD), and by a committee's disagreement. What our rule is worth, and what the kernel: "SOAP" and
"random network" are these kernels with our rule, "joint, strangest" is our kernel without it, which
chooses what is most unknown itself. A last table ranks: how what is left unknown of a frame (with
"SOAP distance", how far it is), with the ten labelled, goes with the error of a model fine-tuned on
the ten, and how it would if the kernel were exact; another says what errors the joint kernel itself
expects after each choice. Needs the extra `bench` (dscribe, for SOAP). Cells are kept under
`results/acquisition`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, cast

import numpy as np
import torch
from common import arguments, context, machine, measured, named, table
from fixed_data import WORK, kept, three_bpa
from learner import STEPS, Learner
from pools import REACTIONS, pool

from core.acquisition.features import Features, Kind, Recipe
from core.acquisition.screening import Activations, Shortlist
from core.acquisition.selection import (
    at_random,
    farthest_points,
    largest_cluster_maximum_distance,
    standardised,
    top,
)
from core.contracts import LabelSet, Potential
from core.finetuning.tuning import subset
from core.potentials import load
from core.potentials.mace import MacePotential
from core.structures import Structure
from core.uncertainty import rank_correlation

DTYPE, THREADS = "float32", 1
POOL, TESTS, FIRST = 1000, 300, 10
BUDGETS, SEEDS = (15, 25, 40, 65), (1, 2, 3)
"""A factor of 1.6 apart: a saving of 38 % is one budget."""
COMMITTEE, DRAWS = 4, 100
BIASED = "Diels-Alder, one side"
POOLS = (*REACTIONS, "3BPA", BIASED)
OURS = ("joint", "force-ntk", "ntk", "activation")
FARTHEST, CLUSTERS = "SOAP distance", "random network, LCMD"
RIVALS = ("random", FARTHEST, CLUSTERS, "committee")
STRANGEST = "joint, strangest"
OUR_RULE = ("SOAP", "random network")
METHODS = (*OURS, STRANGEST, *OUR_RULE, *RIVALS)
SOAP = {"r_cut": 4.5, "n_max": 6, "l_max": 4, "sigma": 0.3}


@lru_cache(maxsize=2)
def data(name: str) -> tuple[LabelSet, LabelSet]:
    """Return a pool and the frames to test with, none of them in it."""
    rng = np.random.default_rng(0)
    if name == "3BPA":
        train, test = three_bpa("300K"), three_bpa("mixedT")
        chosen = rng.permutation(len(test))
        both = (train, subset(test, chosen[TESTS:]))
        joined = LabelSet(
            tuple(s for part in both for s in part.structures),
            np.concatenate([part.energies for part in both]),
            tuple(f for part in both for f in part.forces),
        )
        order = rng.permutation(len(joined))[:POOL]
        return subset(joined, order), subset(test, chosen[:TESTS])
    reaction = REACTIONS[name.partition(",")[0]]
    make = partial(pool, reaction, POOL + TESTS, 1)
    frames, values = kept(named(name.partition(",")[0], POOL + TESTS, 1), make)
    order = rng.permutation(len(frames))
    test, rest = order[:TESTS], order[TESTS:]
    if name == BIASED:
        rest = rest[values[rest] < np.mean(reaction.ends)]
    return subset(frames, rest), subset(frames, test)


def model() -> MacePotential:
    """Return the foundation."""
    return cast(MacePotential, load("bundled", dtype=DTYPE))


@lru_cache(maxsize=1)
def learner(name: str) -> Learner:
    """Return what fine-tunes the foundation on frames of a pool."""
    return Learner(data(name)[0], DTYPE)


def untrained() -> MacePotential:
    """Return a model of the same make with random weights."""
    torch.manual_seed(0)
    return MacePotential(model().config, name="random", dtype=torch.float32)


@lru_cache(maxsize=4)
def rows(name: str, kind: Kind, random_network: bool = False) -> list[np.ndarray]:
    """Return the features of every frame of a pool."""
    if kind in ("ntk", "force-ntk"):
        part = slice(1) if kind == "ntk" else slice(1, None)
        return [row[part] for row in rows(name, "joint")]
    if kind == "joint":
        return _joint(name)
    potential = untrained() if random_network else model()
    return list(Features(potential, Recipe(kind))(data(name)[0].structures))


def _joint(name: str) -> list[np.ndarray]:
    """Return the joint rows of every frame of a pool, made once on this machine."""
    path = WORK / f"{named(name, 'rows', POOL)}.npz"
    if not path.exists():
        found = list(Features(model(), Recipe("joint"))(data(name)[0].structures))
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f"{path.stem}-{os.getpid()}.part.npz")
        np.savez(part, counts=[len(r) for r in found], rows=np.concatenate(found).astype("f4"))
        part.replace(path)
    with np.load(path) as kept_rows:
        ends = np.cumsum(kept_rows["counts"])[:-1]
        return np.split(kept_rows["rows"].astype(float), ends)


@lru_cache(maxsize=2)
def soap(name: str) -> np.ndarray:
    """Return the mean SOAP vector (S, D) of every frame of a pool."""
    from dscribe import descriptors

    frames = data(name)[0].structures
    symbols = sorted({s for f in frames for s in f.to_atoms().get_chemical_symbols()})
    describe = descriptors.SOAP(species=symbols, average="off", **SOAP)
    return np.array([describe.create(f.to_atoms()).mean(axis=0) for f in frames])


@lru_cache(maxsize=2)
def committee(name: str, seed: int) -> list[Potential]:
    """Return the committee trained on the first frames, each member on another draw of them."""
    members: list[Potential] = []
    for k in range(COMMITTEE):
        drawn = np.random.default_rng([seed, k]).choice(first(name, seed), size=FIRST)
        members.append(learner(name).learn(drawn, 10 * seed + k).potential)
    return members


def first(name: str, seed: int) -> np.ndarray:
    """Return the frames that are labelled before any choice."""
    return np.random.default_rng([seed, 7]).permutation(len(data(name)[0]))[:FIRST]


class Chooser:
    """A method on one pool with the first frames labelled.

    Attributes:
        scores: (S,) what is left unknown of every frame; None where nothing is scored.
    """

    def __init__(self, name: str, method: str, seed: int) -> None:
        known = first(name, seed)
        self._open = np.setdiff1d(np.arange(len(data(name)[0])), known)
        self._rng = np.random.default_rng(seed)
        self._choose: Callable[[int], list[int]]
        self.scores: np.ndarray | None = None
        if method == "random":
            self._choose = lambda n: at_random(len(self._open), n, self._rng)
        elif method == "committee":
            self.scores = _disagreement(committee(name, seed), data(name)[0].structures)
            self._choose = lambda n: top(self.scores[self._open], n)  # type: ignore[index]
        elif method in (FARTHEST, CLUSTERS):
            pooled = _pooled(name, "SOAP" if method == FARTHEST else "random network")
            self._distances(pooled, known, method == FARTHEST)
        elif method in ("activation", *OUR_RULE):
            self._vectors(_pooled(name, method), known)
        else:
            kind = cast(Kind, "joint" if method == STRANGEST else method)
            self._kernel(rows(name, kind), known, kind != "force-ntk", method != STRANGEST)

    def _vectors(self, pooled: np.ndarray, known: np.ndarray) -> None:
        found = Activations(pooled, pooled[known])
        self.scores = found.scores()
        self._choose = lambda n: found.choose(self._open, n)

    def _distances(self, pooled: np.ndarray, known: np.ndarray, farthest: bool) -> None:
        mean, spread = standardised(pooled)
        scaled = (pooled - mean) / spread
        train, rest = scaled[known], scaled[self._open]
        if farthest:
            self.scores = np.min([((scaled - t) ** 2).sum(axis=1) for t in train], axis=0)
            self._choose = lambda n: farthest_points(rest, n, train=train)
        else:
            self._choose = lambda n: largest_cluster_maximum_distance(rest, n, train=train)

    def _kernel(
        self, found: list[np.ndarray], known: np.ndarray, has_energy: bool, together: bool
    ) -> None:
        train = [found[i] for i in known]
        self.scores = Shortlist(found, has_energy=has_energy, train=train).scores().total
        listed = Shortlist([found[i] for i in self._open], has_energy=has_energy, train=train)
        self._choose = listed.choose if together else listed.most_unknown

    def choose(self, n: int) -> np.ndarray:
        """Return n more frames."""
        return self._open[np.asarray(self._choose(n), dtype=int)]


def _pooled(name: str, method: str) -> np.ndarray:
    if method == "SOAP":
        return soap(name)
    return np.concatenate(rows(name, "activation", method == "random network"))


def _disagreement(members: list[Potential], structures: tuple[Structure, ...]) -> np.ndarray:
    """Return of every frame the largest spread of a force among the members, eV/Å."""
    every = [member.predict(structures).forces for member in members]
    return np.array([
        float(np.sqrt(np.var(np.stack(forces), axis=0).sum(axis=1)).max())
        for forces in zip(*cast(Any, every), strict=True)
    ])  # fmt: skip


def learned(name: str, method: str, n: int, seed: int) -> dict[str, Any]:
    """Return the errors after fine-tuning on the first frames and those a method chose."""
    chosen = picked(name, method, seed)[: n - FIRST]
    model = learner(name).learn(np.concatenate([first(name, seed), chosen]), seed)
    return {"test": vars(model.errors(data(name)[1])), "context": context(dtype=DTYPE)}


@lru_cache(maxsize=len(METHODS))
def picked(name: str, method: str, seed: int) -> np.ndarray:
    """Return what a method chooses, in order; a smaller budget is the beginning of a larger one."""
    return Chooser(name, method, seed).choose(BUDGETS[-1] - FIRST)


def ranked(name: str, seed: int) -> dict[str, Any]:
    """Return how well each method ranks the errors on the pool after the first frames."""
    labels = data(name)[0]
    energies, forces = learner(name).learn(first(name, seed), seed).residuals(labels)
    energy, force = np.abs(energies), np.array([np.sqrt((f**2).mean()) for f in forces])
    rest = np.setdiff1d(np.arange(len(labels)), first(name, seed))
    found = {}
    for method in METHODS:
        scores = Chooser(name, method, seed).scores
        if scores is not None and method != STRANGEST:
            found[method] = {
                "force": rank_correlation(force[rest], scores[rest]),
                "energy": rank_correlation(energy[rest], scores[rest]),
            }
    return found


def attainable(name: str, seed: int) -> dict[str, float]:
    """Return how well the joint kernel would rank the energies' errors if it were exactly right.

    A frame's energy is off by one number, of which a variance says how large it may be, not how
    large it is: this is the correlation of errors drawn from normal distributions with these very
    variances, the mean of `DRAWS`. Real errors can do better where the variances of frames differ
    more than the kernel says. A force's error is a mean over all atoms, which is ranked better.
    """
    found, known = rows(name, "joint"), first(name, seed)
    listed = Shortlist(found, has_energy=True, train=[found[i] for i in known])
    spread = np.sqrt(np.delete(listed.scores().energy, known))
    drawn = np.random.default_rng(seed).standard_normal((DRAWS, len(spread)))
    return {"energy": float(np.mean([rank_correlation(np.abs(z * spread), spread) for z in drawn]))}


def expected(name: str, seed: int) -> dict[str, Any]:
    """Return what the joint kernel leaves unknown of the pool after each choice, energy and force.

    Root mean squares, in units of the noise; without the committee, which has to be trained. The
    joint kernel's own choice is about the best there is in this measure: how far another one is
    behind it is what there is to gain.
    """
    features = rows(name, "joint")
    found: dict[str, dict[str, list[float]]] = {}
    for method in (m for m in METHODS if m != "committee"):
        chosen = np.concatenate([first(name, seed), picked(name, method, seed)])
        left = [
            Shortlist(features, has_energy=True, train=[features[i] for i in chosen[:n]]).scores()
            for n in BUDGETS
        ]
        found[method] = {
            "energy": [float(np.sqrt(x.energy.mean())) for x in left],
            "force": [float(np.sqrt(x.force.mean())) for x in left],
        }
    return found


def wanted() -> dict[str, Callable[[], dict[str, Any]]]:
    """Return name and maker of every cell, a seed at a time."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for seed in SEEDS:
        for name in POOLS:
            found[named(name, "ranks", seed)] = partial(ranked, name, seed)
            found[named(name, "attainable", seed)] = partial(attainable, name, seed)
            found[named(name, "expected", seed)] = partial(expected, name, seed)
            for n, method in itertools.product(BUDGETS, METHODS):
                make = partial(learned, name, method, n, seed)
                found[named(name, method, n, seed)] = make
    return found


def needed(
    found: dict[str, dict[str, Any]], name: str, method: str, what: str, target: float
) -> float:
    """Return the labels a method needs for an error, between budgets on a double logarithmic scale.

    nan where the last budget does not reach it; the first budget where that reaches it.
    """
    means = [_mean(found, name, method, n, what) for n in BUDGETS]
    if np.isnan(means).any():
        return float("nan")
    best = np.minimum.accumulate(means)
    if best[0] <= target:
        return float(BUDGETS[0])
    if best[-1] > target:
        return float("nan")
    after = int(np.argmax(best <= target))
    a, b = np.log(best[after - 1]), np.log(best[after])
    part = (a - np.log(target)) / (a - b)
    low, high = np.log(BUDGETS[after - 1]), np.log(BUDGETS[after])
    return float(np.exp(low + part * (high - low)))


def _mean(found: dict[str, dict[str, Any]], name: str, method: str, n: int, what: str) -> float:
    values = [found.get(named(name, method, n, seed)) for seed in SEEDS]
    return float(np.mean([v["test"][what] for v in values if v])) if any(values) else float("nan")


def main() -> None:
    """Measure what is not there yet, and print the tables."""
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(THREADS)
    found = measured("acquisition", wanted(), options)
    for what, unit in (("force", "meV/Å"), ("energy", "meV/atom")):
        print(_curves(found, what, unit))
    print(_saved(found, RIVALS, "beside what is used elsewhere"))
    print(_saved(found, OUR_RULE, "beside other kernels with our rule"))
    print(_expected(found))
    print(_ranks(found))
    print(machine(context(threads=THREADS, dtype=DTYPE, seeds=str(SEEDS), steps=STEPS)))


def _curves(found: dict[str, dict[str, Any]], what: str, unit: str) -> str:
    lines = []
    for name in POOLS:
        for method in METHODS:
            shown = []
            for n in BUDGETS:
                cells = [found.get(named(name, method, n, seed)) for seed in SEEDS]
                values = [1e3 * c["test"][what] for c in cells if c]
                spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
                shown.append(f"{np.mean(values):.1f}{spread}" if values else "")
            if any(shown):
                lines.append([name, method, *shown])
    columns = ("pool", "chosen by", *(f"{n} labels" for n in BUDGETS))
    return table(f"RMSE of the {what}, {unit}, mean and spread over seeds", columns, lines)


def _saved(found: dict[str, dict[str, Any]], rivals: tuple[str, ...], title: str) -> str:
    """Labels for the error that the strongest of the rivals has at the last budget but one."""
    lines = []
    for what in ("energy", "force"):
        saved = {method: [] for method in OURS}
        for name in POOLS:
            at = BUDGETS[-2]
            targets = {r: _mean(found, name, r, at, what) for r in rivals}
            if np.isnan(list(targets.values())).any():
                continue
            rival = min(targets, key=lambda r: targets[r])
            ours = {m: needed(found, name, m, what, targets[rival]) for m in OURS}
            for method, n in ours.items():
                saved[method].append(1 - n / at if np.isfinite(n) else -1.0)
            lines.append([what, name, rival, at, *(ours[m] for m in OURS)])
        if any(saved.values()):
            middle = [f"{100 * float(np.median(saved[m])):.0f} % fewer" for m in OURS]
            lines.append([what, "median of the pools", "", "", *middle])
    columns = ("error", "pool", "strongest rival", "its labels", *OURS)
    return table(f"Labels for the same error: {title}", columns, lines)


def _expected(found: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name in POOLS:
        cells = [c for seed in SEEDS if (c := found.get(named(name, "expected", seed)))]
        for method in (m for m in METHODS if cells and m in cells[0]):
            means = np.mean([c[method]["force"] for c in cells], axis=0)
            lines.append([name, method, *(f"{value:.2f}" for value in means)])
    columns = ("pool", "chosen by", *(f"{n} labels" for n in BUDGETS))
    return table("Force error that the joint kernel expects, in units of the noise", columns, lines)


def _ranks(found: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name in POOLS:
        seeds = [seed for seed in SEEDS if named(name, "ranks", seed) in found]
        cells = [found[named(name, "ranks", seed)] for seed in seeds]
        most = [found.get(named(name, "attainable", seed), {}) for seed in seeds]
        for what in ("force", "energy"):
            if cells:
                shown: list[Any] = [
                    float(np.mean([c[m][what] for c in cells])) if m in cells[0] else "–"
                    for m in METHODS
                ]
                exact = [c[what] for c in most if what in c]
                shown.append(float(np.mean(exact)) if exact else "–")
                lines.append([name, what, *shown])
    columns = ("pool", "error", *METHODS, "joint, were it exact")
    return table("Spearman of what is left unknown with the error", columns, lines)


if __name__ == "__main__":
    main()
