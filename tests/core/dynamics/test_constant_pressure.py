"""A crystal whose volume answers to the pressure: averages, conservation, exact resumption."""

import json
import shutil

import ase.units
import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from core import settings, worker
from core.campaign.audit import audit
from core.campaign.export import export
from core.campaign.reader import CampaignReader
from core.dynamics.integrators import Dynamics
from core.errors import InputError
from core.potentials.lennard_jones import LennardJones
from core.settings import DynamicsSettings, structure_of
from core.structures import from_atoms
from core.units import GPA

ARGON = from_atoms(bulk("Ar", "fcc", a=5.35, cubic=True).repeat(2))


def simulation(seed=1, **given):
    potential = LennardJones(cutoff=6.0)
    asked = DynamicsSettings(ensemble="npt", temperature_K=40, timestep_fs=5, **given)
    return Dynamics(ARGON, potential.evaluator(ARGON), asked, np.random.default_rng(seed))


def test_the_evaluator_follows_the_cell(rng):
    potential = LennardJones(cutoff=6.0)
    evaluate, cell = potential.evaluator(ARGON, skin=0.4), ARGON.cell
    positions = ARGON.positions
    for _ in range(12):
        strain = np.eye(3) + 0.004 * rng.standard_normal((3, 3))
        cell = cell @ strain
        positions = positions @ strain + 0.02 * rng.standard_normal(positions.shape)
        energy, forces = evaluate(positions, cell)
        fresh = potential.predict([ARGON.moved(positions, cell)], stress=True)
        assert energy == pytest.approx(fresh.energies[0], abs=1e-9)
        np.testing.assert_allclose(forces, fresh.forces[0], atol=1e-9)
        np.testing.assert_allclose(evaluate.stress, fresh.stress[0], atol=1e-10)


@pytest.mark.parametrize("pressure", [0.2, 0.6])
def test_the_mean_pressure_is_the_one_asked_for(pressure):
    run = simulation(pressure=pressure * GPA)
    run.run(800)
    found, volumes, temperatures = [], [], []
    for _ in range(400):
        run.run(5)
        stress = run._atoms.get_stress(voigt=False, include_ideal_gas=True)
        found.append(-np.trace(stress) / 3)
        volumes.append(run.structure.volume)
        temperatures.append(run.temperature_K)
    assert np.mean(found) / GPA == pytest.approx(pressure, abs=0.03)
    assert np.mean(temperatures) == pytest.approx(40, rel=0.06)
    assert np.std(volumes) > 1.0


def test_pressure_makes_it_smaller():
    volumes = []
    for pressure in (0.2, 1.2):
        run = simulation(pressure=pressure * GPA)
        run.run(600)
        volumes.append(run.structure.volume)
    assert volumes[1] < 0.9 * volumes[0]


def test_the_extended_energy_is_conserved():
    run = simulation(pressure=0.2 * GPA)
    run.run(20)
    start = run._integrator.get_conserved_energy()
    run.run(400)
    drift = run._integrator.get_conserved_energy() - start
    assert abs(drift) < 0.02 * len(ARGON) * ase.units.kB * 40


def test_a_restored_simulation_goes_on_as_if_nothing_had_happened():
    run = simulation(pressure=0.2 * GPA)
    run.run(30)
    kept = run.snapshot()
    arrays = {k: np.array(v) for k, v in kept.items() if isinstance(v, np.ndarray)}
    values = json.loads(json.dumps({k: v for k, v in kept.items() if k not in arrays}))
    run.run(25)
    again = simulation(seed=9, pressure=0.2 * GPA)
    again.restore(arrays | values)
    again.run(25)
    for name in ("positions", "cell", "velocities"):  # sums of forces are in another order
        np.testing.assert_allclose(getattr(again, name), getattr(run, name), rtol=0, atol=1e-12)


def test_a_jump_takes_the_cell_along():
    run = simulation()
    run.run(50)
    there = run.structure
    velocities = run.velocities
    run.run(50)
    run.jump(there.positions, velocities, there.cell)
    np.testing.assert_array_equal(run.cell, there.cell)
    run.run(10)
    assert np.isfinite(run.energy) and run.structure.volume == pytest.approx(there.volume, rel=0.05)


def test_the_temperature_can_be_changed():
    run = simulation()
    run.run(200)
    run.set_temperature(10)
    run.run(800)
    seen = []
    for _ in range(200):
        run.run(3)
        seen.append(run.temperature_K)
    assert np.mean(seen) == pytest.approx(10, rel=0.15)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory, crystal):
    """A campaign at constant pressure; do not change it."""
    folder = tmp_path_factory.mktemp("npt")
    given = crystal(folder, dynamics__ensemble="npt", dynamics__pressure="0.3 GPa")
    worker.prepare(folder / "argon", given)
    assert worker.run_inline(folder / "argon").phase == "finished"
    return folder / "argon"


def test_frames_keep_their_cell_and_labels_are_of_it(campaign, tmp_path):
    with CampaignReader(campaign) as reader:
        ids = reader.frames_since(1)["id"]
        frames = [reader.frame(int(i)) for i in ids]
        scales, start = reader.scales_since(0), reader.structure
    volumes = [frame.of(start).volume for frame in frames]
    assert np.ptp(volumes) > 5
    assert scales[0] == 1.0
    np.testing.assert_allclose(scales[1:], np.cbrt(np.array(volumes) / start.volume))
    report = audit(shutil.copytree(campaign, tmp_path / "copy"), 10)
    assert report.frames > 5 and report.within_tolerance == 1.0 and report.rmse_eV < 0.005
    export(campaign, tmp_path / "all.xyz")
    lines = (tmp_path / "all.xyz").read_text().splitlines()
    lattices = {line.split('"')[1] for line in lines if "Lattice" in line}
    assert len(lattices) == len(frames)


@pytest.mark.parametrize(
    ("structure", "message"),
    [({"name": "H2O"}, "is for crystals"), ({"file": "slab.xyz"}, "are fixed")],
)
def test_what_has_no_pressure_is_refused(structure, message, tmp_path):
    if "file" in structure:
        from ase.constraints import FixAtoms

        atoms = ARGON.to_atoms()
        atoms.set_constraint(FixAtoms([0, 1]))
        structure = {"file": str(tmp_path / "slab.xyz")}
        write(tmp_path / "slab.xyz", atoms, format="extxyz")
    given = settings.from_dict({"structure": structure, "dynamics": {"ensemble": "npt"}})
    with pytest.raises(InputError, match=message):
        structure_of(given)
