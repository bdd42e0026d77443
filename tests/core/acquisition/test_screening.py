"""The cascade's numbers against dense formulas, and choices by hand."""

import numpy as np
import pytest

from core.acquisition.screening import ACTIVATION_NOISE, PRIOR_STD, Activations, Shortlist


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


def test_every_pick_takes_most_off_what_is_left_unknown_of_the_population(candidates, rng):
    train, population = [rng.normal(size=(4, 10))], [0, 2, 3, 6]
    chosen = Shortlist(candidates, has_energy=True, train=train, population=population).choose(4)

    def left(picks):
        seen = np.concatenate([*train, *(candidates[i] for i in picks)])
        found = [dense(candidates[i], seen) for i in population]
        return sum(w[0] + w[1:].mean() for w in found)

    for k, pick in enumerate(chosen):
        after = {i: left([*chosen[:k], i]) for i in range(7) if i not in chosen[:k]}
        assert pick == min(after, key=after.__getitem__)


def test_what_a_label_would_take_off_the_pool_by_hand():
    # three alike and one far off: a label of one of the three tells about all three
    pool = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 4.0]])
    found = Activations(pool, np.zeros((0, 2)))
    rows = found.of(slice(None))
    noise = ACTIVATION_NOISE**2

    def left(seen):
        precision = np.eye(2) + rows[seen].T @ rows[seen] / noise
        return np.einsum("sd,de,se->", rows, np.linalg.inv(precision), rows)

    gains = [left([]) - left([i]) for i in range(4)]
    np.testing.assert_allclose(found.worth(), gains, rtol=1e-9)
    assert found.choose(slice(None), 2)[0] == int(np.argmax(gains))
    assert found.choose(np.array([1, 3]), 5) in ([0, 1], [1, 0])


def test_every_pick_is_the_most_unknown_after_those_before_it(candidates):
    chosen = Shortlist(candidates, has_energy=True).most_unknown(5)
    for k, pick in enumerate(chosen):
        seen = np.concatenate([np.zeros((0, 10)), *(candidates[i] for i in chosen[:k])])
        left = {
            i: (w := dense(candidates[i], seen))[0] + w[1:].mean()
            for i in range(7)
            if i not in chosen[:k]
        }
        assert pick == max(left, key=left.__getitem__)


@pytest.mark.parametrize("how", ["choose", "most_unknown"])
def test_duplicates_come_last_and_budgets_are_kept(candidates, how):
    def chosen(rows, n):
        return getattr(Shortlist(rows, has_energy=True), how)(n)

    wide = [np.eye(8)[[i, i]] * (20 + 0.1 * i) for i in (0, 1, 2, 0)]
    assert set(chosen(wide, 3)) in ({0, 1, 2}, {1, 2, 3})
    double = [*candidates, candidates[0]]
    assert chosen(double, 0) == []
    assert sorted(chosen(double, 99)) == list(range(8))
    assert chosen([], 3) == []


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
