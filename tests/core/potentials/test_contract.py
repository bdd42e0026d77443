"""Properties every registered potential must have: symmetries, derivatives, exact reuse."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from core.errors import ModelError
from core.potentials.lennard_jones import LennardJones
from core.structures import Structure


def tiny_mace():
    from core.potentials.mace import MacePotential, default_config

    torch.manual_seed(0)
    config = default_config((1, 6, 7, 8), np.array([-1.0, -2.0, -3.0, -4.0]), channels=4)
    return MacePotential(config, dtype=torch.float64)


POTENTIALS = {
    "lennard-jones": lambda: LennardJones((1, 6, 7, 8), sigma=1.2, epsilon=0.2, cutoff=4.0),
    "mace": tiny_mace,
}


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


def test_directional_derivatives_are_the_rows_times_the_directions(potential, molecule):
    rows = potential.rows(molecule)
    directions = torch.randn(3, potential.n_parameters, dtype=potential.dtype)
    gradient, energy, forces = potential.directional(molecule, directions)
    torch.testing.assert_close(gradient, rows[0])
    torch.testing.assert_close(energy, directions @ rows[0])
    torch.testing.assert_close(forces.reshape(3, -1), directions @ rows[1:].T)


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
