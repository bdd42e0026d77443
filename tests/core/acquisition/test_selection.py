import itertools

import numpy as np
import pytest

from core.acquisition.selection import (
    at_random,
    farthest_points,
    greedy_determinant,
    largest_cluster_maximum_distance,
    top,
)


def gram(points: np.ndarray) -> np.ndarray:
    """A Gaussian kernel between points (S, D)."""
    squared = ((points[:, None] - points[None]) ** 2).sum(-1)
    return np.exp(-0.5 * squared)


def by_determinant(kernel: np.ndarray, n: int) -> list[int]:
    """Choose by features whose inner products are a kernel (S, S), ties to the smaller index."""
    values, vectors = np.linalg.eigh(kernel)
    features = vectors * np.sqrt(np.maximum(values, 0))
    return greedy_determinant(
        features * (1 - 1e-9 * np.arange(len(kernel)))[:, None], n, noise=1e-4
    )


def test_a_duplicate_is_chosen_last(rng):
    points = rng.normal(size=(5, 2)) * 3
    points[4] = points[0]
    assert set(by_determinant(gram(points), 5)[-1:]) <= {0, 4}
    assert not {0, 4} <= set(by_determinant(gram(points), 4))


def test_every_pick_is_the_best_next_one(rng):
    kernel = gram(rng.normal(size=(8, 2)))
    chosen = by_determinant(kernel, 4)
    for k in range(1, 4):

        def det(i, head=chosen[:k]):
            return np.linalg.det(kernel[np.ix_([*head, i], [*head, i])])

        others = [i for i in range(8) if i not in chosen[:k]]
        assert det(chosen[k]) == pytest.approx(max(det(i) for i in others))


def test_three_corners_of_a_triangle_beat_its_middle():
    points = np.array([(0, 0), (4, 0), (0, 4), (1.2, 1.2)], dtype=float)
    best = max(
        itertools.combinations(range(4), 3),
        key=lambda c: np.linalg.det(gram(points)[np.ix_(c, c)]),
    )
    assert set(by_determinant(gram(points), 3)) == set(best) == {0, 1, 2}


def test_none_one_all_and_more_than_there_are():
    kernel = np.diag([1.0, 3.0, 2.0])
    for n, expected in ((0, []), (1, [1]), (3, [1, 2, 0]), (4, [1, 2, 0])):
        assert by_determinant(kernel, n) == expected
    assert greedy_determinant(np.zeros((0, 2)), 3, noise=0.1) == []


def test_candidates_without_variance_still_give_a_batch():
    assert len(set(by_determinant(np.zeros((3, 3)), 3))) == 3


def determinant(features, noise, chosen, train):
    rows = np.concatenate([train, features[chosen]])
    return np.linalg.slogdet(np.eye(rows.shape[1]) + rows.T @ rows / noise**2)[1]


@pytest.mark.parametrize("with_train", [False, True])
def test_greedy_determinant_in_feature_space_is_the_best_next_one(rng, with_train):
    features, noise = rng.normal(size=(12, 4)), 0.3
    train = rng.normal(size=(3, 4)) if with_train else np.zeros((0, 4))
    chosen = greedy_determinant(features, 5, noise=noise, train=train)
    for k in range(5):
        scores = {
            i: determinant(features, noise, [*chosen[:k], i], train)
            for i in range(12)
            if i not in chosen[:k]
        }
        assert chosen[k] == max(scores, key=scores.__getitem__)


def test_lcmd_by_hand():
    # two training points; the cluster of 10 has 1² + 4² + 2² = 21, that of 0 has 3² + 1² = 10
    train = np.array([[0.0], [10.0]])
    candidates = np.array([[3.0], [-1.0], [11.0], [14.0], [8.0]])
    assert largest_cluster_maximum_distance(candidates, 1, train=train) == [3]
    # 14 becomes a centre and takes nobody: 11 stays with 10 (1 < 9), whose sum is 1 + 4 = 5
    assert largest_cluster_maximum_distance(candidates, 2, train=train) == [3, 0]
    assert largest_cluster_maximum_distance(candidates, 3, train=train) == [3, 0, 4]


def test_farthest_points_by_hand():
    candidates = np.array([[0.0], [1.0], [7.0], [4.0]])
    assert farthest_points(candidates, 3) == [2, 0, 3]
    assert farthest_points(candidates, 2, train=np.array([[7.0]])) == [0, 3]


CHOOSE = {
    "determinant": lambda x, n, t: greedy_determinant(x, n, noise=1e-3, train=t),
    "lcmd": lambda x, n, t: largest_cluster_maximum_distance(x, n, train=t),
    "farthest": lambda x, n, t: farthest_points(x, n, train=t),
}


@pytest.mark.parametrize("method", CHOOSE)
@pytest.mark.parametrize("with_train", [False, True])
def test_budgets_and_duplicates(rng, method, with_train):
    points = rng.normal(size=(6, 12))
    features = np.concatenate([points, points[:3]])
    train = rng.normal(size=(2, 12)) if with_train else None
    choose = CHOOSE[method]
    assert choose(features, 0, train) == [] and len(choose(features, 1, train)) == 1
    assert sorted(choose(features, 99, train)) == list(range(9))
    assert len({tuple(features[i]) for i in choose(features, 6, train)}) == 6
    assert choose(np.zeros((0, 12)), 4, train) == []


@pytest.mark.parametrize("method", CHOOSE)
def test_what_is_labelled_already_comes_last(rng, method):
    features = rng.normal(size=(5, 8))
    assert CHOOSE[method](features, 5, features[[2]])[-1] == 2


def test_top_and_random(rng):
    assert top(np.array([1.0, 3.0, 3.0, 2.0]), 3) == [1, 2, 3] and top(np.zeros(2), 9) == [0, 1]
    drawn = at_random(10, 4, np.random.default_rng(1))
    assert len(set(drawn)) == 4 and drawn == at_random(10, 4, np.random.default_rng(1))
    assert sorted(at_random(3, 9, rng)) == [0, 1, 2]
