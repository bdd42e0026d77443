"""Calibration against formulas worked out by hand and against sampled errors."""

import math

import numpy as np
import pytest
from crepes import ConformalRegressor

from core.calibration import Calibration, EnergyCalibration, LargestCalibration


def test_without_labels_trust_needs_sigma_below_0122_of_the_tolerance():
    prior = EnergyCalibration()  # arXiv 2507.13805: the threshold at n = 0
    assert prior.probability_within(0.121, 1.0) > 0.95 > prior.probability_within(0.123, 1.0)


def test_scale_follows_the_published_formula():
    calibration = EnergyCalibration()
    for z in (1.0, -2.0, 0.5):
        calibration = calibration.update(z)
    assert calibration.degrees_of_freedom == 6
    assert calibration.scale == pytest.approx(math.sqrt((10 + 0.5 * 5.25) / (1.5 + 1.5)))


@pytest.mark.parametrize("true_scale", [1.0, 4.0])
def test_interval_covers_as_asked_once_labels_have_come_in(true_scale, rng):
    calibration = EnergyCalibration()
    for z in true_scale * rng.standard_normal(400):
        calibration = calibration.update(z)
    bound = calibration.interval(1.0, 0.95)
    covered = np.mean(np.abs(true_scale * rng.standard_normal(20_000)) < bound)
    assert covered == pytest.approx(0.95, abs=0.015)
    assert calibration.probability_within(1.0, bound) == pytest.approx(0.95)


def test_force_bound_is_infinite_until_two_labels_and_then_the_conformal_rank():
    calibration = LargestCalibration(window=60)
    assert calibration.update(1.0).bound(0.1, 0.95) == math.inf
    for ratio in range(1, 40):
        calibration = calibration.update(float(ratio))
    assert calibration.factor(0.95, "conformal") == pytest.approx(38.0)  # rank ⌈40·0.95⌉ of 39


@pytest.mark.parametrize("confidence", [0.68, 0.9, 0.95])
def test_conformal_bound_is_that_of_a_normalised_conformal_regressor(confidence, rng):
    ratios, sigmas = rng.lognormal(0.0, 0.4, size=60), rng.uniform(0.5, 2.0, size=60)
    calibration = LargestCalibration(window=60)
    for ratio in ratios:
        calibration = calibration.update(float(ratio))
    peer = ConformalRegressor().fit(ratios * sigmas, sigmas=sigmas)
    low, high = peer.predict_int(np.zeros(1), sigmas=np.array([0.3]), confidence=confidence)[0]
    assert (-low, high) == pytest.approx((calibration.bound(0.3, confidence, "conformal"),) * 2)


@pytest.mark.parametrize("method", ["student-t", "conformal"])
@pytest.mark.parametrize("n", [4, 15, 30])
def test_force_bound_covers_exchangeable_ratios(method, n, rng):
    hits = []
    for _ in range(1000):
        calibration = LargestCalibration()
        draws = rng.lognormal(0.0, 0.4, size=n + 1)
        for ratio in draws[:-1]:
            calibration = calibration.update(ratio)
        hits.append(draws[-1] < calibration.factor(0.9, method))
    more = 1 / (n + 1) if method == "conformal" else 0.0  # ranks are whole numbers
    assert 0.87 < np.mean(hits) < 0.93 + more


def test_the_student_t_follows_ratios_that_drift():
    calibration = LargestCalibration()
    for k in range(60):
        calibration = calibration.update(math.exp(0.02 * k + 0.3 * (-1) ** k))
    median = calibration.factor(0.5)
    assert math.log(median) == pytest.approx(0.02 * (59 - 10), abs=0.05)  # ten labels behind


def test_the_bound_of_few_labels_scatters_less_by_the_student_t(rng):
    factors = []
    for _ in range(200):
        calibration = LargestCalibration(tuple(rng.normal(0.0, 0.3, size=30)))
        factors.append([calibration.factor(0.95, m) for m in ("student-t", "conformal")])
    by_t, by_ranks = np.std(factors, axis=0)
    assert by_t < 0.8 * by_ranks


@pytest.mark.parametrize("method", ["student-t", "conformal"])
def test_probability_and_bound_are_two_sides_of_one_law(method, rng):
    calibration = LargestCalibration(window=60)
    for ratio in rng.lognormal(0.0, 0.4, size=60):
        calibration = calibration.update(float(ratio))
    for confidence in (0.6, 0.9, 0.95):
        bound = calibration.bound(0.3, confidence, method)
        assert calibration.probability_within(0.3, bound * (1 + 1e-9), method) >= confidence
        assert calibration.probability_within(0.3, bound * (1 - 1e-9), method) < confidence
    assert LargestCalibration((0.0,)).probability_within(1.0, 9.0, method) == 0
    assert calibration.probability_within(1e-6, 1.0, method) > 0.999
    same = LargestCalibration((0.0, 0.0, 0.0))
    assert same.probability_within(1.0, 0.9, method) == 0
    assert same.probability_within(1.0, 1.1, method) >= 0.75


@pytest.mark.parametrize("method", ["student-t", "conformal"])
def test_either_way_of_judging_the_energy_covers_as_asked(method, rng):
    calibration = Calibration()
    for z in 2.5 * rng.standard_t(8, size=60):
        calibration = calibration.update(float(z), 1.0)
    _, bound = calibration.energy_within(1.0, tolerance=1.0, confidence=0.9, method=method)
    assert np.mean(np.abs(2.5 * rng.standard_t(8, size=20_000)) < bound) == pytest.approx(
        0.9, abs=0.06
    )


def test_conformal_trusts_nothing_before_there_are_labels():
    limits = {"energy_tolerance": 0.02, "force_tolerance": None, "confidence": 0.95}
    seen = Calibration().assess(1e-9, 1e-9, method="conformal", **limits)
    assert seen.reasons == ("energy",) and seen.energy_bound == math.inf


def test_assessment_names_every_tolerance_that_may_break():
    calibration = Calibration().update(1.0, 1.0).update(1.0, 1.2)
    limits = {"energy_tolerance": 0.02, "force_tolerance": 0.1, "confidence": 0.95}
    assert calibration.assess(1e-4, 1e-4, **limits).trusted
    assert calibration.assess(1.0, 1e-4, **limits).reasons == ("energy",)
    assert calibration.assess(1.0, 1.0, **limits).reasons == ("energy", "force")
    no_force = {**limits, "force_tolerance": None}
    assert calibration.assess(1e-4, 1.0, **no_force).trusted


def test_all_chances_of_breaking_a_tolerance_are_taken_off_together():
    calibration = Calibration()
    for k in range(40):
        calibration = calibration.update(0.5, 1.0 + 0.01 * k, 1.0 + 0.01 * k)
    limits = {"energy_tolerance": 0.02, "confidence": 0.9}
    only = calibration.assess(0.02, 0.1, force_tolerance=None, **limits)
    assert only.within == pytest.approx(only.probability) and 0.5 < only.within < 0.95
    force = calibration.force.probability_within(0.1, 0.137)
    both = calibration.assess(0.02, 0.1, force_tolerance=0.137, **limits)
    assert both.within == pytest.approx(only.probability + force - 1) and force < 1
    stress = calibration.stress.probability_within(0.1, 0.137)
    tensor = {"sigma_stress": 0.1, "stress_tolerance": 0.137}
    three = calibration.assess(0.02, 0.1, force_tolerance=0.137, **limits, **tensor)
    assert three.within == pytest.approx(both.within + stress - 1)
    tensor["sigma_stress"] = math.nan  # asked for, but not known
    assert calibration.assess(0.02, 0.1, force_tolerance=None, **limits, **tensor).within == 0


def test_old_labels_are_forgotten_where_the_weights_keep_changing():
    energy, force = EnergyCalibration(memory=10.0), LargestCalibration(window=20)
    for z in [8.0] * 10 + [0.5] * 60:
        energy, force = energy.update(z), force.update(z)
    assert energy.scale < 1.5 and force.factor(0.95) == pytest.approx(0.5)
