"""Known physics: energy and momentum conserved, canonical averages, and exact resumption."""

import json

import ase.units
import numpy as np
import pytest

from core.dynamics.integrators import Dynamics, degrees_of_freedom, draw_velocities
from core.errors import InputError, SettingsError
from core.settings import DynamicsSettings
from core.structures import Structure

ENSEMBLES = ("langevin", "nose-hoover", "nve")
START = np.array([[0.0, 0, 0], [1.5, 0, 0], [0.4, 1.3, 0], [0.5, 0.3, 1.2], [1.6, 1.4, 1.0]])
MOLECULE = Structure(np.array([6, 8, 7, 1, 1]), START)
CRYSTAL = Structure(MOLECULE.numbers, START, 8 * np.eye(3), (True, True, True))


def springs(structure: Structure, stiffness: float = 5.0):
    """E = k/2 Σ_pairs (r - r0)²: conserves momentum and angular momentum."""
    rest = _distances(structure.positions)[1]

    def evaluate(positions):
        vectors, r = _distances(positions)
        stretch = r - rest
        forces = stiffness * ((stretch / r)[..., None] * vectors).sum(1)
        return stiffness * float((stretch**2).sum()) / 4, forces

    return evaluate


def lattice(structure: Structure, stiffness: float = 1.0):
    """E = k/2 Σ_pairs d² + 5k d⁴, d = r_ij - its value at home: conserves momentum only."""
    home = structure.positions.copy()

    def evaluate(positions):
        u = positions - home
        d = u[None] - u[:, None]
        square = (d**2).sum(-1, keepdims=True)
        forces = stiffness * ((1 + 10 * square) * d).sum(1)
        return stiffness * float((square / 2 + 5 * square**2 / 2).sum()) / 2, forces

    return evaluate


def _distances(positions):
    vectors = positions[None] - positions[:, None]
    return vectors, np.linalg.norm(vectors, axis=-1) + np.eye(len(positions))


def simulation(ensemble="langevin", structure=MOLECULE, evaluate=None, seed=1, **settings):
    return Dynamics(
        structure,
        evaluate or springs(structure),
        DynamicsSettings(ensemble=ensemble, **settings),
        np.random.default_rng(seed),
    )


def test_constant_energy_conserves_energy_momentum_and_angular_momentum():
    md = simulation("nve")
    energies = []
    for _ in range(200):
        md.run(10)
        energies.append(md.energy + md.kinetic_energy)
    assert np.ptp(energies) < 5e-3 * np.mean(energies)
    assert abs(np.polyfit(np.arange(200), energies, 1)[0] * 200) < 2e-4 * np.mean(energies)
    m = md._atoms.get_masses()[:, None]
    assert np.abs((m * md.velocities).sum(0)).max() < 1e-12
    assert np.abs((m * np.cross(md.positions, md.velocities)).sum(0)).max() < 1e-9


def test_the_error_of_constant_energy_is_of_second_order_in_the_time_step():
    spread = []
    for dt in (0.5, 0.25):
        md = simulation("nve", timestep_fs=dt)
        energies = [md.run(1) and md.energy + md.kinetic_energy for _ in range(int(200 / dt))]
        spread.append(np.ptp(energies))
    assert 3 < spread[0] / spread[1] < 5


@pytest.mark.parametrize(
    ("ensemble", "structure", "tolerance"),
    [
        ("langevin", CRYSTAL, 0.1),
        ("langevin", MOLECULE, 0.1),
        ("nose-hoover", MOLECULE, 0.15),
        ("nose-hoover", CRYSTAL, 0.5),  # too regular for a chain to mix in a short run
    ],
)
def test_thermostats_sample_the_canonical_ensemble(ensemble, structure, tolerance):
    field = lattice if structure is CRYSTAL else springs
    kinetic, potential = [], []
    for seed in (1, 2, 3):
        md = simulation(
            ensemble, structure, field(structure), seed, timestep_fs=1.0, friction_per_fs=0.05
        )
        md.run(500)
        for _ in range(2000):
            md.run(4)
            kinetic.append(md.temperature_K)
            virial = -float((md.forces * (md.positions - START)).sum()) / 2
            potential.append(virial if structure is CRYSTAL else md.energy)
    vibrations = 12 if structure is CRYSTAL else 9
    assert np.mean(kinetic) == pytest.approx(300, rel=0.03)
    assert np.var(kinetic) == pytest.approx(2 * 300**2 / md.degrees_of_freedom, rel=tolerance)
    assert np.mean(potential) == pytest.approx(vibrations * ase.units.kB * 300 / 2, rel=0.06)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_a_restored_simulation_goes_on_bit_for_bit(ensemble):
    md = simulation(ensemble)
    md.run(37)
    snapshot = md.snapshot()
    md.run(50)
    other = simulation(ensemble, seed=99)
    other.run(3)
    other.restore(snapshot)
    other.run(50)
    assert other.step == md.step == 87
    for name in ("positions", "velocities", "forces"):
        np.testing.assert_array_equal(getattr(other, name), getattr(md, name))
    assert other.energy == md.energy


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_a_snapshot_survives_being_written(ensemble, tmp_path):
    md = simulation(ensemble, temperature_K=400)
    md.run(5)
    snapshot = md.snapshot()
    arrays = {k: v for k, v in snapshot.items() if isinstance(v, np.ndarray)}
    np.savez(tmp_path / "s.npz", **arrays)
    values = json.loads(json.dumps({k: v for k, v in snapshot.items() if k not in arrays}))
    other = simulation(ensemble, seed=2)
    with np.load(tmp_path / "s.npz") as loaded:
        other.restore({**values, **loaded})
    md.run(20), other.run(20)
    np.testing.assert_array_equal(other.positions, md.positions)
    assert other.target_K == 400


def test_a_snapshot_is_not_changed_by_going_on():
    md = simulation("nose-hoover")
    md.run(3)
    snapshot = md.snapshot()
    kept = {k: np.copy(v) for k, v in snapshot.items() if isinstance(v, np.ndarray)}
    md.run(10)
    md.restore(snapshot)
    md.run(10)
    for name, value in kept.items():
        np.testing.assert_array_equal(snapshot[name], value)


@pytest.mark.parametrize("ensemble", ["langevin", "nose-hoover"])
def test_the_temperature_can_be_changed_while_running(ensemble):
    md = simulation(ensemble, timestep_fs=1.0, friction_per_fs=0.05)
    md.run(200)
    md.set_temperature(900)
    md.run(1000)
    assert np.mean([md.run(4) and md.temperature_K for _ in range(2000)]) == pytest.approx(
        900, rel=0.08
    )
    assert md.snapshot()["temperature_K"] == 900


def test_constant_energy_has_no_thermostat_to_change():
    with pytest.raises(SettingsError, match="no thermostat"):
        simulation("nve").set_temperature(500)


def test_each_step_asks_for_the_forces_once_and_again_after_new_weights():
    calls = []
    evaluate = springs(MOLECULE)
    for ensemble in ENSEMBLES:
        md = simulation(ensemble, evaluate=lambda x: calls.append(1) or evaluate(x))
        md.run(10)
        assert md.energy is not None and len(calls) == 11
        md.refresh()
        md.run(1)
        assert len(calls) == 13
        calls.clear()


def test_new_weights_change_energy_and_forces_at_the_same_positions():
    scale = [1.0]
    evaluate = lattice(MOLECULE)
    md = simulation(evaluate=lambda x: tuple(scale[0] * v for v in evaluate(x)))
    md.run(5)
    energy, forces = md.energy, md.forces
    scale[0] = 2.0
    md.refresh()
    assert md.energy == 2 * energy
    np.testing.assert_array_equal(md.forces, 2 * forces)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_a_jump_goes_on_from_there(ensemble):
    md = simulation(ensemble)
    md.run(10)
    x, v = md.positions, md.velocities
    md.run(10)
    md.jump(x, v)
    np.testing.assert_array_equal(md.positions, x)
    np.testing.assert_allclose(md.velocities, v, rtol=1e-12)
    assert md.step == 20
    md.jump(x)
    assert np.abs(md.velocities - v).max() > 1e-4
    assert md.run(5) == 5


def test_running_stops_when_numbers_are_no_longer_finite():
    evaluate = springs(MOLECULE)
    count = iter(range(100))
    md = simulation("nve", evaluate=lambda x: (np.nan if next(count) >= 7 else 1.0, evaluate(x)[1]))
    assert md.run(50) == 7
    assert md.step == 7 and np.isfinite(md.positions).all()


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_the_centre_of_mass_rests(ensemble):
    free = simulation(ensemble)
    centre = free._atoms.get_center_of_mass()
    free.run(200)
    np.testing.assert_allclose(free._atoms.get_center_of_mass(), centre, atol=1e-10)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_fixed_atoms_stay_and_the_others_have_the_temperature(ensemble):
    md = simulation(ensemble, Structure(MOLECULE.numbers, START, fixed=(0, 3)), timestep_fs=1.0)
    kinetic = [md.run(4) and md.temperature_K for _ in range(2000)]
    np.testing.assert_array_equal(md.positions[[0, 3]], START[[0, 3]])
    np.testing.assert_array_equal(md.velocities[[0, 3]], 0.0)
    assert np.abs(md.forces[[0, 3]]).min() > 0
    if ensemble != "nve":
        assert np.mean(kinetic) == pytest.approx(300, rel=0.08)


@pytest.mark.parametrize(
    ("structure", "langevin", "others"),
    [
        (MOLECULE, 12, 9),
        (CRYSTAL, 12, 12),
        (Structure(MOLECULE.numbers, START, fixed=(1,)), 12, 12),
        (Structure(np.array([1, 1]), START[:2]), 3, 1),
        (Structure(np.array([18]), START[:1]), 3, 3),
    ],
)
def test_degrees_of_freedom(structure, langevin, others):
    counts = [degrees_of_freedom(structure, e) for e in ENSEMBLES]
    assert counts == [langevin, others, others]


def test_velocities_have_the_temperature_asked_for(rng):
    m = MOLECULE.to_atoms().get_masses()[:, None] * ase.units._amu
    drawn = [draw_velocities(MOLECULE, 300, rng) * 1e5 for _ in range(4000)]  # m/s
    kinetic = [0.5 * float((m * v**2).sum()) for v in drawn]
    assert np.mean(kinetic) == pytest.approx(9 * ase.units._k * 300 / 2, rel=0.02)
    assert np.abs([(m * v).sum(0) for v in drawn]).max() < 1e-30
    x = START - (m * START).sum(0) / m.sum()
    assert np.abs([(m * np.cross(x, v)).sum(0) for v in drawn]).max() < 1e-28


def test_linear_molecules_and_single_atoms_can_move(rng):
    line = Structure(np.array([8, 6, 8]), np.array([[-1.2, 0, 0], [0, 0, 0], [1.2, 0, 0]]))
    for structure in (line, Structure(np.array([18]), np.zeros((1, 3)))):
        v = draw_velocities(structure, 300, rng)
        assert np.isfinite(v).all() and np.abs(v).max() > 1e-4


def test_impossible_simulations_are_refused():
    with pytest.raises(InputError, match="All atoms are fixed"):
        simulation(structure=Structure(MOLECULE.numbers, START, fixed=(0, 1, 2, 3, 4)))
    other = simulation(structure=Structure(np.array([1, 1]), START[:2]))
    with pytest.raises(InputError, match="another structure"):
        other.restore(simulation().snapshot())
