import shutil
import sqlite3

import numpy as np
import pytest

from core import settings, worker
from core.campaign import store
from core.campaign.audit import audit, block_bootstrap, block_length, correlation_time
from core.campaign.export import export
from core.campaign.reader import CampaignReader
from core.errors import InputError
from core.units import GPA


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


@pytest.fixture(scope="module")
def tense(tmp_path_factory, crystal):
    """A campaign on a crystal with a tolerance on stress; do not change it."""
    folder = tmp_path_factory.mktemp("tense")
    worker.prepare(folder / "argon", crystal(folder, trust__stress_tolerance="0.02 GPa"))
    assert worker.run_inline(folder / "argon").phase == "finished"
    return folder / "argon"


def test_a_promise_on_stress_is_audited(tense, tmp_path):
    directory = shutil.copytree(tense, tmp_path / "copy")
    report = audit(directory, 10)
    assert report.frames > 5 and report.stress_within_tolerance > 0.8
    assert 0 < report.stress_mean_max_error < 0.02 * GPA


def test_stress_is_kept_with_frames_labels_and_scores(tense, tmp_path):
    with CampaignReader(tense) as reader:
        labels, state = reader.labels(), reader.state()
        last = reader.frame(int(reader.frames_since(1)["id"][-1]))
    assert all(label.stress.shape == (3, 3) and label.stress_ratio > 0 for label in labels)
    assert last.stress.shape == (3, 3) and last.sigma_stress > 0 < last.stress_bound
    assert all(q.stress_bound is not None for q in state.queue)
    export(tense, tmp_path / "all.xyz")
    text = (tmp_path / "all.xyz").read_text()
    assert 'REF_stress="' in text and "stress_bound=" in text


def test_a_tolerance_on_stress_needs_a_crystal():
    given = {"structure": {"name": "H2O"}, "trust": {"stress_tolerance": "1 GPa"}}
    with pytest.raises(InputError, match="does not repeat in all three directions"):
        settings.structure_of(settings.from_dict(given))


def test_a_campaign_begun_before_there_was_stress_can_be_opened(finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "old")
    connection = sqlite3.connect(directory / "campaign.sqlite")
    for table, columns in store._COLUMNS.items():
        for column in columns:
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    connection.execute(
        "UPDATE meta SET value = json_remove(value, '$.trust.stress_tolerance', "
        "'$.posterior.noise_stress') WHERE key = 'settings'"
    )
    connection.commit()
    connection.close()
    with CampaignReader(directory) as reader:
        assert reader.frame(2).stress is None and reader.labels()[0].stress is None
    assert worker.run_inline(directory).phase == "finished"
