"""Streamed residual variance against the dense formula."""

import numpy as np
import pytest

from core.acquisition.variance import ResidualVariance


def test_it_equals_the_dense_formula_however_it_is_streamed(rng):
    train, pool, noise = rng.normal(size=(30, 12)), rng.normal(size=(50, 12)), 0.2
    streamed = ResidualVariance(12, noise)
    for part in np.array_split(train, 7):
        streamed.observe(part)
    K, k = train @ train.T + noise**2 * np.eye(30), pool @ train.T
    dense = (pool**2).sum(1) - np.einsum("pt,pt->p", k, np.linalg.solve(K, k.T).T)
    found = np.concatenate([streamed.of(part) for part in np.array_split(pool, 4)])
    np.testing.assert_allclose(found, dense, rtol=1e-8)


def test_without_training_it_is_the_prior_and_what_is_observed_is_known(rng):
    rows = rng.normal(size=(5, 4))
    variance = ResidualVariance(4, 0.1)
    np.testing.assert_allclose(variance.of(rows), (rows**2).sum(1))
    variance.observe(rows)
    assert (variance.of(rows) < 0.1**2).all()
    before = variance.of(rows[:1])
    variance.observe(rows[:1])
    assert variance.of(rows[:1])[0] < before[0]


@pytest.mark.parametrize("n", [0, 1])
def test_empty_and_single_chunks(rng, n):
    variance = ResidualVariance(3, 0.1)
    variance.observe(np.zeros((0, 3)))
    assert variance.of(rng.normal(size=(n, 3))).shape == (n,)
