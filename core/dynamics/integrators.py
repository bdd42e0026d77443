"""Molecular dynamics with ASE's integrators, a callable for the forces, and exact resumption.

Langevin, Nosé-Hoover chains, constant pressure (isotropic, Martyna, Tobias and Klein) and constant
energy. Knows neither models nor labels.

Degrees of freedom. Free atoms keep their centre of mass: an integrator that conserves momentum
has 3N - 3 of them, and an isolated molecule, which keeps its angular momentum too, 3N - 6. ASE's
Nosé-Hoover counts 3N and would heat nine atoms to 9/7 of the temperature; it is told the number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import ase
import ase.units
import numpy as np
from ase.constraints import FixAtoms, FixCom
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import (
    IsotropicMTKBarostat,
    IsotropicMTKNPT,
    NoseHooverChainNVT,
    NoseHooverChainThermostat,
)
from ase.md.verlet import VelocityVerlet

from core.errors import InputError, SettingsError
from core.settings import DynamicsSettings
from core.structures import Structure, to_voigt

Evaluator = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""positions (N, 3) in Å -> (energy eV, forces (N, 3) eV/Å)."""


class CellEvaluator(Protocol):
    """What constant pressure needs: the stress (3, 3), eV/Å³, follows the cell (3, 3), Å."""

    stress: np.ndarray | None

    def __call__(self, positions: np.ndarray, cell: np.ndarray) -> tuple[float, np.ndarray]:
        """Return energy and forces, and set `stress`."""
        ...


DAMPING_FS = 25.0
DAMPING_STEPS = 20
"""Relaxation time of the Nosé-Hoover chain, and the fewest steps it may be. Small molecules are
nearly harmonic and exchange heat with a slower chain too rarely (seen for five atoms at 100 fs)."""
PRESSURE_DAMPING_FS = 500.0
"""Relaxation time of the volume; shorter ones shake a small crystal."""


class Dynamics:
    """One simulation: `run`, look, `snapshot`; `restore` goes on bit for bit.

    Args:
        evaluator: energy and forces; called once per step. In the npt ensemble a `CellEvaluator`.
        rng: draws the velocities and the thermostat's noise; owned by the simulation from here on.
    """

    def __init__(
        self,
        structure: Structure,
        evaluator: Evaluator | CellEvaluator,
        settings: DynamicsSettings,
        rng: np.random.Generator,
    ) -> None:
        self._structure = structure
        self._rng = rng
        self._ensemble = settings.ensemble
        self._target = settings.temperature_K
        self._dt = settings.timestep_fs
        self._friction = settings.friction_per_fs
        self._damping = max(DAMPING_FS, DAMPING_STEPS * self._dt) * ase.units.fs
        self._pressure = settings.pressure
        self._forces = _Forces(evaluator, structure.fixed, with_cell=self.changes_cell)
        self._atoms = ase.Atoms(
            structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc
        )
        self._atoms.calc = self._forces
        self.step = 0
        self.degrees_of_freedom = degrees_of_freedom(structure, self._ensemble)
        if self.degrees_of_freedom == 0:
            raise InputError("All atoms are fixed: there is nothing to simulate.")
        self._constrain()
        self._momenta = self._draw()
        self._integrator = self._build()

    def run(self, n: int) -> int:
        """Make `n` steps; stop after one that gives non-finite numbers. Return the steps made."""
        for made in range(n):
            if not self._forces.finite(self._atoms):
                return made
            self._integrator.step()
            self.step += 1
        return n

    def set_temperature(self, kelvin: float) -> None:
        """Change the thermostat's temperature.

        Raises:
            SettingsError: in the nve ensemble, which has no thermostat.
        """
        if self._ensemble == "nve":
            raise SettingsError(
                "dynamics.temperature_K cannot be changed in the nve ensemble, which has no "
                "thermostat; start again, or use langevin or nose-hoover."
            )
        self._target = float(kelvin)
        self._apply_temperature()

    def refresh(self) -> None:
        """Forget the forces: the evaluator's weights have changed."""
        self._forces.forget()

    def jump(
        self,
        positions: np.ndarray,
        velocities: np.ndarray | None = None,
        cell: np.ndarray | None = None,
    ) -> None:
        """Go on from other positions (N, 3), Å, with velocities in Å/fs, or newly drawn ones.

        Step count, thermostat and random numbers are not turned back: see `restore` for that.
        """
        self._atoms.arrays["positions"][:] = positions
        if cell is not None:
            self._atoms.set_cell(cell)
        if velocities is None:
            self._momenta = self._draw()
        else:
            self._momenta = velocities / ase.units.fs * self._atoms.get_masses()[:, None]
        self._integrator = self._build()

    @property
    def structure(self) -> Structure:
        """The structure at this moment."""
        return self._structure.moved(self._atoms.positions, self.cell)

    @property
    def changes_cell(self) -> bool:
        """Whether the cell is not always that of the start."""
        return self._ensemble == "npt"

    @property
    def cell(self) -> np.ndarray | None:
        """A copy of the cell (3, 3), Å, where it changes; else None."""
        return self._atoms.cell.array.copy() if self.changes_cell else None

    @property
    def positions(self) -> np.ndarray:
        """A copy of the positions, (N, 3), Å; not wrapped into the cell."""
        return self._atoms.get_positions()

    @property
    def velocities(self) -> np.ndarray:
        """Velocities, (N, 3), Å/fs."""
        return self._atoms.get_velocities() * ase.units.fs

    @property
    def energy(self) -> float:
        """Potential energy as the evaluator gives it, eV."""
        return self._forces.get_potential_energy(self._atoms)

    @property
    def forces(self) -> np.ndarray:
        """A copy of the evaluator's forces, (N, 3), eV/Å."""
        return self._forces.true_forces(self._atoms).copy()

    @property
    def kinetic_energy(self) -> float:
        """Kinetic energy, eV."""
        return float(self._atoms.get_kinetic_energy())

    @property
    def temperature_K(self) -> float:
        """Kinetic temperature over the degrees of freedom that can move."""
        return 2 * self.kinetic_energy / (self.degrees_of_freedom * ase.units.kB)

    @property
    def target_K(self) -> float:
        """Temperature that was asked for."""
        return self._target

    @property
    def time_fs(self) -> float:
        """Simulated time."""
        return self.step * self._dt

    def snapshot(self) -> dict[str, Any]:
        """Return all that decides the future, as arrays (float64) and JSON values.

        Arrays: positions, Å; momenta in ASE's unit (velocities would lose the last bit); forces;
        thermostat (2, chain length), empty without; at constant pressure also cell, stress and
        barostat. JSON values: step, temperature_K, energy, rng.
        """
        return {
            "positions": self._atoms.get_positions(),
            "momenta": self._atoms.get_momenta(),
            "forces": self.forces,
            "energy": self.energy,
            "thermostat": self._thermostat_state(),
            **self._cell_state(),
            "rng": self._rng.bit_generator.state,
            "step": self.step,
            "temperature_K": self._target,
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on exactly from a `snapshot` of a simulation with the same settings.

        The stored forces are used for the next step; call `refresh` if the weights differ.
        """
        if np.shape(snapshot["positions"]) != (len(self._structure), 3):
            raise InputError(
                f"The snapshot has {len(snapshot['positions'])} atoms, the simulation "
                f"{len(self._structure)}; it belongs to another structure."
            )
        self.step = int(snapshot["step"])
        self._target = float(snapshot["temperature_K"])
        self._rng.bit_generator.state = snapshot["rng"]
        self._atoms.arrays["positions"][:] = snapshot["positions"]
        self._momenta = np.array(snapshot["momenta"], dtype=float)
        if self.changes_cell:
            self._atoms.set_cell(snapshot["cell"])
        self._integrator = self._build()
        if self._ensemble in ("nose-hoover", "npt"):
            thermostat = self._integrator._thermostat
            thermostat._eta[:], thermostat._p_eta[:] = snapshot["thermostat"]
        if self.changes_cell:
            self._restore_barostat(snapshot["barostat"])
        self._forces.remember(
            self._atoms, float(snapshot["energy"]), np.array(snapshot["forces"], dtype=float),
            np.array(snapshot["stress"], dtype=float) if self.changes_cell else None,
        )  # fmt: skip

    def _cell_state(self) -> dict[str, Any]:
        if not self.changes_cell:
            return {}
        baro, run = self._integrator._barostat, self._integrator
        chain = np.array([baro._xi, baro._p_xi])
        volume = np.array([[run._p_eps], [run._eps]])
        stress = self._forces.stress(self._atoms).copy()
        start = np.concatenate([run._cell0.ravel(), [run._volume0]])
        packed = np.concatenate([chain.ravel(), volume.ravel(), start])
        return {"cell": self._atoms.cell.array.copy(), "stress": stress, "barostat": packed}

    def _restore_barostat(self, packed: np.ndarray) -> None:
        baro, run = self._integrator._barostat, self._integrator
        n = len(baro._xi)
        baro._xi[:], baro._p_xi[:] = packed[:n], packed[n : 2 * n]
        run._p_eps, run._eps = float(packed[2 * n]), float(packed[2 * n + 1])
        run._cell0 = packed[2 * n + 2 : 2 * n + 11].reshape(3, 3).copy()
        run._volume0 = float(packed[2 * n + 11])

    def _constrain(self) -> None:
        if self._structure.fixed:
            self._atoms.set_constraint(FixAtoms(indices=list(self._structure.fixed)))
        elif self._ensemble == "langevin" and len(self._structure) > 1:
            self._atoms.set_constraint(FixCom())

    def _draw(self) -> np.ndarray:
        here = self._structure.moved(self._atoms.positions, self.cell)
        masses = self._atoms.get_masses()[:, None]
        return draw_velocities(here, self._target, self._rng) / ase.units.fs * masses

    def _build(self) -> Any:
        """Return an integrator at rest in its thermostat, starting from `_momenta`."""
        self._atoms.set_momenta(self._momenta, apply_constraint=False)
        step = self._dt * ase.units.fs
        if self._ensemble == "nve":
            return VelocityVerlet(self._atoms, step)
        if self._ensemble == "langevin":
            return Langevin(
                self._atoms, step, temperature_K=self._target, rng=self._rng, fixcm=False,
                friction=self._friction / ase.units.fs,
            )  # fmt: skip
        integrator: Any
        if self._ensemble == "npt":
            integrator = IsotropicMTKNPT(
                self._atoms, step, temperature_K=self._target, pressure_au=self._pressure,
                tdamp=self._damping, pdamp=PRESSURE_DAMPING_FS * ase.units.fs,
            )  # fmt: skip
        else:
            integrator = NoseHooverChainNVT(
                self._atoms, step, temperature_K=self._target, tdamp=self._damping
            )
        integrator._thermostat = self._chain()
        return integrator

    def _chain(self) -> NoseHooverChainThermostat:
        return NoseHooverChainThermostat(
            num_atoms_global=self.degrees_of_freedom / 3,  # type: ignore[arg-type] # used as 3 × it
            masses=self._atoms.get_masses()[:, None],
            temperature_K=self._target,
            tdamp=self._damping,
        )

    def _apply_temperature(self) -> None:
        if self._ensemble == "langevin":
            self._integrator.set_temperature(temperature_K=self._target)
            return
        old, new = self._integrator._thermostat, self._chain()
        new._eta[:] = old._eta
        new._p_eta[:] = old._p_eta * new._Q / old._Q  # the chain's velocities go on
        self._integrator._thermostat = new
        if self.changes_cell:
            run, before = self._integrator, self._integrator._barostat
            after = IsotropicMTKBarostat(len(self._atoms), self._target, before._pdamp)
            after._xi[:], after._p_xi[:] = before._xi, before._p_xi * after._R / before._R
            run._p_eps *= after.W / before.W
            run._barostat, run._temperature_K, run._kT = after, self._target, after._kT

    def _thermostat_state(self) -> np.ndarray:
        if self._ensemble not in ("nose-hoover", "npt"):
            return np.zeros((2, 0))
        thermostat = self._integrator._thermostat
        return np.array([thermostat._eta, thermostat._p_eta])


class _Forces:
    """The least of an ASE calculator: evaluates when the positions have changed.

    ASE sees no force on fixed atoms: its Nosé-Hoover chain would let them drift.
    """

    def __init__(
        self, evaluator: Evaluator | CellEvaluator, fixed: tuple[int, ...], *, with_cell: bool
    ) -> None:
        self._evaluator: Any = evaluator
        self._fixed, self._with_cell = list(fixed), with_cell
        self.forget()

    def forget(self) -> None:
        self._at: np.ndarray | None = None

    def remember(
        self, atoms: ase.Atoms, energy: float, forces: np.ndarray, stress: np.ndarray | None
    ) -> None:
        self._at, self._energy, self._values = self._place(atoms), energy, forces
        self._stress = stress

    def _place(self, atoms: ase.Atoms) -> np.ndarray:
        """Return all that decides the forces."""
        if not self._with_cell:
            return atoms.positions.copy()
        return np.concatenate([atoms.positions, atoms.cell.array])

    def finite(self, atoms: ase.Atoms) -> bool:
        self._update(atoms)
        return bool(np.isfinite(self._energy) and np.isfinite(self._values).all())

    def get_potential_energy(self, atoms: ase.Atoms, force_consistent: bool = False) -> float:
        self._update(atoms)
        return self._energy

    def get_forces(self, atoms: ase.Atoms) -> np.ndarray:
        self._update(atoms)
        if not self._fixed:
            return self._values
        forces = self._values.copy()
        forces[self._fixed] = 0.0
        return forces

    def get_stress(self, atoms: ase.Atoms) -> np.ndarray:
        return to_voigt(self.stress(atoms))

    def stress(self, atoms: ase.Atoms) -> np.ndarray:
        self._update(atoms)
        assert self._stress is not None
        return self._stress

    def true_forces(self, atoms: ase.Atoms) -> np.ndarray:
        self._update(atoms)
        return self._values

    def _update(self, atoms: ase.Atoms) -> None:
        if self._at is not None and np.array_equal(self._at, self._place(atoms)):
            return
        cell = (atoms.cell.array.copy(),) if self._with_cell else ()
        energy, forces = self._evaluator(atoms.positions, *cell)
        stress = self._evaluator.stress if self._with_cell else None
        self.remember(atoms, float(energy), np.asarray(forces, dtype=float), stress)


def degrees_of_freedom(structure: Structure, ensemble: str) -> int:
    """Return the number of independent velocities.

    A Langevin thermostat turns a molecule but holds its centre of mass; the other ensembles keep
    the angular momentum of an isolated molecule at zero.
    """
    n = len(structure)
    if structure.fixed:
        return 3 * (n - len(set(structure.fixed)))
    if n == 1:
        return 3
    if ensemble == "langevin" or any(structure.pbc):
        return 3 * n - 3
    return 1 if n == 2 else 3 * n - 6


def draw_velocities(
    structure: Structure, temperature_K: float, rng: np.random.Generator
) -> np.ndarray:
    """Return Maxwell-Boltzmann velocities (N, 3), Å/fs, conditional on what cannot move.

    Fixed atoms stand still; otherwise the momentum is zero, and on a molecule also the angular
    momentum.
    """
    masses = ase.Atoms(structure.numbers).get_masses()[:, None]
    v = rng.standard_normal((len(structure), 3)) * np.sqrt(ase.units.kB * temperature_K / masses)
    if structure.fixed:
        v[list(structure.fixed)] = 0.0
    elif len(structure) > 1:
        v -= (masses * v).sum(0) / masses.sum()
        if not any(structure.pbc):
            v = _without_rotation(structure.positions, v, masses)
    return v * ase.units.fs


def _without_rotation(positions: np.ndarray, v: np.ndarray, masses: np.ndarray) -> np.ndarray:
    x = positions - (masses * positions).sum(0) / masses.sum()
    inertia = (masses * x**2).sum() * np.eye(3) - (masses * x).T @ x
    omega = np.linalg.pinv(inertia, rcond=1e-8) @ (masses * np.cross(x, v)).sum(0)
    return v - np.cross(omega, x)
