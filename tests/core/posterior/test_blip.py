"""BLIP for MACE: exact symmetry and conservative forces of every pass, limits, and learning."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from core.posterior.blip import Blip
from tests.core.finetuning.sample_labels import small_mace


def make(**options):
    given = {"noise_energy": 0.02, "noise_force": 0.1, "passes": 4, "steps": 40, "rate": 2e-3}
    return Blip(small_mace(1), **given | options)


@pytest.fixture(scope="module", params=["weights", "gates"])
def trained(request, labels):
    posterior = make(noise=request.param)
    rng = np.random.default_rng(0)
    state, info = posterior.update(posterior.init(rng), labels, rng)
    return posterior, state, info


def test_every_pass_is_equivariant(trained, labels, rng):
    posterior, state, _ = trained
    posterior.activate(state)
    structure = labels.structures[0]
    turn = Rotation.random(random_state=1).as_matrix()
    energies, forces = posterior.sampled(state, structure)
    turned = posterior.sampled(state, structure.moved(structure.positions @ turn.T + 3.0))
    np.testing.assert_allclose(turned[0], energies, rtol=1e-9)
    np.testing.assert_allclose(turned[1], forces @ turn.T, rtol=1e-5, atol=1e-9)
    assert np.ptp(energies) > 1e-4


def test_forces_of_every_pass_are_minus_the_gradient_of_its_energy(trained, labels):
    posterior, state, _ = trained
    posterior.activate(state)
    structure, h = labels.structures[0], 1e-4
    _, forces = posterior.sampled(state, structure)
    ends = []
    for sign in (1, -1):
        positions = structure.positions.copy()
        positions[2, 1] += sign * h
        ends.append(posterior.sampled(state, structure.moved(positions))[0])
    np.testing.assert_allclose(forces[:, 2, 1], (ends[1] - ends[0]) / (2 * h), atol=1e-6)


def test_alpha_depends_on_the_structure_once_trained(trained, labels):
    posterior, state, info = trained
    posterior.activate(state)
    log_alpha = posterior.log_alpha(state, labels.structures)
    assert float(log_alpha.std(0).max()) > 1e-4
    assert 0 < info.values["alpha"] < 1
    fresh = posterior.init(np.random.default_rng(0))
    assert float(posterior.log_alpha(fresh, labels.structures).std(0).max()) == 0


def test_without_noise_it_is_the_model_itself(labels, rng, monkeypatch):
    posterior = make()
    state = posterior.init(rng)
    structure = labels.structures[0]
    with monkeypatch.context() as patch:
        patch.setattr(posterior, "_epsilon", lambda rng: torch.zeros_like(state.theta))
        spread = posterior.spread(state, structure)
    exact = posterior.potential.predict([structure])
    assert spread.energy == exact.energies[0] and spread.sigma_energy < 1e-9
    assert spread.sigma_forces.max() < 1e-9
    quiet = make(prior=2e-6).spread(replace(state, network=_level(posterior, -13.0)), structure)
    loud = posterior.spread(replace(state, network=_level(posterior, -7.0)), structure)
    assert quiet.sigma_energy == pytest.approx(loud.sigma_energy * np.exp(-3.0), rel=0.1)


def _level(posterior, log_alpha):
    rng, dtype = np.random.default_rng(0), torch.float64
    low, high = -14.0, -1.0  # undo the bound, so that the network gives this log α
    middle, half = (low + high) / 2, (high - low) / 2
    free = middle + half * np.arctanh((log_alpha - middle) / half)
    return posterior._inference.initial(free, rng, dtype)


def test_the_divergence_is_that_of_two_gaussians():
    posterior = make(prior=1e-3)
    blocks = len(posterior.potential.blocks())
    same = torch.full((blocks,), np.log(1e-3))
    assert float(posterior.divergence(same)) == pytest.approx(0, abs=1e-12)
    ratio = 2.5
    found = float(posterior.divergence(same + np.log(ratio)))
    one = torch.distributions.Normal(0.0, np.sqrt(ratio))
    other = torch.distributions.Normal(0.0, 1.0)
    assert found == pytest.approx(float(torch.distributions.kl_divergence(one, other)), rel=1e-6)


def test_it_learns_and_a_stronger_prior_noise_is_less_certain(labels, rng):
    def after(prior):
        posterior = make(prior=prior, steps=60)
        state = posterior.init(np.random.default_rng(0))
        state, _ = posterior.update(state, labels, np.random.default_rng(1))
        found = [posterior.spread(state, s) for s in labels.structures]
        error = np.mean(
            [abs(f.forces - t).mean() for f, t in zip(found, labels.forces, strict=True)]
        )
        return error, np.mean([f.sigma_energy for f in found])

    untouched = small_mace(1).predict(labels.structures).forces
    before = np.mean([abs(f - t).mean() for f, t in zip(untouched, labels.forces, strict=True)])
    (error, low), (_, high) = after(1e-5), after(3e-3)
    assert error < 0.8 * before
    assert high > 1.5 * low


def test_passes_agree_with_the_labels_in_the_mean_whatever_constant_their_noise_adds(
    trained, labels
):
    posterior, state, _ = trained
    posterior.activate(state)
    isolated = [posterior.potential.isolated_energy(s) for s in labels.structures]
    found = np.array([posterior.sampled(state, s)[0] for s in labels.structures])
    off = labels.energies - isolated - (found + state.biases).T
    np.testing.assert_allclose(off.mean(1), 0, atol=1e-9)
    assert np.ptp(state.biases) > 1e-3  # the noise added more than one constant
    mean = [posterior.spread(state, s).energy for s in labels.structures]
    assert np.mean(labels.energies - mean) == pytest.approx(0, abs=1e-9)


def test_a_constant_in_all_labels_is_learned_by_the_constants_alone(labels):
    found = []
    for shift in (0.0, 3.0):
        posterior, rng = make(steps=5), np.random.default_rng(0)
        moved = replace(labels, energies=labels.energies + shift)
        found.append(posterior.update(posterior.init(rng), moved, rng)[0])
    torch.testing.assert_close(found[0].theta, found[1].theta, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[1].biases - found[0].biases, 3.0, atol=1e-3)


def test_what_is_kept_of_any_number_of_passes_is_one_model(labels, tmp_path):
    sizes = []
    for passes in (2, 50):
        posterior = make(passes=passes)
        state = posterior.init(np.random.default_rng(0))
        posterior.save(state, tmp_path / "s.safetensors")
        sizes.append((tmp_path / "s.safetensors").stat().st_size)
    assert sizes[1] - sizes[0] < 1000 and sizes[0] > 8 * len(posterior.prior_theta)


def test_gates_are_shared_by_all_weights_into_a_channel():
    posterior = make(noise="gates")
    epsilon = posterior._epsilon(np.random.default_rng(0))
    blocks, checked = posterior.potential.blocks(), 0
    for name, matrices in posterior.potential.matrices().items():
        for start, rows, columns in matrices:
            first = blocks[name].start + start
            block = epsilon[first : first + rows * columns].view(rows, columns)
            assert (block == block[0]).all() and (columns == 1 or block[0].std() > 0)
            checked += rows > 1
    assert checked > 5


def test_it_is_reproducible_and_survives_a_restart(labels, tmp_path):
    found = []
    for _ in range(2):
        posterior = make(steps=5)
        state = posterior.init(np.random.default_rng(0))
        found.append(posterior.update(state, labels, np.random.default_rng(1))[0])
    assert (found[0].theta == found[1].theta).all()
    assert (found[0].network == found[1].network).all()
    posterior.save(found[0], tmp_path / "s.safetensors")
    again = posterior.restore(tmp_path / "s.safetensors", labels)
    structure = labels.structures[0]
    assert posterior.spread(again, structure).sigma_energy == pytest.approx(
        posterior.spread(found[0], structure).sigma_energy, rel=1e-12
    )
    assert again.n_labels == len(labels)
    torch.testing.assert_close(posterior.members(again), posterior.members(found[0]))


def test_only_what_may_move_is_noisy_and_moves(labels):
    potential = small_mace(1)
    blocks, parts = potential.blocks(), potential.parts()
    names = [n for n, part in parts.items() if part == "readout"]
    moving = torch.cat([torch.arange(blocks[n].start, blocks[n].stop) for n in names])
    posterior = Blip(potential, noise_energy=0.02, noise_force=0.1, steps=5, moving=moving)
    rng = np.random.default_rng(0)
    state, _ = posterior.update(posterior.init(rng), labels, rng)
    changed = (posterior.members(state) != posterior.prior_theta).any(0).nonzero()[:, 0]
    assert set(changed.tolist()) == set(moving.tolist())
