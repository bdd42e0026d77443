"""SGHMC against a Gaussian with a known answer, its schedule, and a real potential."""

import numpy as np
import pytest
import torch

from core.posterior import sghmc
from core.posterior.sghmc import Schedule, Sghmc
from core.potentials.lennard_jones import LennardJones
from tests.core.posterior.test_linearised import clusters, labelled


def test_noise_starts_after_the_noiseless_part_and_ramps_in_variance():
    schedule = Schedule(steps=2000)
    assert schedule.temperature(399) == 0
    assert schedule.temperature(450) == pytest.approx(0.5)
    assert schedule.temperature(500) == schedule.temperature(1999) == 1
    assert schedule.rate(0) == pytest.approx(1e-3)
    assert schedule.rate(1000) == pytest.approx(5e-4)


def test_chains_sample_a_gaussian_of_known_spread():
    generator, n_data, spread = torch.Generator().manual_seed(0), 10, 0.7
    schedule = Schedule(steps=20_000, learning_rate=0.02, noiseless=0.05)
    chain = sghmc.start(torch.zeros(500))
    kept = []
    for t in range(12_000):
        gradient = (chain.x - 2.0) / (n_data * spread**2)
        noise = torch.randn(500, generator=generator)
        chain = sghmc.step(chain, gradient, n_data, schedule, noise)
        if t > 6000 and t % 200 == 0:
            kept.append(chain.x)
    samples = torch.stack(kept)
    assert samples.mean() == pytest.approx(2.0, abs=0.05)
    assert samples.std() == pytest.approx(spread, rel=0.15)


def test_a_frozen_mass_stays_what_it_was_when_the_noise_began():
    schedule = Schedule(steps=100, noiseless=0.2, frozen=True)
    generator, chain, masses = torch.Generator().manual_seed(0), sghmc.start(torch.zeros(5)), []
    for t in range(60):
        gradient = (1 + t) * torch.randn(5, generator=generator)
        chain = sghmc.step(chain, gradient, 10, schedule, torch.randn(5, generator=generator))
        masses.append(chain.v_max)
    assert all((m == masses[19]).all() for m in masses[20:])
    assert not (masses[18] == masses[19]).all()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_burst_says_whether_its_chains_mixed(rng, frozen):
    labels = labelled(clusters(rng, 4))
    posterior = Sghmc(
        LennardJones(), prior_std=0.5, energy_tolerance=0.02, chains=2,
        schedule=Schedule(steps=200, frozen=frozen),
    )  # fmt: skip
    _, info = posterior.update(posterior.init(rng), labels, rng)
    assert info.values["r_hat"] >= 0.9 and 1 <= info.values["effective_size"] <= 400


def test_the_prior_mean_is_a_copy_that_stays_when_weights_move(rng):
    potential = LennardJones()
    posterior = Sghmc(
        potential, prior_std=0.5, energy_tolerance=0.02, chains=2, schedule=Schedule(steps=10)
    )
    before = posterior.prior_theta.clone()
    potential.set_theta(before + 1)
    torch.testing.assert_close(posterior.prior_theta, before, rtol=0, atol=0)


def test_it_learns_and_reports_a_spread(rng, tmp_path):
    structures = clusters(rng, 7)
    labels = labelled(structures[:6])
    posterior = Sghmc(
        LennardJones(), prior_std=0.5, energy_tolerance=0.02, chains=3,
        schedule=Schedule(steps=600),
    )  # fmt: skip
    state = posterior.init(rng)
    before = abs(posterior.spread(state, structures[0]).energy - labels.energies[0])
    state, _ = posterior.update(state, labels, rng)
    after = posterior.spread(state, structures[0])
    assert abs(after.energy - labels.energies[0]) < 0.5 * before
    assert after.sigma_energy >= posterior.energy_noise
    posterior.save(state, tmp_path / "s.safetensors")
    again = posterior.restore(tmp_path / "s.safetensors", labels)
    np.testing.assert_allclose(
        posterior.spread(again, structures[6]).forces, posterior.spread(state, structures[6]).forces
    )
