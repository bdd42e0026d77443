"""Pools of reactive frames at GFN2-xTB, made here: along a path, beside it, and hot dynamics.

Each reaction is pulled from one end to the other by a harmonic restraint on a collective variable
while GFN2-xTB moves the atoms; frames beside the path are shaken ones, and hot dynamics start at
both ends without a restraint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from core.contracts import LabelSet
from core.dynamics.integrators import Dynamics
from core.errors import LabelError
from core.reference import make as make_reference
from core.settings import DynamicsSettings
from core.structures import Structure, from_smiles

STIFFNESS = 30.0
"""Of the restraint, eV/Å²."""
PATH_K, HOT_K = 300.0, 900.0
SHAKE = 0.08
"""Å, standard deviation of what shakes the frames beside the path."""
LARGEST_FORCE = 15.0
"""eV/Å; frames with larger ones are no part of a pool."""


@dataclass(frozen=True)
class Reaction:
    """A molecule, and a linear combination of distances that leads from it to another.

    Attributes:
        pairs: (i, j, weight) of the collective variable Σ weight · r_ij, Å.
        ends: its values at the two ends.
    """

    start: Callable[[], Structure]
    pairs: tuple[tuple[int, int, float], ...]
    ends: tuple[float, float]

    def value(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the collective variable and its gradient (N, 3)."""
        total, gradient = 0.0, np.zeros_like(positions)
        for i, j, weight in self.pairs:
            apart = positions[i] - positions[j]
            length = float(np.linalg.norm(apart))
            total += weight * length
            gradient[i] += weight * apart / length
            gradient[j] -= weight * apart / length
        return total, gradient


REACTIONS = {
    "Diels-Alder": Reaction(
        lambda: from_smiles("C1CCC=CC1"), ((1, 2, 0.5), (0, 5, 0.5)), (1.53, 3.0)
    ),
    "ring opening": Reaction(lambda: from_smiles("C1=CCC1"), ((2, 3, 1.0),), (1.54, 2.9)),
    "hydrogen transfer": Reaction(
        lambda: from_smiles("OC=C"), ((0, 3, 1.0), (2, 3, -1.0)), (-1.6, 1.0)
    ),
}
"""Butadiene and ethylene out of cyclohexene, cyclobutene to butadiene, vinyl alcohol to
acetaldehyde."""


def pool(reaction: Reaction, n: int, seed: int) -> tuple[LabelSet, np.ndarray]:
    """Return about n labelled frames, and the collective variable of each.

    Half of them along the path, a quarter beside it and a quarter of hot dynamics.
    """
    reference = make_reference("gfn2-xtb")
    rng = np.random.default_rng(seed)
    start = reaction.start()
    path = _path(reaction, start, n // 2, rng)
    beside = [
        s.moved(s.positions + SHAKE * rng.standard_normal(s.positions.shape))
        for s in (path[i] for i in rng.integers(len(path), size=n // 4))
    ]
    hot = [
        frame
        for end in (path[0], path[-1])
        for frame in run(end, HOT_K, n // 8, 10, rng, lambda positions, step: (0.0, 0.0))
    ]
    structures, labels = [], []
    for structure in (*path, *beside, *hot):
        try:
            label = reference.compute(structure)
        except LabelError:
            continue  # shaken into what has no converged density
        if np.linalg.norm(label.forces, axis=1).max() < LARGEST_FORCE:
            structures.append(structure)
            labels.append(label)
    values = np.array([reaction.value(s.positions)[0] for s in structures])
    energies, forces = np.array([x.energy for x in labels]), tuple(x.forces for x in labels)
    return LabelSet(tuple(structures), energies, forces), values


def _path(
    reaction: Reaction, start: Structure, n: int, rng: np.random.Generator
) -> list[Structure]:
    """Return n frames of a run pulled from one end to the other."""
    between, total = 5, 5 * n
    first, last = reaction.ends

    def restraint(positions: np.ndarray, step: int) -> tuple[float, np.ndarray | float]:
        wanted = first + (last - first) * min(step / total, 1.0)
        value, gradient = reaction.value(positions)
        off = value - wanted
        return 0.5 * STIFFNESS * off**2, -STIFFNESS * off * gradient

    return run(start, PATH_K, n, between, rng, restraint)


def run(
    start: Structure, temperature: float, n: int, between: int, rng: np.random.Generator,
    restraint: Callable[[np.ndarray, int], tuple[float, np.ndarray | float]],
) -> list[Structure]:  # fmt: skip
    """Return n frames of GFN2-xTB dynamics, `between` steps of 1 fs apart."""
    reference = make_reference("gfn2-xtb")
    steps = 0

    def evaluate(positions: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal steps
        label = reference.compute(start.moved(positions))
        energy, force = restraint(positions, steps)
        steps += 1
        return label.energy + energy, label.forces + force

    settings = DynamicsSettings(temperature_K=temperature, timestep_fs=1.0, friction_per_fs=0.02)
    dynamics = Dynamics(start, evaluate, settings, rng)
    frames = []
    for _ in range(n):
        try:
            dynamics.run(between)
        except LabelError:
            break  # a hot molecule that came apart
        frames.append(dynamics.structure)
    return frames
