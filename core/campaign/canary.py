"""The canary: what new weights have to survive before they enter a running simulation.

A short constant-energy run from the present point, and the errors on labelled frames beside those
of the weights they would replace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from core.contracts import LabelSet, Potential
from core.dynamics.integrators import Dynamics
from core.dynamics.triggers import Limits, broken
from core.errors import CanaryError
from core.settings import DynamicsSettings
from core.structures import Structure
from core.units import BOLTZMANN

STEPS = 40
"""Length of the constant-energy run."""
DRIFT_KT = 0.2
"""Largest deviation of the total energy per atom, in k_B T: five times what Verlet shows with
hydrogen at 0.5 fs."""
HEATING = 5.0
"""Largest kinetic temperature, as a multiple of the present and the wanted one."""
GROWTH = 2.0
"""Errors on labelled frames may grow by this factor beyond the label noise."""
CONTRADICTION, UNLEARNED = 10.0, 0.5
"""A label contradicts the model if its forces are off by this multiple of the noise after they were
learned, and by more than this share of what they were off before."""
PROBES = 24
"""Labelled frames looked at: the newest half of them, and others evenly spread."""


@dataclass(frozen=True)
class Errors:
    """Root mean square errors on labelled frames: eV and eV/Å."""

    energy: float
    force: float


def probe(labels: LabelSet) -> LabelSet:
    """Return at most `PROBES` labels."""
    n = len(labels)
    if n <= PROBES:
        return labels
    older = np.linspace(0, n - PROBES // 2, PROBES - PROBES // 2, endpoint=False).astype(int)
    picked = sorted({*older.tolist(), *range(n - PROBES // 2, n)})
    return LabelSet(
        tuple(labels.structures[i] for i in picked),
        labels.energies[picked],
        tuple(labels.forces[i] for i in picked),
    )


@dataclass(frozen=True)
class Residuals:
    """Prediction minus label: energies (S,), eV, and forces, S of (N, 3), eV/Å."""

    energies: np.ndarray
    forces: tuple[np.ndarray, ...]

    def errors(self, which: slice = slice(None)) -> Errors:
        """Return the errors of some of the labels, a constant in the energy ignored."""
        force = np.concatenate([np.zeros((0, 3)), *self.forces[which]])
        energy = self.energies[which]
        if not len(energy):
            return Errors(math.nan, math.nan)
        return Errors(float(energy.std()), float(np.sqrt((force**2).mean())))


def residuals(potential: Potential, labels: LabelSet) -> Residuals:
    """Return the residuals of the weights in force."""
    predicted = potential.predict(labels.structures)
    assert predicted.forces is not None
    forces = tuple(p - f for p, f in zip(predicted.forces, labels.forces, strict=True))
    return Residuals(predicted.energies - labels.energies, forces)


def check_errors(before: Errors, after: Errors, *, energy: float, force: float) -> None:
    """Compare errors; `energy` (eV) and `force` (eV/Å) are grown into without objection.

    Raises:
        CanaryError: the new weights are much worse on frames whose label is known.
    """
    for name, old, new, floor, unit in (
        ("energies", before.energy, after.energy, energy, "eV"),
        ("forces", before.force, after.force, force, "eV/Å"),
    ):
        if not new <= GROWTH * old + floor:
            raise CanaryError(
                f"the error of labelled {name} grew from {old:.3g} to {new:.3g} {unit}"
            )


def check_new(before: Residuals, after: Residuals, *, n_old: int, force: float) -> None:
    """Compare each new label, of which there are some after `n_old`, before and after learning it.

    Args:
        force: noise expected of a force component, eV/Å.

    Raises:
        CanaryError: a label stays as wrong as it was, and far beyond its noise: it contradicts what
            the model can be and what the other labels say, as shuffled forces do.
    """
    found, worst = [], (0.0, 0.0)
    for k in range(n_old, len(after.forces)):
        old, new = (float(np.sqrt((r.forces[k] ** 2).mean())) for r in (before, after))
        if new > CONTRADICTION * force and new > UNLEARNED * old:
            found.append(k - n_old)
            worst = max(worst, (new, old))
    if found:
        raise CanaryError(
            f"{len(found)} of the new labels cannot be learned: their forces are off by "
            f"{worst[1]:.2g} eV/Å before and {worst[0]:.2g} after, as if they belonged to other "
            "atoms or another frame",
            tuple(found),
        )


def check_dynamics(
    potential: Potential,
    structure: Structure,
    velocities: np.ndarray,
    settings: DynamicsSettings,
    limits: Limits,
) -> None:
    """Run `STEPS` steps at constant energy with the weights in force.

    Raises:
        CanaryError: the energy drifts, the atoms heat up, or the run breaks.
    """
    constant = settings.model_copy(update={"ensemble": "nve"})
    run = Dynamics(
        structure, potential.evaluator(structure), constant, np.random.default_rng(0)
    )  # fmt: skip
    run.jump(structure.positions, velocities)
    hottest = max(run.temperature_K, settings.temperature_K)
    start = run.energy + run.kinetic_energy
    for _ in range(STEPS):
        run.run(1)
        why = broken(
            run.structure, run.energy, run.forces, run.temperature_K, hottest, limits
        )  # fmt: skip
        if why is not None:
            raise CanaryError(f"a test run with the new weights broke: {why}")
        if run.temperature_K > HEATING * hottest:
            raise CanaryError(f"a test run with the new weights reached {run.temperature_K:.0f} K")
        drift = abs(run.energy + run.kinetic_energy - start) / len(structure)
        if drift > DRIFT_KT * BOLTZMANN * hottest:
            raise CanaryError(
                f"a test run with the new weights did not conserve energy ({1e3 * drift:.2g} meV "
                f"per atom after {run.step} steps)"
            )
