"""Minima: vibrations about the known one, and a search at random for others that should not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.data import atomic_masses, covalent_radii
from ase.optimize import FIRE
from ase.units import _amu, _c, _e
from scipy.spatial.distance import pdist

from core.contracts import Reference
from core.errors import LabelError
from core.evaluation.finding import Finding
from core.structures import Structure

FORCE, STEPS = 0.005, 500
"""A minimum has no larger force, eV/Å; steps of a relaxation."""
SHIFT = 0.01
"""Displacement for second derivatives, Å."""
IMAGINARY_CM = -50.0
"""A frequency below this is a direction in which a minimum is none."""
FLAT_CM = 2.0
"""A frequency below this is no vibration but a part that has come off."""
GOOD_CM, BAD_CM = 30.0, 120.0
"""Mean error of frequencies, cm⁻¹."""
COLLAPSED = 0.6
"""Of the sum of covalent radii: atoms nearer in a minimum have fallen into each other."""
DEEPER = 0.2
"""eV/atom that a minimum lies too deep, beside the reference, to be the model's invention."""

Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""positions (N, 3), Å -> energy (eV), forces (N, 3) (eV/Å)."""


class _Calculator(Calculator):
    def __init__(self, evaluate: Evaluate) -> None:
        super().__init__()
        self.implemented_properties = ["energy", "forces"]
        self._evaluate = evaluate

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        energy, forces = self._evaluate(atoms.positions)
        self.results = {"energy": energy, "forces": forces}


def relaxed(evaluate: Evaluate, start: Structure) -> tuple[Structure, float, float]:
    """Return the nearest minimum, its energy (eV) and its largest force (eV/Å)."""
    atoms = start.to_atoms()
    atoms.calc = _Calculator(evaluate)
    with FIRE(atoms, logfile=None, maxstep=0.1) as optimiser:
        optimiser.run(fmax=FORCE, steps=STEPS)
    energy, forces = evaluate(atoms.positions)
    return start.moved(atoms.positions), energy, float(np.linalg.norm(forces, axis=1).max())


def frequencies(evaluate: Evaluate, minimum: Structure) -> np.ndarray:
    """Return the vibrations about a minimum, cm⁻¹, ascending; imaginary ones are negative.

    By central differences; of an isolated molecule without the six that move or turn it.
    """
    n = len(minimum)
    hessian = np.zeros((3 * n, 3 * n))
    for k in range(3 * n):
        ends = []
        for sign in (1, -1):
            moved = minimum.positions.copy()
            moved.flat[k] += sign * SHIFT
            ends.append(evaluate(moved)[1].ravel())
        hessian[k] = -(ends[0] - ends[1]) / (2 * SHIFT)
    weights = np.repeat(atomic_masses[minimum.numbers], 3) ** -0.5
    hessian = weights[:, None] * 0.5 * (hessian + hessian.T) * weights
    if not any(minimum.pbc):
        hessian = _internal(hessian, minimum)
    values = np.linalg.eigvalsh(hessian)
    per_cm = np.sqrt(_e / _amu) * 1e10 / (2 * np.pi * _c * 100)
    found = np.sign(values) * np.sqrt(np.abs(values)) * per_cm
    rigid = 0 if any(minimum.pbc) else _rigid(minimum).shape[1]
    order = np.argsort(np.abs(found))
    return np.sort(found[order[rigid:]])


def _rigid(structure: Structure) -> np.ndarray:
    """Return an orthonormal basis (3N, 5 or 6) of mass-weighted translations and rotations."""
    masses = atomic_masses[structure.numbers]
    x = structure.positions - np.average(structure.positions, axis=0, weights=masses)
    moves = [np.tile(axis, (len(x), 1)) for axis in np.eye(3)]
    turns = [np.cross(axis, x) for axis in np.eye(3)]
    basis = np.stack([(m * masses[:, None] ** 0.5).ravel() for m in (*moves, *turns)], axis=1)
    left, sizes, _ = np.linalg.svd(basis, full_matrices=False)
    return left[:, sizes > 1e-6 * sizes[0]]


def _internal(hessian: np.ndarray, structure: Structure) -> np.ndarray:
    """Project translations and rotations out."""
    rigid = _rigid(structure)
    keep = np.eye(len(hessian)) - rigid @ rigid.T
    return keep @ hessian @ keep


def vibrations(
    evaluate: Evaluate, start: Structure, truth: Evaluate | None
) -> tuple[Finding, Structure, float]:
    """Relax, and compare the frequencies with the reference's about its own minimum.

    Returns also the model's minimum and its energy.
    """
    minimum, energy, force = relaxed(evaluate, start)
    if not force <= 5 * FORCE:
        said = f"No minimum was found from the first label (largest force {force:.2g} eV/Å left)."
        return Finding("vibrations", "bad", said, {"largest_force": force}), minimum, energy
    found = frequencies(evaluate, minimum)
    figures = {"cm": found.round(1).tolist()}
    imaginary = int((found < IMAGINARY_CM).sum())
    if imaginary:
        said = f"The relaxed structure is no minimum: {imaginary} imaginary vibrations."
        return Finding("vibrations", "bad", said, figures), minimum, energy
    flat = int((np.abs(found) < FLAT_CM).sum())
    if flat:
        said = f"Relaxed, the structure came apart: {flat} directions cost no energy."
        return Finding("vibrations", "bad", said, figures), minimum, energy
    if truth is None:
        said = f"{len(found)} real vibrations, up to {found.max():.0f} cm⁻¹; none to compare with."
        return Finding("vibrations", "good", said, figures), minimum, energy
    try:
        expected = frequencies(truth, relaxed(truth, minimum)[0])
    except LabelError as error:
        said = f"The reference gave no vibrations to compare with: {error}"
        return Finding("vibrations", "unknown", said, figures), minimum, energy
    off = np.abs(found - expected)
    mean = float(off.mean())
    verdict = "good" if mean <= GOOD_CM else "doubtful" if mean <= BAD_CM else "bad"
    said = (
        f"{len(found)} vibrations are off by {mean:.0f} cm⁻¹ on average, at most {off.max():.0f}."
    )
    figures |= {"reference_cm": expected.round(1).tolist(), "mean_error_cm": mean}
    series = {"frequencies": [expected.tolist(), found.tolist()]}
    return Finding("vibrations", verdict, said, figures, series), minimum, energy  # type: ignore[arg-type]


def search(
    evaluator: Callable[[Structure], Evaluate], minimum: Structure, energy: float,
    reference: Reference | None, *, trials: int, seed: int,
) -> Finding:  # fmt: skip
    """Throw the atoms of a composition together at random, relax, and look at what comes out.

    False are minima in which atoms have fallen into each other, and those deeper than the known
    one although the reference, where there is one, says otherwise.
    """
    rng = np.random.default_rng(seed)
    collapsed = deep = lost = 0
    depths = []
    for _ in range(trials):
        start = minimum.moved(_thrown(minimum, rng))
        found, value, _ = relaxed(evaluator(start), start)
        if not (np.isfinite(value) and np.isfinite(found.positions).all()):
            lost += 1
            continue
        depth = (value - energy) / len(minimum)
        depths.append(depth)
        radii = covalent_radii[minimum.numbers]
        limits = COLLAPSED * pdist(radii[:, None], lambda a, b: a[0] + b[0])
        if (pdist(found.positions) < limits).any():
            collapsed += 1
        elif depth < -DEEPER and not _is_real(reference, found, minimum, depth):
            deep += 1
    false = collapsed + deep + lost
    verdict = "good" if not false else "doubtful" if false <= trials // 10 else "bad"
    said = f"Of {trials} random starts {trials - false} relaxed to structures that can be."
    if false:
        parts = (
            (collapsed, "with atoms fallen into each other"), (deep, "far too deep"),
            (lost, "with numbers that are not finite"),
        )  # fmt: skip
        said += " False: " + ", ".join(f"{n} {what}" for n, what in parts if n) + "."
    figures = {"trials": trials, "collapsed": collapsed, "too_deep": deep, "not_finite": lost}
    return Finding("search", verdict, said, figures, {"depths_eV_per_atom": depths})  # type: ignore[arg-type]


def _thrown(like: Structure, rng: np.random.Generator) -> np.ndarray:
    """Return random positions with no two atoms on top of each other, at a liquid's density."""
    n = len(like)
    side = (12.0 * n) ** (1 / 3)
    placed: list[np.ndarray] = []
    while len(placed) < n:
        x = rng.uniform(0, side, 3)
        radius = covalent_radii[like.numbers[len(placed)]]
        near = [
            np.linalg.norm(x - y) < 0.8 * (radius + covalent_radii[z])
            for y, z in zip(placed, like.numbers, strict=False)
        ]
        if not any(near):
            placed.append(x)
        else:
            side *= 1.002
    return np.array(placed)


def _is_real(
    reference: Reference | None, found: Structure, minimum: Structure, depth: float
) -> bool:
    """Whether the reference finds a structure about as deep below the minimum as the model."""
    if reference is None:
        return False
    try:
        below = reference.compute(found).energy - reference.compute(minimum).energy
    except LabelError:
        return False
    return below / len(found) < depth + DEEPER
