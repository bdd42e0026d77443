"""The plots without a browser: give them a glance, read their sources; on a campaign that ran."""

from types import SimpleNamespace

import numpy as np
import pytest

from app import state as app_state
from app import theme
from app.selection import Selection
from app.views import traces as traces_
from app.views.traces import Traces, bound_axis, data_axis, stretch_ends, with_gaps
from core.units import GPA


@pytest.fixture
def shown(ran):
    """Traces of a campaign that ran, its selection and its state."""
    campaign, selection = app_state.campaign(ran), Selection()
    view = Traces(campaign, selection)
    view.paint(theme.LIGHT)
    view.update(campaign.glance())
    return view, selection, campaign


def test_an_empty_campaign_is_shaded_as_untrusted(argon):
    campaign = app_state.campaign(argon())
    view = Traces(campaign, Selection())
    view.update(campaign.glance())
    plot = view._plots["force_bound"]
    assert plot._shade.right == view._x.end and plot._limit.location == 0.02
    assert not view._plots["coordinate"].row.visible


def test_every_frame_of_a_short_run_is_drawn(shown):
    view, _, campaign = shown
    drawn = view._kept.data
    kept = campaign.series["rewound"] == 0
    assert drawn["step"].tolist() == campaign.series["step"][kept].tolist()
    first = campaign.series.trusted_from
    assert drawn["energy"][first] == 0.0
    assert np.isnan(drawn["energy_bound"][:first]).all()
    assert np.isfinite(drawn["energy_bound"][first:]).all()


def test_a_crystal_shows_the_bound_of_its_stress(breathed, shown):
    campaign = app_state.campaign(breathed)
    view = Traces(campaign, Selection())
    view.paint(theme.LIGHT)
    view.update(campaign.glance())
    drawn, first = view._kept.data["stress_bound"], campaign.series.trusted_from
    assert np.isfinite(drawn[first:]).all()
    frame = campaign.reader.frame(int(campaign.series["id"][first]))
    assert drawn[first] == pytest.approx(frame.stress_bound / GPA, rel=1e-5)
    assert view._plots["stress_bound"]._limit.location == pytest.approx(0.05)
    assert "stress_bound" not in shown[0]._plots


def test_new_frames_are_streamed_and_nothing_is_sent_again(shown, monkeypatch):
    view, _, campaign = shown
    sent = []
    monkeypatch.setattr(view, "_redraw", lambda coordinate: sent.append("all"))
    view._read -= 3
    view._drawn = view._drawn[:-3]
    before = len(view._kept.data["step"])
    view.update(campaign.glance())
    assert len(view._kept.data["step"]) == before + 3 and sent == []


def test_a_long_run_is_thinned_on_the_server(shown, monkeypatch):
    view, _, campaign = shown
    monkeypatch.setattr(traces_, "POINTS", 20)
    monkeypatch.setattr(traces_, "FINE", 2)
    view._read = 0
    view.update(campaign.glance())
    drawn, energy = view._kept.data, campaign.series["energy"]
    assert len(drawn["step"]) < len(campaign.series) / 2
    highest = campaign.series["step"][np.nanargmax(energy)]
    assert highest in drawn["step"]


def test_marks_tell_labelled_from_flagged_and_stay_inside_the_axis(shown):
    view, _, campaign = shown
    marks, queue = view._marks.data, campaign.glance().state.queue
    assert sorted(marks["id"].tolist()) == sorted(q.frame_id for q in queue)
    assert set(marks["fill"]) == {theme.LIGHT.accent}
    top = view._plots["energy_bound"].top
    assert (marks["energy_bound"][np.isfinite(marks["energy_bound"])] <= top).all()


def test_a_click_on_a_point_or_a_mark_shows_its_frame(shown):
    view, selection, campaign = shown
    plot, marks = view._plots["energy"], view._marks.data
    last = campaign.series["step"][-1]
    view._clicked(plot, SimpleNamespace(x=float(last) + 2, y=plot._y.start - 1e9))
    assert selection.frame == campaign.series["id"][-1]
    query = campaign.glance().state.queue[3]
    at = marks["id"].tolist().index(query.frame_id)
    view._clicked(plot, SimpleNamespace(x=marks["step"][at], y=float(marks["energy"][at])))
    assert (selection.frame, selection.query) == (query.frame_id, query.id)
    assert plot._here.visible and plot._here.location == query.step
    selection.go_live()
    assert not plot._here.visible


def test_zooming_ends_following_and_follow_brings_it_back(shown):
    view, _, campaign = shown
    view._x.update(start=50, end=90)
    view.update(campaign.glance())
    assert not view.following and view._follow.visible and view._x.end == 90
    view.follow()
    assert view.following and view._x.start == 0 and view._x.end > campaign.glance().step


def test_headings_say_what_the_dashed_lines_stand_for(shown):
    view, _, campaign = shown
    glance = campaign.glance()
    assert "target</i> 20.0<" in view._plots["temperature"]._head.object
    assert "limit" not in view._plots["energy"]._head.object
    plot = view._plots["force_bound"]
    tolerance = glance.state.force_tolerance
    for value, shown_as in ((1.01 * tolerance, "now over"), (0.99 * tolerance, '"now"')):
        plot.say(value, glance)
        assert "tolerance</i> 0.020<" in plot._head.object and shown_as in plot._head.object
        assert f"{value:.4f}" in plot._head.object


def test_a_coordinate_gets_a_plot_of_its_own(shown):
    view, selection, campaign = shown
    selection.coordinate = (0, 1, 2)
    view.update(campaign.glance())
    plot = view._plots["coordinate"]
    assert plot.row.visible and "Angle Ar1–Ar2–Ar3" in plot._head.object
    angle = view._kept.data["coordinate"]
    atoms = campaign.structure.to_atoms()
    assert angle[0] == pytest.approx(atoms.get_angle(0, 1, 2), abs=1e-4)
    assert np.isfinite(angle).all()
    selection.coordinate = ()
    assert not plot.row.visible


def test_the_axis_of_bounds_holds_the_first_trusted_frames_too():
    assert bound_axis(np.array([0.1, 0.2]), 1.0) == 2.5
    assert bound_axis(np.full(5, 7.0), 1.0) == 10.0
    assert bound_axis(np.full(5, 1e6), 1.0) == 50.0
    assert bound_axis(np.zeros(0), None) == 0.3


def test_an_axis_moves_only_when_it_must():
    assert data_axis(np.array([1.0, 9.0]), (0.0, 10.0)) == (0.0, 10.0)
    low, high = data_axis(np.array([1.0, 11.0]), (0.0, 10.0))
    assert low < 1 and high > 11
    assert data_axis(np.array([1.0, 2.0]), (0.0, 10.0))[1] < 3
    assert data_axis(np.zeros(0), (0.0, 10.0)) == (0.0, 10.0)


def test_a_rewound_stretch_ends_where_it_was_given_up():
    step = np.array([10, 20, 30, 20, 30, 40])
    assert stretch_ends(np.array([0, 1, 1, 0, 0, 0]), step).tolist() == [2]
    assert stretch_ends(np.array([0, 1, 1, 1, 1, 0]), step).tolist() == [2, 4]
    columns = with_gaps({"step": step.astype(float), "status": ["rewound"] * 6})
    assert np.isnan(columns["step"][3]) and len(columns["status"]) == 7
