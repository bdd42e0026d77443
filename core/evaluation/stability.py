"""Dynamics: how long until a simulation breaks, and are the structures in it the right ones?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.geometry import get_distances
from ase.neighborlist import natural_cutoffs, neighbor_list
from scipy.stats import wasserstein_distance

from core.contracts import LabelSet, Potential
from core.dynamics.integrators import Dynamics
from core.dynamics.triggers import broken
from core.evaluation.finding import Finding
from core.settings import DynamicsSettings
from core.structures import Structure

TEMPERATURES_K = (300.0, 600.0, 1200.0)
HOT_K = 1000.0
"""Above this bonds may break without the model being at fault."""
STRETCHED = 1.6
"""A bond is broken beyond this multiple of the sum of covalent radii."""
LOOK = 20
"""Steps between two looks."""
GOOD_EMD, BAD_EMD = 0.02, 0.1
"""Earth mover's distance between distributions of distances, Å."""
LEAST_FRAMES = 20
REACH, BINS = 6.0, 120
"""Longest distance of a distribution, Å, and bins of its plot."""


def stability(
    potential: Potential, start: Structure, *, picoseconds: float, seed: int,
    temperatures: Sequence[float] = TEMPERATURES_K,
) -> tuple[Finding, list[Structure]]:  # fmt: skip
    """Run at each temperature until something breaks; return also frames of the first run."""
    lasted, reasons, frames = {}, {}, []
    for kelvin in temperatures:
        settings = DynamicsSettings(temperature_K=kelvin, timestep_fs=0.5)
        run = Dynamics(
            start, potential.evaluator(start), settings, np.random.default_rng([seed, int(kelvin)])
        )
        bonds = _bonds(start) if kelvin < HOT_K and not any(start.pbc) else None
        steps = round(1000 * picoseconds / settings.timestep_fs)
        why = None
        while run.step < steps and why is None:
            made = run.run(LOOK)
            why = broken(run.structure, run.energy, run.forces, run.temperature_K, kelvin)
            if why is None and bonds is not None:
                why = _torn(run.structure, bonds)
            if why is None and made < LOOK:
                why = "the potential returned numbers that are not finite"
            if why is None and kelvin == temperatures[0] and run.step >= steps // 5:
                frames.append(run.structure)
        lasted[f"{kelvin:.0f}"] = run.step * settings.timestep_fs / 1000
        if why is not None:
            reasons[f"{kelvin:.0f}"] = why
    parts = [
        f"{t} K: {'whole' if t not in reasons else 'broken'} after {lasted[t]:.2g} ps"
        for t in lasted
    ]
    bad = any(float(t) < HOT_K for t in reasons)
    verdict = "bad" if bad else "doubtful" if reasons else "good"
    why = "".join(f" At {t} K {reason}." for t, reason in reasons.items())
    figures = {"ps": lasted, "reasons": reasons}
    said = f"Dynamics at {'; '.join(parts)}.{why}"
    return Finding("dynamics", verdict, said, figures), frames  # type: ignore[arg-type]


def _bonds(structure: Structure) -> np.ndarray:
    atoms = structure.to_atoms()
    i, j = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.2))
    return np.stack([i, j], axis=1)[i < j]


def _torn(structure: Structure, bonds: np.ndarray) -> str | None:
    """Return which bond is gone."""
    x, radii = structure.positions, covalent_radii[structure.numbers]
    lengths = np.linalg.norm(x[bonds[:, 0]] - x[bonds[:, 1]], axis=1)
    limits = STRETCHED * radii[bonds].sum(axis=1)
    if not (lengths > limits).any():
        return None
    i, j = bonds[int(np.argmax(lengths / limits))]
    names = [f"{chemical_symbols[structure.numbers[k]]}{k + 1}" for k in (i, j)]
    return f"the bond {names[0]}-{names[1]} has torn ({lengths.max():.2f} Å)"


def distances(frames: Sequence[Structure]) -> dict[str, np.ndarray]:
    """Return the distances up to `REACH`, Å, of each pair of elements in all frames."""
    found: dict[str, list[np.ndarray]] = {}
    for s in frames:
        pbc = any(s.pbc)
        _, between = get_distances(
            s.positions, cell=s.cell if pbc else None, pbc=s.pbc if pbc else None
        )
        i, j = np.triu_indices(len(s), 1)
        for a, b in combinations_with_replacement(sorted(set(s.numbers.tolist())), 2):
            of = ((s.numbers[i] == a) & (s.numbers[j] == b)) | (
                (s.numbers[i] == b) & (s.numbers[j] == a)
            )
            d = between[i[of], j[of]]
            name = f"{chemical_symbols[a]}-{chemical_symbols[b]}"
            found.setdefault(name, []).append(d[d < REACH])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def distributions(frames: Sequence[Structure], labels: LabelSet) -> Finding:
    """Compare distances in a simulation with those in the labels (earth mover's distance).

    The labels have to be frames of a simulation of the same composition near the same temperature.
    """
    if not frames:
        return Finding("structure", "unknown", "The simulation did not last long enough.")
    formula = frames[0].formula
    known = [s for s in labels.structures if s.formula == formula]
    if len(known) < LEAST_FRAMES:
        return Finding(
            "structure", "unknown",
            f"{len(known)} labels of {formula} are too few to compare distances with.",
        )  # fmt: skip
    ours, theirs = distances(frames), distances(known)
    moved, curves = {}, {}
    edges = np.linspace(0, REACH, BINS + 1)
    middles = 0.5 * (edges[1:] + edges[:-1])
    for name in theirs:
        if len(theirs[name]) and len(ours.get(name, ())):
            moved[name] = float(wasserstein_distance(ours[name], theirs[name]))
            densities = (
                np.histogram(d, edges, density=True)[0] for d in (theirs[name], ours[name])
            )
            curves[name] = [middles.tolist(), *(density.tolist() for density in densities)]
    worst = max(moved, key=lambda name: moved[name])
    mean = float(np.mean(list(moved.values())))
    verdict = "good" if mean <= GOOD_EMD else "doubtful" if mean <= BAD_EMD else "bad"
    return Finding(
        "structure",
        verdict,  # type: ignore[arg-type]
        f"Distances in the simulation differ from those in the labels by {mean:.3f} Å (earth "
        f"mover's, mean over pairs of elements), most for {worst} ({moved[worst]:.3f} Å).",
        {"mean_A": mean, "by_pair_A": moved},
        {"curves": curves},
    )
