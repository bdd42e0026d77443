"""Metrics on errors whose law is known."""

import numpy as np
import pytest

from core.uncertainty import metrics, rank_correlation


@pytest.fixture
def honest(rng):
    sigmas = rng.lognormal(-3, 0.5, size=20_000)
    return sigmas * rng.standard_normal(20_000), sigmas


def test_honest_sigmas(honest):
    found = metrics(*honest)
    assert found.z == pytest.approx(1, abs=0.02) and found.miscalibration < 0.01
    assert found.coverage == pytest.approx((0.68, 0.90, 0.95), abs=0.01)
    assert found.rmse == pytest.approx(found.sharpness, rel=0.03)
    assert found.nll == pytest.approx(
        np.mean(np.log(honest[1]) + 0.5 * np.log(2 * np.pi) + 0.5), abs=0.02
    )
    assert found.crps == pytest.approx(np.mean(honest[1]) / np.sqrt(np.pi), rel=0.03)


def test_a_wrong_scale_is_seen_and_leaves_the_ranking(honest):
    errors, sigmas = honest
    right, wrong = metrics(errors, sigmas), metrics(errors, sigmas / 5)
    assert wrong.z == pytest.approx(5 * right.z) and wrong.coverage[2] < 0.4
    assert wrong.nll > right.nll + 5 and wrong.miscalibration > 0.3
    assert wrong.spearman == pytest.approx(right.spearman)


def test_a_ranking_that_says_nothing(honest, rng):
    errors, sigmas = honest
    assert metrics(errors, rng.permutation(sigmas)).spearman == pytest.approx(0, abs=0.03)
    assert np.isnan(rank_correlation(np.abs(errors), np.ones(len(errors))))
    assert rank_correlation(np.arange(5.0), np.arange(5.0) ** 3) == pytest.approx(1)
