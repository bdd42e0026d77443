"""A deep ensemble: different starts, the same labels, the spread between members."""

import numpy as np
import pytest
import torch

from core.posterior.deep_ensemble import DeepEnsemble
from core.posterior.descent import Descent
from tests.core.finetuning.sample_labels import small_mace

DESCENT = Descent(steps=40, rate=2e-3, noise_energy=5e-3, noise_force=0.05)


def make(**options):
    return DeepEnsemble(small_mace(1), descent=DESCENT, members=3, noise=0.1, **options)


def test_members_start_apart_and_the_first_at_the_foundation(rng):
    posterior = make()
    theta = posterior.init(rng).theta
    assert (theta[0] == posterior.prior_theta).all()
    for where in posterior.potential.blocks().values():
        size = posterior.prior_theta[where].pow(2).mean().sqrt()
        drawn = (theta[1:, where] - posterior.prior_theta[where]).pow(2).mean().sqrt()
        assert 0.03 * size < drawn < 0.3 * size


def test_the_spread_is_that_of_members_evaluated_one_by_one(labels, rng, tmp_path):
    posterior = make()
    state, info = posterior.update(posterior.init(rng), labels, rng)
    assert len(info.values["loss"]) == 3
    structure, found = labels.structures[0], []
    for theta in posterior.members(state):
        posterior.potential.set_theta(theta)
        found.append(posterior.potential.predict([structure]))
    posterior.activate(state)
    spread = posterior.spread(state, structure)
    energies = [p.energies[0] for p in found]
    assert spread.energy == pytest.approx(np.mean(energies), abs=1e-5)
    assert spread.sigma_energy == pytest.approx(np.std(energies, ddof=1), rel=1e-3)
    forces = np.var([p.forces[0] for p in found], axis=0, ddof=1).sum(-1)
    np.testing.assert_allclose(spread.sigma_forces, np.sqrt(forces), rtol=1e-3)
    posterior.save(state, tmp_path / "s.safetensors")
    again = posterior.restore(tmp_path / "s.safetensors", labels)
    assert posterior.spread(again, structure).energy == spread.energy
    assert (posterior.potential.get_theta() == state.theta[0]).all()


def test_only_what_may_move_differs(labels, rng):
    potential = small_mace(1)
    blocks = potential.blocks()
    names = [n for n, part in potential.parts().items() if part == "readout"]
    moving = torch.cat([torch.arange(blocks[n].start, blocks[n].stop) for n in names])
    posterior = DeepEnsemble(potential, descent=DESCENT, members=2, noise=0.1, moving=moving)
    state, _ = posterior.update(posterior.init(rng), labels, rng)
    changed = (state.theta != posterior.prior_theta).any(0).nonzero()[:, 0]
    assert set(changed.tolist()) == set(moving.tolist())
