"""The linearised posterior against the Gaussian it must equal on a linear model."""

import numpy as np
import pytest
import torch

from core.contracts import LabelSet
from core.finetuning.tuning import subset
from core.posterior import linearised
from core.posterior import make as make_posterior
from core.posterior.largest import largest_change
from core.posterior.linearised import Linearised
from core.posterior.tangent import QUICK
from core.potentials import load
from core.potentials.lennard_jones import LennardJones
from core.settings import Noise, PosteriorSettings
from core.structures import Structure

S, NOISE_E, NOISE_F = 0.3, 2e-3, 5e-3


def clusters(rng, n):
    base = 3.7 * np.stack(np.meshgrid(*[[0, 1]] * 3), -1).reshape(-1, 3)[:5]
    return tuple(
        Structure(np.full(5, 18), base + 0.2 * rng.standard_normal((5, 3))) for _ in range(n)
    )


def labelled(structures, teacher=None, shift=0.0):
    out = (teacher or LennardJones(epsilon=0.012, sigma=3.35)).predict(structures)
    return LabelSet(structures, out.energies + shift, out.forces)


def make(members=2000, **options):
    return Linearised(
        LennardJones(), prior_std=S, noise_energy=NOISE_E, noise_force=NOISE_F, members=members,
        **options,
    )  # fmt: skip


def dense(rows):
    return torch.cat(rows.blocks)


def test_gram_and_factor_are_those_of_the_rows_whatever_was_renewed(rng, monkeypatch):
    monkeypatch.setattr(linearised, "COLUMNS", 2)
    monkeypatch.setattr(linearised, "RENEWED", 90)
    posterior = make(members=3)
    structures = clusters(rng, 5)
    state, before = posterior.init(rng), []
    for n in (2, 3, 5):
        state, _ = posterior.update(state, labelled(structures[:n]), rng)
        before.append(state.rows.taken[1::2])
    J = dense(state.rows).double()
    assert J.shape == (sum(1 + 3 * len(s) for s in structures), 3)
    torch.testing.assert_close(state.gram, J @ J.T)
    K = state.gram + torch.diag((state.noise / S) ** 2)
    torch.testing.assert_close(state.factor, torch.linalg.cholesky(K))
    weights = torch.randn(len(J), 2, dtype=torch.float64)
    torch.testing.assert_close(state.rows.transposed(weights).double(), weights.T @ J)
    renewed = [a is not b for a, b in zip(before[1], before[2], strict=False)]
    assert 0 < sum(renewed) < 3  # some of the three old labels, not all


def test_renewed_rows_are_those_at_the_weights_of_the_moment(rng):
    posterior = make(members=3)
    labels = labelled(clusters(rng, 4))
    state, _ = posterior.update(posterior.init(rng), labels, rng)
    state, _ = posterior.update(state, labels, rng)
    blocks, taken = state.rows.blocks, state.rows.taken
    for k, structure in enumerate(labels.structures):
        for part, where in ((2 * k, slice(0, 1)), (2 * k + 1, slice(1, None))):
            posterior.potential.set_theta(taken[part])
            expected = posterior.potential.rows(structure)[where]
            torch.testing.assert_close(blocks[part][:, :-1], expected)
    assert state.rows.of(1) == slice(16, 32)


def test_energy_rows_follow_the_weights_after_every_update(rng, monkeypatch):
    monkeypatch.setattr(linearised, "RENEWED", 0)
    posterior, structures = make(members=500), clusters(rng, 6)
    state, _ = posterior.update(posterior.init(rng), labelled(structures[:3]), rng)
    state, _ = posterior.update(state, labelled(structures[:6]), rng)
    assert all(at is state.theta for at in state.rows.taken[0::2])
    monkeypatch.setattr(linearised, "ENERGY_WORK", 0)
    other, rng = make(members=500), np.random.default_rng(0)
    stale, _ = other.update(other.init(rng), labelled(structures[:3]), rng)
    stale, _ = other.update(stale, labelled(structures[:6]), rng)
    assert not all(at is stale.theta for at in stale.rows.taken[0::2])


def test_variances_equal_the_closed_form(rng):
    posterior = make(bias_std=1e-9)
    labels = labelled(clusters(rng, 3))
    state, _ = posterior.update(posterior.init(rng), labels, rng)
    test = clusters(rng, 1)[0]
    J = dense(state.rows)[:, :-1]
    precision = torch.diag(1 / state.noise**2)
    C = torch.linalg.inv(J.T @ precision @ J + torch.eye(2, dtype=J.dtype) / S**2)
    rows = posterior.potential.rows(test)
    spread = posterior.spread(state, test)
    exact = (rows @ C @ rows.T).diagonal().sqrt()
    assert spread.sigma_energy == pytest.approx(float(exact[0]), rel=0.06)
    torch.testing.assert_close(posterior.members(state).T.cov(), C, rtol=0.15, atol=1e-9)


def test_rows_of_forces_are_kept_in_half_of_single_precision(rng, monkeypatch):
    labels, test = labelled(clusters(rng, 4)), clusters(rng, 1)[0]
    found = {}
    for dtype in ("float64", "float32"):
        posterior = Linearised(
            load("lennard-jones", dtype=dtype), prior_std=S, noise_energy=NOISE_E,
            noise_force=NOISE_F, members=500,
        )  # fmt: skip
        state, _ = posterior.update(
            posterior.init(np.random.default_rng(1)), labels, np.random.default_rng(1)
        )
        found[dtype] = state, posterior.spread(state, test)
    whole, half = found["float64"], found["float32"]
    assert {block.dtype for block in whole[0].rows.blocks} == {torch.float64}
    assert [block.dtype for block in half[0].rows.blocks[:2]] == [torch.float32, torch.float16]
    torch.testing.assert_close(
        half[0].rows.transposed(torch.ones(64, 1)).double(),
        whole[0].rows.transposed(torch.ones(64, 1, dtype=torch.float64)), rtol=2e-3, atol=2e-3,
    )  # fmt: skip
    assert half[1].sigma_energy == pytest.approx(whole[1].sigma_energy, rel=0.03)
    assert half[1].sigma_force == pytest.approx(whole[1].sigma_force, rel=0.03)
    held = sum(b.untyped_storage().nbytes() for b in half[0].rows.blocks)
    assert held == sum(b.numel() * b.element_size() for b in half[0].rows.blocks)
    large = torch.full((2, 3), 7e4)
    assert linearised._halved(large).dtype == torch.float32


def test_what_candidates_would_tell_is_their_covariance_given_the_labels(rng):
    posterior = make(members=3)
    labels, candidates = labelled(clusters(rng, 3)), clusters(rng, 2)
    state, _ = posterior.update(posterior.init(rng), labels, rng)
    J = dense(state.rows).double()
    precision = J.T @ torch.diag(1 / state.noise**2) @ J + torch.eye(3) / S**2
    rows = torch.cat([posterior._rows_of(s) for s in candidates]).double()
    noise = torch.tensor(2 * ([NOISE_E] + 15 * [NOISE_F]), dtype=torch.float64)
    exact = rows @ torch.linalg.inv(precision) @ rows.T / noise[:, None] / noise
    found = posterior.unknown(state, candidates)
    assert [len(part) for part in found] == [16, 16]
    told = np.concatenate(found)
    np.testing.assert_allclose(told @ told.T, exact, atol=1e-6 * float(exact.max()))


def test_the_mean_is_the_maximum_of_the_posterior(rng):
    posterior = make(members=4)
    labels = labelled(clusters(rng, 6))
    state, info = posterior.update(posterior.init(rng), labels, rng)
    found = state.theta.exp().numpy()
    np.testing.assert_allclose(found, [0.012, 3.35], rtol=1e-2)
    assert info.values["iterations"] >= 1


def test_a_constant_energy_shift_goes_into_the_bias_not_the_weights(rng):
    posterior = make(members=4)
    structures = clusters(rng, 6)
    plain, _ = posterior.update(posterior.init(rng), labelled(structures), rng)
    posterior = make(members=4)
    shifted, _ = posterior.update(posterior.init(rng), labelled(structures, shift=0.2), rng)
    assert shifted.bias == pytest.approx(0.2, abs=5e-3)
    torch.testing.assert_close(shifted.theta, plain.theta, rtol=0, atol=2e-3)


def test_the_bias_is_the_most_probable_one_for_the_weights_there_are(rng):
    """Steps that are cut short do not reach it, and every energy to come is off by the rest."""
    labels = labelled(clusters(rng, 5), shift=0.7)
    posterior = make(members=3, max_iterations=1)
    state, _ = posterior.update(posterior.init(rng), labels, rng)
    posterior.activate(state)
    energies = posterior.residuals(state, labels)[:: 1 + 3 * 5]
    pull = state.bias / posterior.bias_std**2
    assert float(energies.sum()) / NOISE_E**2 == pytest.approx(pull, rel=1e-6)


def test_uncertainty_shrinks_with_labels_and_grows_away_from_them(rng):
    posterior = make(members=200)
    structures = clusters(rng, 5)
    near = structures[0].moved(structures[0].positions + 0.01)
    far = structures[0].moved(structures[0].positions * 0.9)
    state = posterior.init(rng)
    before = posterior.spread(state, near).sigma_energy
    state, _ = posterior.update(state, labelled(structures), rng)
    after = posterior.spread(state, near)
    assert after.sigma_energy < 0.3 * before
    assert posterior.spread(state, far).sigma_forces.max() > after.sigma_forces.max()


def test_leave_one_out_equals_leaving_one_out(rng):
    teacher = LennardJones(epsilon=0.0105, sigma=3.41)  # near the prior: linear in the weights
    labels = labelled(clusters(rng, 4), teacher)
    posterior = make(members=4, max_iterations=1)
    state, _ = posterior.update(posterior.init(rng), labels, rng)
    errors, *_ = posterior.leave_one_out(state, labels)
    rest = LabelSet(labels.structures[1:], labels.energies[1:], labels.forces[1:])
    other = make(members=4, max_iterations=40, stop_gain=0.0)
    without, _ = other.update(other.init(rng), rest, rng)
    direct = labels.energies[0] - other.spread(without, labels.structures[0]).energy
    assert errors[0] == pytest.approx(direct, rel=0.1, abs=2e-6)


def test_few_samples_are_the_first_of_all(rng):
    posterior = make(members=2 * QUICK + 3)
    state, _ = posterior.update(posterior.init(rng), labelled(clusters(rng, 3)), rng)
    test = clusters(rng, 1)[0]
    few, everything = posterior.spread(state, test, quick=True), posterior.spread(state, test)
    changes = (posterior.potential.rows(test)[1:] @ state.directions[:, :-1].T.double()).T
    changes = changes.reshape(len(state.directions), -1, 3).numpy()
    for spread, taken in ((few, changes[:QUICK]), (everything, changes)):
        sigma = np.sqrt((taken**2).sum(-1).mean(0))
        np.testing.assert_allclose(spread.sigma_forces, sigma, rtol=1e-3)
        assert spread.sigma_force == pytest.approx(largest_change(taken), rel=1e-3)
    assert few.sigma_energy == everything.sigma_energy


def test_a_label_left_out_is_scored_by_the_largest_force_of_the_rest(rng):
    teacher = LennardJones(epsilon=0.0105, sigma=3.41)  # near the prior: linear in the weights
    exact = labelled(clusters(rng, 4), teacher)
    noisy = tuple(f + NOISE_F * rng.standard_normal(f.shape) for f in exact.forces)
    labels = LabelSet(exact.structures, exact.energies, noisy)
    posterior = make(members=4, max_iterations=1)
    state, _ = posterior.update(posterior.init(rng), labels, rng)
    _, _, ratios, _ = posterior.leave_one_out(state, labels)
    rest = LabelSet(labels.structures[1:], labels.energies[1:], labels.forces[1:])
    other = make(members=400, max_iterations=40, stop_gain=0.0)
    without, _ = other.update(other.init(rng), rest, rng)
    spread = other.spread(without, labels.structures[0])
    error = np.linalg.norm(labels.forces[0] - spread.forces, axis=1).max()
    assert ratios[0] == pytest.approx(error / spread.sigma_force, rel=0.15)


def crystals(rng, n):
    corners = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) * 2.65
    return tuple(
        Structure(
            np.full(4, 18), corners + 0.15 * rng.standard_normal((4, 3)),
            np.eye(3) * 5.3 * (1 + 0.02 * rng.standard_normal()), (True,) * 3,
        )
        for _ in range(n)
    )  # fmt: skip


def with_stress(structures, teacher=None):
    out = (teacher or LennardJones(epsilon=0.012, sigma=3.35)).predict(structures, stress=True)
    return LabelSet(structures, out.energies, out.forces, tuple(out.stress))


NOISE_S = 2e-5


def test_stress_is_learned_and_its_uncertainty_is_the_closed_form(rng):
    posterior = make(bias_std=1e-9, noise_stress=NOISE_S)
    labels = with_stress(crystals(rng, 3))
    state, _ = posterior.update(posterior.init(rng), labels, rng)
    assert len(state.rows) == 3 * (1 + 12 + 6)
    np.testing.assert_allclose(state.theta.exp(), [0.012, 3.35], rtol=1e-2)
    test = crystals(rng, 1)[0]
    spread = posterior.spread(state, test)
    J = dense(state.rows)[:, :-1]
    precision = torch.diag(1 / state.noise**2)
    C = torch.linalg.inv(J.T @ precision @ J + torch.eye(2, dtype=J.dtype) / S**2)
    rows = posterior.potential.rows(test, forces=False, stress=True)[1:]
    exact = (rows @ C @ rows.T).diagonal().sqrt().max()
    assert spread.sigma_stress == pytest.approx(float(exact), rel=0.5)  # eight members
    truth = with_stress((test,)).stress[0]
    np.testing.assert_allclose(spread.stress, truth, atol=5 * NOISE_S)


def test_stress_narrows_what_energies_and_forces_leave_open(rng):
    plain, tense = make(members=200), make(members=200, noise_stress=NOISE_S / 100)
    labels = with_stress(crystals(rng, 2))
    sigma = []
    for posterior in (plain, tense):
        state, _ = posterior.update(posterior.init(rng), labels, rng)
        sigma.append(posterior.members(state).std(0).max())
    assert sigma[1] < 0.7 * sigma[0]


def test_leaving_one_out_scores_the_stress_too(rng):
    posterior = make(members=4, noise_stress=NOISE_S)
    labels = with_stress(crystals(rng, 4))
    state, _ = posterior.update(posterior.init(rng), labels, rng)
    _, _, forces, stress = posterior.leave_one_out(state, labels)
    assert stress.shape == (4,) and (stress > 0).all() and np.isfinite(forces).all()
    plain = make(members=4)
    state, _ = plain.update(plain.init(rng), labels, rng)
    assert np.isnan(plain.leave_one_out(state, labels)[3]).all()


@pytest.mark.parametrize("noise_stress", [None, 1e-4])
def test_beyond_most_rows_labels_keep_fewer_atoms_and_the_posterior_is_that_of_those(
    rng, tmp_path, noise_stress
):
    structures = crystals(rng, 14)
    labels = with_stress(structures)
    each, beside = 3 * len(structures[0]), 1 if noise_stress is None else 7
    most = 12 * (each + beside)
    posterior = make(members=4000, max_rows=most, noise_stress=noise_stress, bias_std=1e-9)
    state = posterior.init(rng)
    for n in (12, 13, 14):
        state, info = posterior.update(state, subset(labels, np.arange(n)), rng)
        assert info.values["rows"] == len(state.rows) == len(state.noise) <= most
        assert n > 12 or len(state.rows) == most
    kept = [len(a) for a in state.atoms]
    assert kept == [kept[0]] * 5 + [4] * 9 and 1 <= kept[0] < 4
    K = state.gram + torch.diag((state.noise / S) ** 2)
    torch.testing.assert_close(state.factor, torch.linalg.cholesky(K))
    J = torch.cat([
        posterior.potential.rows(s, stress=noise_stress is not None)[
            [0, *(1 + 3 * i + c for i in a for c in range(3)), *range(1 + each, each + beside)]
        ]
        for s, a in zip(structures, state.atoms, strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(dense(state.rows)[:, :-1], J, rtol=2e-2, atol=1e-3)
    test = crystals(rng, 1)[0]
    row = posterior.potential.rows(test, forces=False).double()[0]
    precision = J.double().T @ (J.double() / state.noise[:, None] ** 2) + torch.eye(2) / S**2
    sigma = float((row @ torch.linalg.solve(precision, row)).sqrt())
    assert posterior.spread(state, test).sigma_energy == pytest.approx(sigma, rel=0.05)
    posterior.potential.set_theta(posterior.prior_theta)
    said = posterior.potential.predict(structures)
    left = posterior.residuals(state, labels)
    at = slice(state.rows.of(0).start + 1, state.rows.of(0).start + 1 + 3 * kept[0])
    expected = (labels.forces[0] - said.forces[0])[state.atoms[0]].ravel()
    np.testing.assert_allclose(left[at], expected)
    posterior.save(state, tmp_path / "s.safetensors")
    again = posterior.restore(tmp_path / "s.safetensors", labels)
    assert len(again.rows) == len(state.rows)
    assert [list(a) for a in again.atoms] == [list(a) for a in state.atoms]
    assert not np.isnan(posterior.leave_one_out(again, labels)[2]).any()


def test_many_labels_at_once_keep_to_the_most_rows_of_the_settings(rng):
    settings = PosteriorSettings(max_rows=100, members=4)
    posterior = make_posterior(
        LennardJones(), settings, Noise(energy=NOISE_E, force=NOISE_F), energy_tolerance=0.02
    )
    state, _ = posterior.update(posterior.init(rng), labelled(clusters(rng, 14)), rng)
    assert state.n_labels == 14 and len(state.atoms) == 14 and 14 * 4 <= len(state.rows) <= 100


def test_room_is_made_by_old_labels_first_and_no_label_is_left_without_a_force():
    assert linearised._fewer([9] * 10, 1, 280) == [9] * 10
    assert linearised._fewer([9] * 11, 1, 280) == [2, 2, 2, *[9] * 8]
    assert linearised._fewer([9] * 20, 1, 480) == [5] * 12 + [9] * 8
    assert linearised._fewer([64] * 9, 7, 300) == [7] * 9
    assert linearised._fewer([9] * 100, 1, 200) == [1] * 100


def test_saved_and_restored_states_agree(rng, tmp_path):
    posterior = make(members=16)
    labels = labelled(clusters(rng, 3))
    state, _ = posterior.update(posterior.init(rng), labels, rng)
    posterior.save(state, tmp_path / "s.safetensors")
    other = make(members=16)
    again = other.restore(tmp_path / "s.safetensors", labels)
    test = clusters(rng, 1)[0]
    one, two = posterior.spread(state, test), other.spread(again, test)
    assert one.energy == two.energy
    assert one.sigma_energy == two.sigma_energy
    more = labelled(labels.structures + clusters(rng, 1))
    assert other.update(again, more, rng)[0].n_labels == 4
    full = (tmp_path / "s.safetensors").stat().st_size
    other.shrink(tmp_path / "s.safetensors")
    assert (tmp_path / "s.safetensors").stat().st_size < full
    shrunk = make(members=16).restore(tmp_path / "s.safetensors", labels)
    assert torch.equal(shrunk.theta, state.theta) and shrunk.directions.shape == (16, 3)
