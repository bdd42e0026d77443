import itertools

import numpy as np
import pytest

from core.acquisition.selection import max_determinant


def gram(points: np.ndarray) -> np.ndarray:
    """A Gaussian kernel between points (S, D)."""
    squared = ((points[:, None] - points[None]) ** 2).sum(-1)
    return np.exp(-0.5 * squared)


def test_a_duplicate_is_chosen_last(rng):
    points = rng.normal(size=(5, 2)) * 3
    points[4] = points[0]
    assert set(max_determinant(gram(points), 5)[-1:]) <= {0, 4}
    assert not {0, 4} <= set(max_determinant(gram(points), 4))


def test_every_pick_is_the_best_next_one(rng):
    kernel = gram(rng.normal(size=(8, 2)))
    chosen = max_determinant(kernel, 4, noise=0.0)
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
    assert set(max_determinant(gram(points), 3)) == set(best) == {0, 1, 2}


def test_none_one_all_and_too_many():
    kernel = np.diag([1.0, 3.0, 2.0])
    assert max_determinant(kernel, 0) == []
    assert max_determinant(kernel, 1) == [1]
    assert max_determinant(kernel, 3) == [1, 2, 0]
    assert max_determinant(np.zeros((0, 0)), 0) == []
    with pytest.raises(ValueError, match="4 of 3"):
        max_determinant(kernel, 4)


def test_candidates_without_variance_still_give_a_batch():
    assert len(set(max_determinant(np.zeros((3, 3)), 3))) == 3
