import shutil

import numpy as np
import pytest

from core.campaign.audit import audit, block_bootstrap, block_length, correlation_time
from core.errors import InputError


def ar1(rng: np.random.Generator, n: int, phi: float) -> np.ndarray:
    """A first-order autoregressive series of unit variance."""
    x = rng.standard_normal(n)
    for i in range(1, n):
        x[i] = phi * x[i - 1] + np.sqrt(1 - phi**2) * x[i]
    return x


def test_the_correlation_time_of_a_known_series(rng):
    assert correlation_time(ar1(rng, 20_000, 0.8)) == pytest.approx(9.0, rel=0.25)
    assert correlation_time(rng.standard_normal(20_000)) == pytest.approx(1.0, abs=0.1)


def test_the_interval_covers_the_mean_of_a_correlated_series(rng):
    covered, covered_naive = [], []
    for _ in range(200):
        x = ar1(rng, 400, 0.8)
        low, high = block_bootstrap(x, block=block_length(x), resamples=300)
        covered.append(low < 0 < high)
        low, high = block_bootstrap(x, block=1, resamples=300)
        covered_naive.append(low < 0 < high)
    assert 0.85 < np.mean(covered) <= 1
    assert np.mean(covered_naive) < 0.65


def test_the_interval_does_not_change_from_run_to_run(rng):
    x = rng.standard_normal(50)
    assert block_bootstrap(x, block=3) == block_bootstrap(x, block=3)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0]])
def test_few_or_equal_values_are_no_error(values):
    values = np.array(values)
    low, high = block_bootstrap(values, block=block_length(values))
    assert (np.isnan(low) and len(values) == 0) or low == high == 1.0


def test_the_audit_of_a_campaign(finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "copy")
    report = audit(directory, 20)
    assert report.frames + sum(report.excluded.values()) == 10
    assert report.excluded["labelled"] >= 1
    assert report.within_tolerance > 0.5 and report.interval[0] <= report.within_tolerance
    assert report.rmse_eV < report.rmse_untuned_eV
    bought = sorted((directory / "audit").glob("*.npz"))
    assert len(bought) == report.frames
    times = [path.stat().st_mtime_ns for path in bought]
    assert audit(directory, 20) == report
    assert [path.stat().st_mtime_ns for path in bought] == times


def test_an_audit_between_stored_frames_is_refused(finished):
    with pytest.raises(InputError, match="every 10 steps"):
        audit(finished, 15)
