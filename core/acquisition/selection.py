"""Choose a batch from candidates by their features: arrays in, indices out.

Features are rows (S, D) whose inner products are a kernel. Training points, where given, are
conditioned on: what is near them is not chosen again. Every method returns indices in the order of
choosing, at most as many as there are candidates, ties to the smaller index; of exact duplicates,
and of candidates that repeat a training point, none is chosen while others are left.
"""

from __future__ import annotations

import numpy as np

CHUNK = 4096
"""Candidates whose distances are computed at once."""


def greedy_determinant(
    features: np.ndarray, n: int, *, noise: float, train: np.ndarray | None = None
) -> list[int]:
    """Greedily choose `n` of S candidates (S, D) so that their kernel's determinant is largest.

    Each pick has the largest variance given those already chosen and the training points (T, D), so
    near-duplicates are passed over. Civril and Magdon-Ismail, 10.1016/j.tcs.2009.06.018. Works in
    feature space: O(S D) for each pick and D² memory, no kernel of all candidates.

    Args:
        noise: s of the observations, in the units of the features' inner products' root.
    """
    size = len(features)
    features = np.asarray(features, dtype=float)
    covariance = _covariance(features.shape[1], train, noise)
    variance = np.einsum("sd,de,se->s", features, covariance, features, optimize=True)
    chosen: list[int] = []
    for _ in range(min(n, size)):
        variance[chosen] = -np.inf
        pick = int(np.argmax(variance))
        chosen.append(pick)
        along = covariance @ features[pick]
        scale = noise**2 + float(features[pick] @ along)
        variance = variance - (features @ along) ** 2 / scale
        covariance -= np.outer(along, along) / scale
    return chosen


def _covariance(width: int, train: np.ndarray | None, noise: float) -> np.ndarray:
    """Return the covariance (D, D) of unit weights after observing the training points."""
    precision = np.eye(width)
    if train is not None and len(train):
        precision += np.asarray(train, float).T @ np.asarray(train, float) / noise**2
    return np.linalg.inv(precision)


def largest_cluster_maximum_distance(
    features: np.ndarray, n: int, *, train: np.ndarray | None = None
) -> list[int]:
    """Choose `n` of S candidates (S, D) by LCMD; `train` (T, D) are the first centres.

    Every candidate belongs to its nearest centre; of the cluster with the largest sum of squared
    distances the farthest candidate becomes a centre. Holzmüller et al., arXiv 2203.09410. Without
    training points the first pick is the candidate of the largest norm.
    """
    chosen, squared, owner = _start(features, n, train)
    centres = 0 if train is None else len(train)
    while len(chosen) < min(n, len(features)):
        open_ = np.ones(len(features), dtype=bool)
        open_[chosen] = False
        weights = np.bincount(owner, weights=np.where(open_, squared, 0.0), minlength=1)
        inside = open_ & (owner == int(np.argmax(weights)))
        if not weights.any():  # only duplicates are left
            inside = open_
        pick = int(np.argmax(np.where(inside, squared, -np.inf)))
        chosen.append(pick)
        _add_centre(features, pick, centres + len(chosen) - 1, squared, owner)
    return chosen


def farthest_points(features: np.ndarray, n: int, *, train: np.ndarray | None = None) -> list[int]:
    """Choose `n` of S candidates (S, D), each farthest from all chosen and training points."""
    chosen, squared, owner = _start(features, n, train)
    centres = 0 if train is None else len(train)
    while len(chosen) < min(n, len(features)):
        open_ = np.ones(len(features), dtype=bool)
        open_[chosen] = False
        pick = int(np.argmax(np.where(open_, squared, -np.inf)))
        chosen.append(pick)
        _add_centre(features, pick, centres + len(chosen) - 1, squared, owner)
    return chosen


def _start(
    features: np.ndarray, n: int, train: np.ndarray | None
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return the first picks, and of every candidate the squared distance to its centre, and it."""
    squared = np.full(len(features), np.inf)
    owner = np.zeros(len(features), dtype=np.int64)
    chosen: list[int] = []
    if train is not None and len(train):
        for k in range(len(train)):
            _nearer(features, train[k], k, squared, owner)
    elif n > 0 and len(features):
        chosen = [int(np.argmax((np.asarray(features) ** 2).sum(axis=1)))]
        _add_centre(features, chosen[0], 0, squared, owner)
    return chosen, squared, owner


def _add_centre(
    features: np.ndarray, pick: int, number: int, squared: np.ndarray, owner: np.ndarray
) -> None:
    _nearer(features, features[pick], number, squared, owner)
    squared[pick] = 0.0


def _nearer(
    features: np.ndarray, centre: np.ndarray, number: int, squared: np.ndarray, owner: np.ndarray
) -> None:
    """Give to a new centre the candidates that are nearer to it."""
    for start in range(0, len(features), CHUNK):
        part = slice(start, start + CHUNK)
        distance = ((features[part] - centre) ** 2).sum(axis=1)
        closer = distance < squared[part]
        squared[part][closer] = distance[closer]
        owner[part][closer] = number


def top(scores: np.ndarray, n: int) -> list[int]:
    """Return the indices of the `n` largest of the scores (S,), the largest first."""
    order = np.argsort(-np.asarray(scores, dtype=float), kind="stable")
    return [int(i) for i in order[:n]]


def at_random(size: int, n: int, rng: np.random.Generator) -> list[int]:
    """Return `n` of `size` candidates in random order."""
    return [int(i) for i in rng.permutation(size)[:n]]


def standardised(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation (D,) of rows (S, D), never zero."""
    spread = rows.std(axis=0)
    return rows.mean(axis=0), np.where(spread > 0, spread, 1.0)
