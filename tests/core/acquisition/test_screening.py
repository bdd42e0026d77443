"""The cascade's numbers against dense formulas, and choices by hand."""

import numpy as np
import pytest

from core.acquisition.screening import PRIOR_STD, Activations, Shortlist


def dense(rows, observed):
    """Variance of rows (R, D) after `observed` (T, D), unit noise, prior PRIOR_STD."""
    precision = np.eye(rows.shape[1]) / PRIOR_STD**2 + observed.T @ observed
    return np.einsum("rd,de,re->r", rows, np.linalg.inv(precision), rows)


@pytest.fixture
def candidates(rng):
    return [rng.normal(size=(4, 10)) for _ in range(7)]


def test_scores_are_those_of_the_dense_formula(candidates, rng):
    train = [rng.normal(size=(4, 10)) for _ in range(3)]
    found = Shortlist(candidates, has_energy=True, train=train).scores()
    wanted = [dense(c, np.concatenate(train)) for c in candidates]
    np.testing.assert_allclose(found.energy, [w[0] for w in wanted], rtol=1e-4)
    np.testing.assert_allclose(found.force, [w[1:].mean() for w in wanted], rtol=1e-4)
    forces = Shortlist(candidates, has_energy=False, train=train).scores()
    np.testing.assert_allclose(forces.total, [w.mean() for w in wanted], rtol=1e-4)


def test_every_pick_is_the_most_unknown_after_those_before_it(candidates):
    chosen = Shortlist(candidates, has_energy=True).choose(5)
    for k, pick in enumerate(chosen):
        seen = np.concatenate([np.zeros((0, 10)), *(candidates[i] for i in chosen[:k])])
        left = {
            i: (w := dense(candidates[i], seen))[0] + w[1:].mean()
            for i in range(7)
            if i not in chosen[:k]
        }
        assert pick == max(left, key=left.__getitem__)


def test_duplicates_come_last_and_budgets_are_kept(candidates):
    double = [*candidates, candidates[0]]
    wide = [np.eye(8)[[i, i]] * (2 + 0.1 * i) for i in (0, 1, 2, 0)]
    assert set(Shortlist(wide, has_energy=True).choose(3)) in ({0, 1, 2}, {1, 2, 3})
    assert Shortlist(double, has_energy=True).choose(0) == []
    assert sorted(Shortlist(double, has_energy=True).choose(99)) == list(range(8))
    assert Shortlist([], has_energy=True).choose(3) == []


def test_energy_rows_alone(rng):
    one = [rng.normal(size=(1, 5)) for _ in range(3)]
    found = Shortlist(one, has_energy=True).scores()
    assert np.isnan(found.force).all() and (found.total == found.energy).all()


def test_activations_far_from_the_labels_score_higher(rng):
    pool = rng.normal(size=(400, 6)) * [1, 2, 3, 4, 5, 0] + 7
    pool[0] += [0, 0, 0, 30, 0, 0]
    train = pool[100:200]
    scores = Activations(pool, train).scores()
    assert int(np.argmax(scores)) == 0 and scores[100:200].mean() < scores[200:].mean()
    assert Activations(pool, np.zeros((0, 6))).scores().mean() == pytest.approx(5 / 6, rel=0.05)
