"""GFN1-xTB energies and forces through tblite, and the dynamics and relaxation run on them.

Energies in eV (total), lengths in Å, forces in eV/Å, times in fs, temperatures in K.
GFN1-xTB: https://doi.org/10.1021/acs.jctc.7b00118
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase.data import atomic_masses
from ase.units import Bohr, Hartree, fs, kB
from tblite.interface import Calculator, Result

METHOD = "GFN1-xTB"
FRICTION = 0.02
"""Of dynamics, 1/fs."""
GROUND_STATE_UNPAIRED = {
    1: 1, 5: 1, 6: 2, 7: 3, 8: 2, 9: 1, 14: 2, 15: 3, 16: 2, 17: 1, 35: 1,
}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """One labelled geometry: numbers (N,), positions (N, 3) in Å, energy in eV, forces (N, 3)."""

    numbers: np.ndarray
    positions: np.ndarray
    energy: float
    forces: np.ndarray

    @property
    def largest_force(self) -> float:
        """Largest force on an atom, eV/Å."""
        return float(np.linalg.norm(self.forces, axis=1).max())


class NotConvergedError(RuntimeError):
    """The self-consistent charges did not converge, or the energy is not a number."""


class Surface:
    """The potential energy surface of one set of atoms; each call starts from the last charges."""

    def __init__(self, numbers: np.ndarray, unpaired: int | None = None) -> None:
        self.numbers = np.asarray(numbers, dtype=int)
        self._unpaired = unpaired
        self._calculator: Calculator | None = None
        self._last: Result | None = None

    def __call__(self, positions: np.ndarray) -> Frame:
        """Label positions (N, 3), Å; raises NotConvergedError."""
        try:
            energy, gradient = self._singlepoint(np.asarray(positions) / Bohr)
        except RuntimeError as error:
            self._last = None
            raise NotConvergedError(str(error)) from error
        if not (np.isfinite(energy) and np.isfinite(gradient).all()):
            self._last = None
            raise NotConvergedError(f"energy {energy}")
        forces = -gradient * (Hartree / Bohr)
        return Frame(self.numbers, np.array(positions), energy * Hartree, forces)

    def _singlepoint(self, bohr: np.ndarray) -> tuple[float, np.ndarray]:
        if self._calculator is None:
            self._calculator = Calculator(METHOD, self.numbers, bohr, uhf=self._unpaired)
            self._calculator.set("verbosity", 0)
        else:
            self._calculator.update(bohr)
        self._last = self._calculator.singlepoint(self._last)
        return float(self._last.get("energy")), self._last.get("gradient")


def relax(surface: Surface, positions: np.ndarray, steps: int) -> Iterator[Frame]:
    """FIRE (https://doi.org/10.1103/PhysRevLett.97.170201) with a 0.1 Å step limit; every frame."""
    velocity = np.zeros_like(positions)
    dt, mixing, downhill = 0.1, 0.1, 0
    for _ in range(steps):
        frame = surface(positions)
        yield frame
        forces = frame.forces
        if frame.largest_force < 0.02:
            return
        if np.vdot(forces, velocity) > 0:
            unit = forces / np.linalg.norm(forces)
            velocity = (1 - mixing) * velocity + mixing * np.linalg.norm(velocity) * unit
            downhill += 1
            if downhill > 4:
                dt, mixing = min(1.1 * dt, 0.4), 0.99 * mixing
        else:
            velocity[:] = 0
            dt, mixing, downhill = 0.5 * dt, 0.1, 0
        velocity = velocity + dt * forces
        step = dt * velocity
        positions = positions + step * min(1.0, 0.1 / np.abs(step).max())


def dynamics(
    surface: Surface,
    positions: np.ndarray,
    temperature: float,
    timestep: float,
    rng: np.random.Generator,
    friction: float = FRICTION,
    lightest: float = 0.0,
) -> Iterator[Frame]:
    """Langevin dynamics (BAOAB, https://doi.org/10.1093/amrx/abs010), an endless stream of frames.

    temperature in K, timestep in fs, friction in 1/fs; lighter atoms have the mass `lightest`, u,
    which changes when the molecule is where, but not how often. From a minimum, velocities of
    twice the temperature bring the molecule to it within a few vibrations, as half of their
    energy becomes potential.
    """
    masses = np.maximum(atomic_masses[surface.numbers], lightest)[:, None]
    dt = timestep * fs
    thermal = np.sqrt(kB * temperature / masses)
    keep = np.exp(-friction * timestep)
    velocity = np.sqrt(2) * thermal * rng.normal(size=positions.shape)
    velocity -= (masses * velocity).sum(0) / masses.sum()
    frame = surface(positions)
    while True:
        velocity = velocity + 0.5 * dt * frame.forces / masses
        positions = positions + 0.5 * dt * velocity
        noise = rng.normal(size=positions.shape)
        velocity = keep * velocity + np.sqrt(1 - keep**2) * thermal * noise
        positions = positions + 0.5 * dt * velocity
        frame = surface(positions)
        velocity = velocity + 0.5 * dt * frame.forces / masses
        yield frame


def isolated_atom(number: int) -> Frame:
    """The atom in its ground-state spin, for reference."""
    surface = Surface(np.array([number]), GROUND_STATE_UNPAIRED[number])
    return surface(np.zeros((1, 3)))
