"""The calibration tab on a campaign that learned some dozen labels, without a browser."""

from dataclasses import replace

import numpy as np
import pytest

from app import state as app_state
from app import theme
from app.views import calibration
from app.views.calibration import Calibration, table, told
from core import worker
from core.campaign import quality, whatif
from core.units import KCAL_PER_MOL

from .conftest import argon_campaign


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A campaign with enough labels to judge; do not change it."""
    directory = argon_campaign(tmp_path_factory.mktemp("learned"), "threshold", "0.002 kcal/mol")
    worker.run_inline(directory, until=lambda state: state.n_labels >= 8 + quality.ENOUGH + 2)
    return app_state.campaign(directory)


@pytest.fixture
def view(learned):
    made = Calibration(learned)
    made.update(learned.glance())
    return made


def test_a_campaign_without_labels_says_what_is_missing(argon):
    campaign = app_state.campaign(argon())
    view = Calibration(campaign)
    view.update(campaign.glance())
    assert view._note.visible and "Too few labels: none of 20" in view._note.object
    assert not view._left.visible and not view._right.visible and view._table.object == ""
    assert "Nothing recorded yet" in view._head.object and view._slider.disabled


def test_labels_are_drawn_against_their_bounds(view, learned):
    judged = quality.collect(learned.reader)
    data = view._errors._source.data
    error = np.abs(judged.error[judged.tested]) / KCAL_PER_MOL
    floor = calibration.SMALLEST_SHOWN * np.median(data["bound"])
    np.testing.assert_allclose(data["error"], np.maximum(error, floor))
    outside = error > data["bound"]
    assert [c == theme.LIGHT.bad for c in data["color"]] == outside.tolist()
    assert view._left.visible and view._right.visible and not view._note.visible
    assert len(view._reliability._source.data["observed"]) == len(quality.GRID)
    assert "95 % interval" in view._table.object and "nats" in view._table.object


def test_with_some_labels_errors_are_drawn_and_reliability_waits(view, monkeypatch):
    monkeypatch.setattr(quality, "ENOUGH", 1000)
    view._judge()
    assert view._left.visible and not view._right.visible and view._table.object == ""
    assert "of 1000" in view._note.object


def test_the_slider_tells_what_the_curve_says(view, learned):
    state = learned.glance().state
    in_force = state.energy_tolerance / KCAL_PER_MOL
    assert view._slider.value == pytest.approx(in_force)
    assert view._slider.marks[0]["value"] == view._slider.value
    before = view._told.object
    view._slider.value = float(view._slider.end)
    assert view._told.object != before and "in force" in view._told.object
    frames = learned.reader.frames_since(0)
    flagged = int((frames["kind"] == "flagged").sum())
    trusted = int((frames["kind"] != "untrusted").sum())
    assert f"<td>{flagged}</td>" in before
    assert f"{trusted} recorded frames" in view._head.object


def test_nothing_new_costs_nothing(view, learned, monkeypatch):
    def forbidden(*_):
        raise AssertionError("read without need")

    monkeypatch.setattr(quality, "collect", forbidden)
    monkeypatch.setattr(whatif, "curve", forbidden)
    glance = learned.glance()
    view.update(glance)
    view.update(replace(glance, at=glance.at + 10))


def test_a_long_run_is_caught_up_with_in_bites(learned, monkeypatch):
    monkeypatch.setattr(calibration, "BITE", 7)
    view, glance = Calibration(learned), learned.glance()
    view.update(glance)
    first = len(view._trace) if view._trace is not None else 0
    for _ in range(60):
        view.update(glance)
    whole = whatif.trace(learned.reader.frames_since(0), learned.reader.snapshots())
    assert first < len(whole) == len(view._trace)
    np.testing.assert_array_equal(view._trace.scale, whole.scale)


def test_colours_follow_the_mode(view):
    view.paint(theme.DARK)
    assert view._errors.figure.background_fill_color == theme.DARK.surface
    assert view._reliability._line.glyph.line_color == theme.DARK.accent
    assert theme.LIGHT.accent not in view._errors._source.data["color"]


def test_what_is_off_is_marked():
    off = quality.coverage(0.95, np.zeros(30, dtype=bool))
    fine = quality.coverage(0.95, np.ones(30, dtype=bool))
    scores = quality.Scores(30, 0.1, 1.2)
    reliability = quality.Reliability(*(quality.GRID for _ in range(4)))
    energy, conformal = (fine, fine, off), (fine,) * 3
    found = quality.Quality(38, 8, energy, conformal, fine, reliability, scores, scores, 0.5, 0.01)
    html = table(found)
    assert html.count('class="off"') == 1 and "0 of 30" in html and "0.1 ± 1.2 raw" in html


def test_without_a_curve_nothing_is_told():
    assert told(None, 0.5, 0.5) == ""
