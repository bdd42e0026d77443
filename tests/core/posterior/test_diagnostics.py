"""R-hat and effective sample size on chains whose mixing is known."""

import numpy as np
import pytest

from core.posterior.diagnostics import effective_size, split_r_hat


def autoregressive(rng, memory, chains=4, n=20_000):
    """x' = a x + √(1 - a²) ξ, whose draws are worth n (1 - a)/(1 + a)."""
    x = rng.standard_normal(chains)
    out = np.empty((chains, n))
    for t in range(n):
        x = memory * x + np.sqrt(1 - memory**2) * rng.standard_normal(chains)
        out[:, t] = x
    return out


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_draws_that_remember_are_worth_fewer(rng, memory):
    draws = autoregressive(rng, memory)
    assert effective_size(draws) == pytest.approx(80_000 * (1 - memory) / (1 + memory), rel=0.15)
    assert split_r_hat(draws) == pytest.approx(1, abs=0.01)


def test_chains_apart_and_chains_that_drift_have_not_mixed(rng):
    apart = rng.standard_normal((4, 1000)) + np.arange(4)[:, None]
    assert split_r_hat(apart) > 1.3 and effective_size(apart) < 30
    drifting = rng.standard_normal((4, 1000)) + np.linspace(0, 4, 1000)
    assert split_r_hat(drifting) > 1.3


def test_r_hat_by_hand():
    draws = np.array([[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 2.0, 3.0]])
    # halves (0,1), (4,5), (2,3), (2,3): W = 0.5, means 0.5, 4.5, 2.5, 2.5, B = 2 * 8/3
    assert split_r_hat(draws) == pytest.approx(np.sqrt((0.5 * 0.5 + 8 / 3) / 0.5))


def test_what_cannot_be_said():
    assert np.isnan(split_r_hat(np.zeros((2, 3)))) and np.isnan(effective_size(np.zeros((2, 2))))
    assert split_r_hat(np.zeros((2, 8))) == 1 and np.isinf(split_r_hat(np.eye(2).repeat(8, 1)))
