"""The last-layer posterior against the Gaussian it must be, and its descent."""

import numpy as np
import pytest
import torch

from core.contracts import LabelSet
from core.posterior.descent import Descent
from core.posterior.last_layer import LastLayer
from tests.core.finetuning.sample_labels import small_mace
from tests.core.posterior.test_linearised import labelled as of_argon

DESCENT = Descent(steps=60, rate=2e-3, noise_energy=5e-3, noise_force=0.05)


def make(seed=1, **options):
    return LastLayer(
        small_mace(seed), prior_std=0.3, descent=DESCENT, elements=(1, 6, 8), **options
    )


def rows_of_readouts(posterior, labels):
    names = posterior.potential.parts()
    blocks = posterior.potential.blocks()
    columns = torch.cat(
        [torch.arange(blocks[n].start, blocks[n].stop) for n in names if names[n] == "readout"]
    )
    return columns, torch.cat([posterior.potential.rows(s)[:, columns] for s in labels.structures])


def test_samples_have_the_covariance_of_the_dense_formula(labels, rng):
    posterior = make(members=4000)
    state, _ = posterior.update(posterior.init(rng), labels, rng)
    columns, rows = rows_of_readouts(posterior, labels)
    n = 1 + 3 * len(labels.structures[0])
    noise = torch.full((len(rows),), DESCENT.noise_force, dtype=torch.float64)
    noise[::n] = DESCENT.noise_energy
    scaled = rows.double() / noise[:, None]
    precision = scaled.T @ scaled + torch.eye(len(columns), dtype=torch.float64) / 0.3**2
    test = posterior.potential.rows(labels.structures[0])[:, columns].double()
    wanted = torch.einsum("ri,ri->r", test, torch.linalg.solve(precision, test.T).T).sqrt()
    spread = posterior.spread(state, labels.structures[0])
    assert spread.sigma_energy == pytest.approx(float(wanted[0]), rel=0.1)
    members = posterior.members(state)
    moved = (members != state.theta).any(0).nonzero()[:, 0]
    assert set(moved.tolist()) <= set(columns.tolist())
    samples = (members - state.theta)[:, columns].double() @ test.T
    np.testing.assert_allclose(samples.std(0), wanted, rtol=0.15)


def test_it_learns_forgets_nothing_on_restart_and_grows_more_certain(labels, rng, tmp_path):
    posterior = make()
    state = posterior.init(rng)
    structure = labels.structures[0]
    before, unsure = error(posterior, state, labels), posterior.spread(state, structure)
    state, info = posterior.update(state, labels, rng)
    assert error(posterior, state, labels) < 0.7 * before and info.values["loss"] > 0
    assert posterior.spread(state, structure).sigma_energy < 0.2 * unsure.sigma_energy
    posterior.save(state, tmp_path / "s.safetensors")
    again = make().restore(tmp_path / "s.safetensors", labels)
    posterior.activate(again)
    one, other = (posterior.spread(s, structure) for s in (state, again))
    assert one.energy == pytest.approx(other.energy, rel=1e-12)
    assert one.sigma_energy == pytest.approx(other.sigma_energy, rel=1e-9)  # rounding of a product


def error(posterior, state, labels):
    posterior.activate(state)
    found = posterior.potential.predict(labels.structures)
    return float(
        np.mean([np.abs(a - b).mean() for a, b in zip(found.forces, labels.forces, strict=True)])
    )


def test_the_same_seed_gives_the_same_weights(labels):
    found = [
        p.update(p.init(np.random.default_rng(3)), labels, np.random.default_rng(4))[0]
        for p in (make(), make())
    ]
    assert (found[0].theta == found[1].theta).all()
    assert (found[0].directions == found[1].directions).all()


def test_a_model_without_readouts_is_all_last_layer(rng):
    from core.potentials.lennard_jones import LennardJones
    from tests.core.posterior.test_linearised import clusters

    posterior = LastLayer(LennardJones(), prior_std=0.3, descent=DESCENT)
    given: LabelSet = of_argon(clusters(rng, 4))
    state, _ = posterior.update(posterior.init(rng), given, rng)
    assert state.directions.shape == (32, 2)
