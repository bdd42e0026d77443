"""The series of a campaign that is written by hand, frame by frame."""

import ase
import numpy as np
import pytest

from app import series as series_
from app.series import Series, extremes
from core.campaign import store
from core.campaign.reader import CampaignReader


@pytest.fixture
def written(argon, monkeypatch):
    """A series, and a function that stores a frame at a step."""
    monkeypatch.setattr(series_, "FRESH_S", 0.0)
    directory = argon()
    writer, reader = store.Store(directory), CampaignReader(directory)
    still = reader.structure.positions

    def add(step: int, kind: str = "trusted", **given) -> int:
        stretched = still * (1 + 0.001 * step)
        frame = store.Frame(
            step=step, time=float(step), kind=kind, positions=stretched,
            velocities=still, forces=still, sigma_atoms=np.ones(len(still)), **given,
        )  # fmt: skip
        return writer.add_frame(frame)

    yield Series(reader), add, writer
    writer.close()


def test_frames_are_added_as_they_are_written(written):
    series, add, _ = written
    series.follow()
    assert series["step"].tolist() == [0] and series.trusted_from is None
    add(10, "untrusted", energy=1.0)
    add(20, energy=2.0)
    series.follow()
    assert series["step"].tolist() == [0, 10, 20]
    assert series["kind"].tolist() == [0, 0, 1] and series.trusted_from == 2
    assert series.index(3) == 2 and series.index(4) is None


def test_frames_gone_back_on_are_found_when_the_step_falls(written):
    series, add, writer = written
    for step in (10, 20, 30):
        add(step)
    series.follow()
    before = series.version
    writer.mark_rewound(10)
    add(20)
    series.follow()
    assert series["rewound"].tolist() == [0, 0, 1, 1, 0] and series.version > before


def test_energies_before_trust_are_given_the_later_offset(written):
    series, add, _ = written
    add(10, "untrusted", energy=5.0, offset=0.0)
    series.follow()
    assert series.relative_energy[1] == 0.0
    add(20, energy=-94.0, offset=-100.0)
    add(30, energy=-93.5, offset=-100.5)
    series.follow()
    np.testing.assert_allclose(series.relative_energy[1:], [-1.0, 0.0, 0.5])


def test_a_coordinate_covers_frames_stored_before_and_after(written):
    series, add, _ = written
    add(10)
    series.follow()
    first = series.coordinate((0, 1))
    add(20)
    series.follow()
    values = series.coordinate((0, 1))
    assert len(first) == 2 and len(values) == 3
    np.testing.assert_allclose(values / values[0], [1.0, 1.01, 1.02])


def test_a_coordinate_grows_with_the_cell(breathed):
    reader = CampaignReader(breathed)
    series = Series(reader)
    while len(series) < len(reader.frames_since(0)["id"]):
        series.follow()
    lengths, angles = series.coordinate((0, 1)), series.coordinate((0, 1, 2))
    scales = reader.scales_since(0)
    assert scales.min() < 0.99 and len(lengths) == len(scales)
    for k in (0, len(scales) // 2, len(scales) - 1):
        frame = reader.frame(int(series["id"][k]))
        atoms = ase.Atoms("Ar3", frame.positions[:3], cell=frame.cell, pbc=True)
        assert lengths[k] == pytest.approx(atoms.get_distance(0, 1, mic=True), abs=1e-5)
        assert angles[k] == pytest.approx(atoms.get_angle(0, 1, 2, mic=True), abs=1e-3)


def test_a_long_series_is_read_in_parts(written, monkeypatch):
    series, add, _ = written
    for step in range(10, 60, 10):
        add(step)
    monkeypatch.setattr(series_, "CHUNK", 2)
    monkeypatch.setattr(series_, "BUDGET_S", 0.0)
    series.follow()
    assert len(series) == 2
    for _ in range(3):
        series.follow()
    assert series["step"].tolist() == [0, 10, 20, 30, 40, 50]


def test_thinning_keeps_every_extreme_and_few_rows(rng):
    noise, flat = rng.normal(size=100_000), np.full(100_000, np.nan)
    noise[[12_345, 70_001]] = 9.0, -9.0
    flat[500] = 1.0
    kept = extremes([noise, flat], bins=100)
    assert {0, 500, 12_345, 70_001, 99_999} <= set(kept) and len(kept) <= 402
    assert (np.diff(kept) > 0).all()
    assert extremes([noise[:50]], bins=100).tolist() == list(range(50))
    assert len(extremes([noise[:0]], bins=100)) == 0
