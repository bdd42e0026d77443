"""Calibration on fixed data: how often errors lie within the intervals given for them.

    flywise bench calibration [--only WORD] [--list]

The learner of a campaign, with the default posterior, learns 20 labels, which begin the calibration
by being left out one at a time. Then frames of the same kind are scored as a campaign scores them,
the weights staying, and the rest is held against the intervals: those for the energy by Student-t
and by conformal ranks, that for the largest force error. Figures are means over random orders of
the frames. Other frames (hotter ones, a bond torn) are judged after all of the same kind were
scored; "warned" is the share of frames that the program says lie outside what the labels cover.
Cells are kept under `results/calibration`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fixed_data
import numpy as np
import torch
from bench_posterior import DTYPE, NOISE, SYSTEMS
from common import arguments, context, machine, measured, table

from core.calibration import Calibration
from core.campaign.learner import Labelled, Learner, calibration_from_dict, calibration_to_dict
from core.campaign.state import OUTSIDE
from core.contracts import LabelSet
from core.finetuning.tuning import subset
from core.posterior import make
from core.settings import PosteriorSettings
from core.structures import Structure
from core.uncertainty import LEVELS
from core.units import KCAL_PER_MOL

THREADS, LABELS, SEEDS = 1, 20, (1, 2, 3)
SCORED = (0, 10, 30, 100)
"""Frames of the same kind that were scored before."""
FRAMES, OTHERS, ORDERS = 200, 100, 40
TORN = 0.8
"""By how much the hydrogen of ethanol's hydroxyl is pulled off, Å."""


def same(system: str, seed: int) -> LabelSet:
    """Return frames of the same kind as the labels, none of them a label."""
    if system != "3BPA":
        return fixed_data.drawn(next(iter(SYSTEMS[system][2].values())), FRAMES, 0)
    rest = fixed_data.drawn(SYSTEMS[system][1], LABELS + FRAMES, seed)
    return subset(rest, np.arange(LABELS, LABELS + FRAMES))


def torn() -> LabelSet:
    """Return ethanol at GFN2-xTB with the hydrogen of its hydroxyl pulled off."""

    def make_labels() -> tuple[LabelSet, np.ndarray]:
        structures = fixed_data.gfn2(FRAMES, 12).structures[:OTHERS]
        return fixed_data.labelled([_torn(s) for s in structures]), np.zeros(0)

    return fixed_data.kept(f"ethanol-torn-{OTHERS}", make_labels)[0]


def _torn(structure: Structure) -> Structure:
    positions = structure.positions.copy()
    oxygen = int(np.flatnonzero(structure.numbers == 8)[0])
    hydrogens = np.flatnonzero(structure.numbers == 1)
    bonds = positions[hydrogens] - positions[oxygen]
    nearest = int(np.linalg.norm(bonds, axis=1).argmin())
    bond = bonds[nearest]
    positions[hydrogens[nearest]] += TORN * bond / np.linalg.norm(bond)
    return structure.moved(positions)


def others(system: str) -> dict[str, Callable[[], LabelSet]]:
    """Return sets of frames of another kind."""
    if system == "ethanol GFN2":
        hotter = list(SYSTEMS[system][2].items())[1:]
        return {**dict(hotter), f"O-H + {TORN} Å": torn}
    return SYSTEMS[system][2] if system == "3BPA" else {}


def measure(system: str, seed: int, folder: Path) -> dict[str, Any]:
    """Learn once; return errors and σ of all frames, and the calibration at the start."""
    source, train, _ = SYSTEMS[system]
    potential = fixed_data.foundation(source, folder, DTYPE)
    labels = fixed_data.drawn(train, LABELS, seed)
    posterior = make(
        potential, PosteriorSettings(), NOISE, energy_tolerance=0.5 * KCAL_PER_MOL,
        elements=sorted({int(z) for s in labels.structures for z in s.numbers}),
    )  # fmt: skip
    describer = fixed_data.foundation(source, folder, DTYPE)
    learner = Learner(potential, posterior, seed=seed, describer=describer)
    each = zip(labels.structures, labels.energies, labels.forces, strict=True)
    given = [Labelled(i, s, float(e), f) for i, (s, e, f) in enumerate(each)]
    knowledge = learner.first_update(learner.begin(), given).knowledge
    learner.activate(knowledge)

    def judged(test: LabelSet) -> dict[str, list[float]]:
        spreads = [learner.judge(knowledge, s) for s in test.structures]
        energy = test.energies - [s.energy for s in spreads]
        apart = [f - s.forces for f, s in zip(test.forces, spreads, strict=True)]
        found = zip(test.structures, learner.describe(test.structures), strict=True)
        return {
            "energy": energy.tolist(),
            "sigma_energy": [float(s.sigma_energy) for s in spreads],
            "force": [float(np.linalg.norm(d, axis=1).max()) for d in apart],
            "sigma_force": [float(s.sigma_force) for s in spreads],
            "novelty": [learner.novelty(knowledge, s.numbers, f) for s, f in found],
        }

    rest = {
        title: judged(fixed_data.drawn(make_test, OTHERS, 0))
        for title, make_test in others(system).items()
    }
    return {
        "start": calibration_to_dict(knowledge.calibration),
        "same": judged(same(system, seed)), "others": rest,
    }  # fmt: skip


def scored(start: Calibration, data: dict[str, np.ndarray], order: np.ndarray) -> Calibration:
    """Take in frames one after another."""
    z, ratio = data["energy"] / data["sigma_energy"], data["force"] / data["sigma_force"]
    for i in order:
        start = start.update(float(z[i]), float(ratio[i]))
    return start


def inside(known: Calibration, data: dict[str, np.ndarray]) -> np.ndarray:
    """Return the shares within the intervals, (4, L): energy and largest force by both ways."""
    error, sigma = np.abs(data["energy"]), data["sigma_energy"]
    ones = [
        (
            error <= sigma * known.energy.interval(1.0, level),
            error <= sigma * known.scores.factor(level, "conformal"),
            data["force"] <= data["sigma_force"] * known.force.factor(level),
            data["force"] <= data["sigma_force"] * known.force.factor(level, "conformal"),
        )
        for level in LEVELS
    ]
    return np.array(ones).mean(axis=2).T


def coverage(result: dict[str, Any], n: int) -> np.ndarray:
    """Return the shares (4, L) of frames of the same kind, after n of them were scored."""
    start = calibration_from_dict(result["start"])
    frames = {k: np.array(v) for k, v in result["same"].items()}
    rng, found = np.random.default_rng(0), []
    for _ in range(ORDERS if n else 1):
        order = rng.permutation(len(frames["energy"]))
        rest = {k: v[order[n:]] for k, v in frames.items()}
        found.append(inside(scored(start, frames, order[:n]), rest))
    return np.mean(found, axis=0)


def elsewhere(result: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the shares (4, L) for frames of another kind, after all of the same kind."""
    frames = {k: np.array(v) for k, v in result["same"].items()}
    known = scored(calibration_from_dict(result["start"]), frames, np.arange(len(frames["energy"])))
    return {
        title: inside(known, {k: np.array(v) for k, v in data.items()})
        for title, data in result["others"].items()
    }


def warned(data: dict[str, list[float]]) -> float:
    """Return the share of frames that the program says are outside."""
    return float((np.array(data["novelty"]) > OUTSIDE).mean())


def rows(system: str, results: list[dict[str, Any]]) -> list[list[Any]]:
    """Return the table's rows of one system, means over the draws."""

    def row(title: str, n: int, shares: list[np.ndarray], warnings: list[float]) -> list[Any]:
        mean = 100 * np.mean(shares, axis=0)
        texts = [" / ".join(f"{v:.0f}" for v in line) for line in mean]
        return [system, len(results), title, n, *texts, f"{100 * np.mean(warnings):.0f}"]

    out = []
    for n in SCORED:
        shares = [coverage(r, n) for r in results]
        out.append(row("the same", n, shares, [warned(r["same"]) for r in results]))
    away = [elsewhere(r) for r in results]
    for title in away[0]:
        out.append(
            row(
                title, FRAMES, [a[title] for a in away],
                [warned(r["others"][title]) for r in results],
            )
        )  # fmt: skip
    return out


def main() -> None:
    """Measure what is not there yet, and print the table."""
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as work:
        wanted = {
            (system, seed): partial(measure, system, seed, Path(work) / "spice")
            for seed in SEEDS for system in SYSTEMS
        }  # fmt: skip
        found = measured("calibration", wanted, options)
    lines = []
    for system in SYSTEMS:
        there = [found[system, seed] for seed in SEEDS if (system, seed) in found]
        lines += rows(system, there) if there else []
    columns = (
        "system", "draws", "frames", "scored before", "energy, Student-t", "energy, conformal",
        "largest force, Student-t", "largest force, conformal", "warned, %",
    )  # fmt: skip
    levels = " / ".join(f"{100 * level:.0f} %" for level in LEVELS)
    print(table(f"{LABELS} labels: % within the intervals of {levels}", columns, lines))
    print(machine(context(threads=THREADS, dtype=DTYPE, seeds=str(SEEDS), orders=ORDERS)))


if __name__ == "__main__":
    main()
