"""Properties every registered potential must have: symmetries, derivatives, exact reuse."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from core.errors import ModelError
from core.potentials.lennard_jones import LennardJones
from core.structures import VOIGT, Structure, to_voigt


def tiny_mace(**changes):
    from core.potentials.mace import MacePotential, default_config

    torch.manual_seed(0)
    config = default_config((1, 6, 7, 8), np.array([-1.0, -2.0, -3.0, -4.0]), channels=4)
    return MacePotential(config | changes, dtype=torch.float64)


POTENTIALS = {
    "lennard-jones": lambda: LennardJones((1, 6, 7, 8), sigma=1.2, epsilon=0.2, cutoff=4.0),
    "mace": tiny_mace,
    "mace L=1": lambda: tiny_mace(
        hidden_irreps="4x0e + 4x1o", interaction_cls_first="RealAgnosticInteractionBlock",
        max_ell=2,
    ),
    "mace with densities": lambda: tiny_mace(
        interaction_cls="RealAgnosticDensityResidualInteractionBlock",
        interaction_cls_first="RealAgnosticDensityInteractionBlock",
        max_ell=2, pair_repulsion=True,
    ),
}  # fmt: skip


@pytest.fixture(params=POTENTIALS)
def potential(request):
    return POTENTIALS[request.param]()


@pytest.fixture
def molecule(rng):
    grid = np.array([[0, 0, 0], [1.4, 0, 0], [0, 1.5, 0], [0, 0, 1.3], [1.5, 1.4, 0.2]])
    return Structure(np.array([6, 8, 1, 7, 1]), grid + 0.1 * rng.standard_normal(grid.shape))


def test_energy_is_invariant_and_forces_corotate(potential, molecule):
    rotation = Rotation.from_euler("xyz", [0.3, 1.1, -0.7]).as_matrix()
    turned = molecule.moved(molecule.positions @ rotation.T + [1.0, -2.0, 3.0])
    out = potential.predict([molecule, turned])
    assert out.energies[0] == pytest.approx(out.energies[1], abs=1e-9)
    np.testing.assert_allclose(out.forces[0] @ rotation.T, out.forces[1], atol=1e-8)


def test_forces_are_the_gradient_of_the_energy_and_not_zero(potential, molecule):
    forces = potential.predict([molecule]).forces[0]
    assert np.abs(forces).max() > 1e-3
    h, numeric = 1e-5, np.zeros(3)
    for axis in range(3):
        step = np.zeros_like(molecule.positions)
        step[1, axis] = h
        pair = [molecule.moved(molecule.positions + s * step) for s in (1, -1)]
        plus, minus = potential.predict(pair, forces=False).energies
        numeric[axis] = -(plus - minus) / (2 * h)
    np.testing.assert_allclose(forces[1], numeric, atol=1e-6)


def test_a_batch_predicts_what_single_structures_do(potential, molecule):
    other = molecule.moved(molecule.positions * 1.05)
    both = potential.predict([molecule, other], features=True)
    for k, s in enumerate((molecule, other)):
        single = potential.predict([s], features=True)
        assert single.energies[0] == pytest.approx(both.energies[k], abs=1e-10)
        np.testing.assert_allclose(single.forces[0], both.forces[k], atol=1e-9)
        np.testing.assert_allclose(single.features[0], both.features[k], atol=1e-9)


def test_rows_equal_finite_differences_in_the_weights(potential, molecule):
    rows, theta, h = potential.rows(molecule), potential.get_theta(), 1e-5
    index = int(rows[0].abs().argmax())
    values = []
    for sign in (1, -1):
        shifted = theta.clone()
        shifted[index] += sign * h
        potential.set_theta(shifted)
        out = potential.predict([molecule])
        values.append(np.concatenate([out.energies, out.forces[0].ravel()]))
    numeric = (values[0] - values[1]) / (2 * h)
    np.testing.assert_allclose(rows[:, index], numeric, rtol=1e-5, atol=1e-6)


def test_rows_of_some_blocks_are_their_columns(potential, molecule):
    blocks = potential.blocks()
    some = [name for k, name in enumerate(blocks) if k % 2 == 0]
    columns = torch.cat([torch.arange(blocks[n].start, blocks[n].stop) for n in some])
    rows = potential.rows(molecule, blocks=some)
    torch.testing.assert_close(rows, potential.rows(molecule)[:, columns])


def test_slopes_along_directions_are_the_force_rows_times_them(potential, molecule):
    rows = potential.rows(molecule)
    directions = 0.02 * torch.randn(3, potential.n_parameters, dtype=potential.dtype)
    slopes, _ = potential.members().slopes(molecule, potential.get_theta(), directions)
    np.testing.assert_allclose(slopes.reshape(3, -1), directions @ rows[1:].T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_slab_is_one_in_a_very_high_cell_whichever_axis_is_open(potential, order, rng):
    cell = np.array([[4.5, 0.3, 0.0], [0.0, 4.2, 0.0], [0.0, 0.0, 40.0]])
    numbers = np.array([6, 8, 1, 7, 1])
    positions = np.array(
        [[0, 0, 0], [2.0, 0.2, 0.4], [0.3, 2, 0.3], [1.9, 2.1, 1.4], [0.1, 0, 1.7]]
    )
    positions += 0.1 * rng.standard_normal(positions.shape)
    high = Structure(numbers, positions, cell=cell.copy(), pbc=(True, True, True))
    cell[2] = [1.0, 2.0, 3.0]  # whatever stands along the open direction
    cell, pbc = cell[list(order)], tuple(axis != 2 for axis in order)
    slab = Structure(numbers, positions, cell=cell, pbc=pbc)
    one, other = potential.predict([high]), potential.predict([slab])
    assert other.energies[0] == pytest.approx(one.energies[0], abs=1e-9)
    np.testing.assert_allclose(other.forces[0], one.forces[0], atol=1e-8)
    evaluate = potential.evaluator(Structure(numbers, positions, cell=cell, pbc=pbc, fixed=(0, 1)))
    np.testing.assert_allclose(evaluate(positions)[1], one.forces[0], atol=1e-8)


def test_one_backward_pass_gives_energy_forces_and_the_energy_row(potential, molecule):
    found = potential.derivatives(molecule)
    out = potential.predict([molecule])
    assert found.energy == pytest.approx(out.energies[0])
    np.testing.assert_allclose(found.forces, out.forces[0], atol=1e-12)
    torch.testing.assert_close(found.gradient, potential.rows(molecule)[0])
    assert found.stress is None


def crystal(rng):
    cell = np.array([[3.4, 0.2, 0.0], [0.0, 3.6, 0.1], [0.3, 0.0, 3.5]])
    positions = np.array([[0.0, 0, 0], [1.6, 1.7, 0.2], [0.2, 1.8, 1.7]])
    return Structure(
        np.array([6, 8, 1]), positions + 0.1 * rng.standard_normal((3, 3)), cell, (True,) * 3
    )


def strained(structure, strain):
    deformation = np.eye(3) + strain
    return Structure(
        structure.numbers,
        structure.positions @ deformation,
        structure.cell @ deformation,
        structure.pbc,
    )


def test_stress_is_the_derivative_of_the_energy_by_strain(potential, rng):
    bulk, h = crystal(rng), 1e-5
    stress = potential.predict([bulk], stress=True).stress[0]
    np.testing.assert_allclose(stress, stress.T)
    np.testing.assert_allclose(potential.derivatives(bulk).stress, stress)
    assert np.abs(stress).max() > 1e-4
    for i, j in VOIGT:
        strain = np.zeros((3, 3))
        strain[i, j] += h / 2
        strain[j, i] += h / 2
        ahead, behind = potential.predict(
            [strained(bulk, strain), strained(bulk, -strain)], forces=False
        ).energies
        assert stress[i, j] == pytest.approx((ahead - behind) / (2 * h) / bulk.volume, abs=1e-7)


def test_stress_rows_and_slopes_are_derivatives_in_the_weights(potential, rng):
    bulk, theta, h = crystal(rng), potential.get_theta(), 1e-5
    rows = potential.rows(bulk, stress=True)
    assert rows.shape == (1 + 9 + 6, potential.n_parameters)
    torch.testing.assert_close(rows[:10], potential.rows(bulk))
    direction = 0.02 * torch.randn(2, potential.n_parameters, dtype=potential.dtype)
    found = []
    for sign in (1, -1):
        potential.set_theta(theta + sign * h * direction[0])
        found.append(to_voigt(potential.predict([bulk], stress=True).stress[0]))
    potential.set_theta(theta)
    numeric = (found[0] - found[1]) / (2 * h)
    np.testing.assert_allclose(rows[10:] @ direction[0], numeric, rtol=1e-4, atol=1e-8)
    _, slopes = potential.members().slopes(bulk, theta, direction)
    np.testing.assert_allclose(to_voigt(slopes[0]), numeric, rtol=1e-2, atol=1e-5)


def test_what_is_no_crystal_has_no_stress(potential, molecule, rng):
    found = potential.predict([molecule, crystal(rng)], stress=True).stress
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_members_in_stacks_agree_with_each_weight_vector_put_in_force(
    potential, molecule, size, monkeypatch
):
    members, theta = potential.members(), potential.get_theta()
    monkeypatch.setattr(members, "_measured", lambda *_: size)
    thetas = theta + 0.05 * torch.randn(5, len(theta), dtype=theta.dtype)
    energies, forces, _ = members(molecule, thetas)
    assert members.stack == size
    for k in range(5):
        potential.set_theta(thetas[k])
        alone = potential.predict([molecule])
        energy = alone.energies[0] - potential.isolated_energy(molecule)
        assert energies[k] == pytest.approx(energy, rel=1e-9)
        np.testing.assert_allclose(forces[k], alone.forces[0], rtol=1e-8, atol=1e-10)
        assert np.abs(forces[k]).max() > 1e-3  # a custom derivative under vmap can lose them
    assert np.abs(forces[0] - forces[1]).max() > 1e-4


def test_forces_of_members_are_the_derivative_of_their_mean_energy(potential, molecule):
    members, theta, h = potential.members(), potential.get_theta(), 1e-5
    thetas = theta + 0.05 * torch.randn(4, len(theta), dtype=theta.dtype)
    _, forces, _ = members(molecule, thetas)
    step = np.zeros_like(molecule.positions)
    step[2, 1] = h
    ahead, behind = (
        members(molecule.moved(molecule.positions + s * step), thetas)[0] for s in (1, -1)
    )
    assert forces.mean(0)[2, 1] == pytest.approx(-(ahead - behind).mean() / (2 * h), abs=1e-6)


def test_the_stack_is_measured_again_when_threads_or_edges_change(potential, molecule, monkeypatch):
    members, asked = potential.members(), []
    monkeypatch.setattr(members, "_measured", lambda *_: asked.append(1) or 2)
    thetas = potential.get_theta().repeat(4, 1)
    members(molecule, thetas)
    members(molecule, thetas)
    assert len(asked) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    members(molecule, thetas)
    assert len(asked) == 2
    far = molecule.moved(molecule.positions * 2.5)
    members(far, thetas)
    assert len(asked) == 3


def test_only_relevant_weights_change_what_is_predicted(potential, molecule):
    some = molecule.numbers[:2]
    part = Structure(some, molecule.positions[:2])
    relevant = potential.relevant(some)
    rows = potential.rows(part)
    others = np.setdiff1d(np.arange(potential.n_parameters), relevant)
    assert (rows[:, others] == 0).all()
    assert len(others) > 0 or potential.name == "lennard-jones"  # which does not say
    assert torch.equal(
        potential.relevant(np.array(potential.elements)), torch.arange(potential.n_parameters)
    )


def test_what_is_watched_comes_with_the_forces(potential, molecule):
    columns = potential.relevant(molecule.numbers)
    directions = torch.randn(3, len(columns), dtype=potential.dtype)
    evaluate = potential.evaluator(molecule)
    energy, forces = evaluate(molecule.positions)
    assert evaluate.changes is None
    evaluate.watch(directions)
    again, same = evaluate(molecule.positions)
    assert again == energy
    np.testing.assert_array_equal(forces, same)
    wanted = directions @ potential.rows(molecule)[0, columns]
    np.testing.assert_allclose(evaluate.changes, wanted, rtol=1e-8)
    evaluate.watch(None)
    evaluate(molecule.positions)
    assert evaluate.changes is None


def test_the_md_evaluator_equals_a_fresh_prediction_while_its_list_is_reused(
    potential, molecule, rng
):
    evaluate = potential.evaluator(molecule, skin=0.6)
    for _ in range(8):  # wanders through several rebuilds of the list
        molecule = molecule.moved(molecule.positions + 0.12 * rng.standard_normal((5, 3)))
        energy, forces = evaluate(molecule.positions)
        fresh = potential.predict([molecule])
        assert energy == pytest.approx(fresh.energies[0], abs=1e-9)
        np.testing.assert_allclose(forces, fresh.forces[0], atol=1e-9)


def test_a_periodic_box_counts_images_like_a_supercell(potential):
    cell = np.diag([3.1, 3.3, 3.0])
    one = Structure(
        np.array([6, 8]), np.array([[0, 0, 0], [1.3, 0.2, (0.1).real]]), cell, (True,) * 3
    )
    shift = np.repeat([[0, 0, 0], cell[0]], 2, axis=0)
    two = Structure(
        np.tile(one.numbers, 2), np.tile(one.positions, (2, 1)) + shift,
        np.diag([6.2, 3.3, 3.0]), (True,) * 3,
    )  # fmt: skip
    energies = potential.predict([one, two]).energies
    assert energies[1] == pytest.approx(2 * energies[0], rel=1e-8)


def test_setting_weights_is_a_copy_and_unknown_elements_are_named(potential, molecule):
    theta = potential.get_theta()
    before = potential.weights_hash()
    potential.set_theta(theta + 0.1)
    assert potential.weights_hash() != before
    potential.set_theta(theta)
    assert potential.weights_hash() == before
    with pytest.raises(ModelError, match="does not know Si; it covers H, C, N, O"):
        potential.predict([Structure(np.array([14]), np.zeros((1, 3)))])
