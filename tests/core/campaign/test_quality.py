import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from core.calibration import Calibration, EnergyCalibration, LargestCalibration
from core.campaign import quality
from core.campaign.learner import calibration_to_dict
from core.campaign.reader import CampaignReader
from core.campaign.state import Query, State
from core.campaign.store import LabelRow
from core.units import KCAL_PER_MOL

STOOD = Calibration(
    EnergyCalibration(weight=30.0, sum_z2=120.0), LargestCalibration(tuple(np.log([1.0, 2.0, 3.0])))
)
NU, SCALE = STOOD.energy.degrees_of_freedom, STOOD.energy.scale
SIGMA = 0.01


def label(i: int, error: float, *, calibration=STOOD, force_ratio: float = 1.0) -> LabelRow:
    return LabelRow(
        query_id=i, frame_id=i + 1, energy=-3.0 + error, forces=np.zeros((7, 3)), fingerprint="lj",
        wall_s=1.0, at=0.0, predicted=-3.0, z=error / SIGMA, force_ratio=force_ratio, learned=1,
        sigma_energy=SIGMA, sigma_force=0.1,
        calibration=None if calibration is None else calibration_to_dict(calibration),
    )  # fmt: skip


def state_of(ready: State, n: int, **changes) -> State:
    query = Query(
        id=1, step=10, frame_id=2, key="k", reasons=("energy",), sigma_energy=SIGMA,
        sigma_force=0.1, probability=0.5, energy_bound=0.04, force_bound=0.2, energy_tolerance=0.02,
        force_tolerance=None, snapshot=1, at=0.0,
    )  # fmt: skip
    return replace(ready, queue=tuple(replace(query, id=i, **changes) for i in range(1, n + 1)))


def quality_of(ready, errors, **given) -> quality.Quality:
    rows = [label(i, e, **given) for i, e in enumerate(errors, 1)]
    return quality.assess(quality.judged(rows, state_of(ready, len(rows))))


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_errors_drawn_from_the_student_t_are_covered_and_wider_ones_are_not(ready, rng, factor):
    errors = factor * SCALE * SIGMA * rng.standard_t(NU, 2000)
    found = quality_of(ready, errors)
    honest = factor == 1.0
    assert [c.level for c in found.energy] == [0.68, 0.9, 0.95]
    assert all(c.n == 2000 and c.fits == honest for c in found.energy)
    off = np.abs(found.reliability.observed - found.reliability.expected).max()
    assert off < 0.04 if honest else off > 0.2
    assert found.calibrated_z.std == pytest.approx(factor, rel=0.1 if honest else 0.3)
    assert found.z.std == pytest.approx(errors.std(ddof=1) / SIGMA)


def test_the_likelihood_is_that_of_the_student_t_in_kcal(ready):
    found = quality_of(ready, [0.01, -0.03])
    density = stats.t(NU, scale=SCALE * SIGMA / KCAL_PER_MOL)
    expected = -density.logpdf(np.array([0.01, -0.03]) / KCAL_PER_MOL).mean()
    assert found.nll == pytest.approx(expected)
    assert found.rmse == pytest.approx(np.sqrt(0.0005))


def test_the_bound_is_the_one_the_calibration_gave(ready):
    judged = quality.judged([label(1, 0.01)], state_of(ready, 1))
    assert judged.bound[0] == pytest.approx(STOOD.energy.interval(SIGMA, 0.95))
    assert judged.force_bound[0] == pytest.approx(STOOD.force.bound(0.1, 0.95))
    assert judged.shown[0] == 0.04 and judged.error[0] == pytest.approx(0.01)


def test_force_coverage_counts_the_largest_errors_below_their_bound(ready):
    factor = STOOD.force.factor(0.95)
    rows = [label(i, 0.0, force_ratio=r) for i, r in enumerate((0.5, 0.99, 1.01), 1)]
    rows = [replace(row, force_ratio=row.force_ratio * factor) for row in rows]
    found = quality.assess(quality.judged(rows, state_of(ready, 3)))
    assert (found.force.inside, found.force.n, found.force.level) == (2, 3, 0.95)


def test_conformal_bounds_are_judged_beside_the_student_t(ready, rng):
    draws = np.abs(rng.standard_normal(60))
    stood = replace(STOOD, scores=LargestCalibration(tuple(np.log(draws)), window=60))
    found = quality_of(ready, SIGMA * rng.standard_normal(3000), calibration=stood)
    for c in found.conformal:
        assert c.n == 3000 and c.fraction == pytest.approx(c.level, abs=0.12)
    ranks = np.sort(draws)
    expected = (np.abs(rng.standard_normal(50_000)) < ranks[int(np.ceil(61 * 0.9)) - 1]).mean()
    assert found.conformal[1].fraction == pytest.approx(expected, abs=0.02)
    assert quality_of(ready, [0.01, 0.02]).conformal[0].n == 0  # no scores yet: no bound


def test_the_first_labels_are_counted_but_not_judged(ready):
    rows = [
        replace(label(i, 0.02, calibration=None), sigma_energy=None, sigma_force=None)
        for i in range(1, 4)
    ]
    judged = quality.judged(rows, state_of(ready, 3, reasons=("initial",)))
    assert judged.initial.all() and not judged.tested.any()
    np.testing.assert_allclose(judged.sigma, SIGMA)
    found = quality.assess(judged)
    assert (found.labels, found.initial, found.tested) == (3, 3, 0)
    assert "none of 20" in found.verdict and "20 more are needed" in found.verdict
    assert np.isnan(found.nll) and found.energy[0].n == 0


def test_too_few_labels_are_said_plainly(ready):
    few = quality_of(ready, [0.01] * 19)
    assert not few.enough and "19 of 20" in few.verdict and "1 more is needed" in few.verdict
    assert quality_of(ready, [0.01] * 20).enough


def test_a_label_without_a_score_is_left_out(ready):
    rows = [label(1, 0.01), replace(label(2, 0.01), predicted=None, z=None)]
    assert len(quality.judged(rows, state_of(ready, 2))) == 1


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (9, 10, 0.5550, 0.9975), (0, 0, 0.0, 1.0)],
)
def test_exact_intervals_of_a_fraction(k, n, low, high):
    assert quality.clopper_pearson(k, n) == pytest.approx((low, high), abs=1e-4)


def test_a_campaign_keeps_what_its_labels_were_judged_by(strict):
    with CampaignReader(strict) as reader:
        judged = quality.collect(reader)
        frames = {q.id: reader.frame(q.frame_id) for q in reader.state().queue}
        first = json.dumps(reader.snapshots()[0].calibration)
        rows = reader.labels()
    flagged = ~judged.initial
    assert judged.initial.sum() == 3 and (flagged == judged.tested).all() and flagged.any()
    for at in np.flatnonzero(flagged):
        frame = frames[int(judged.query_id[at])]
        assert judged.sigma[at] == pytest.approx(frame.sigma_energy)
        assert judged.bound[at] == pytest.approx(frame.energy_bound)
        assert judged.force_bound[at] == pytest.approx(frame.force_bound)
        error = np.linalg.norm(rows[at].forces - frame.forces, axis=1).max()
        assert judged.force_error[at] == pytest.approx(error, rel=1e-3, abs=1e-8)
    earliest = min((row for row in rows if row.calibration), key=lambda row: row.learned)
    assert json.dumps(earliest.calibration) == first
