"""The 3D view's server side, on a campaign that ran."""

import numpy as np
import pytest

from app import state as app_state
from app.selection import Selection
from app.views import scene as scene_
from app.views.scene import Scene, bounds, thinned


@pytest.fixture
def shown(ran):
    """Scene of a campaign that ran, its selection and its state."""
    campaign, selection = app_state.campaign(ran), Selection()
    view = Scene(campaign, selection)
    view.update(campaign.glance())
    return view, selection, campaign


def positions(view: Scene) -> np.ndarray:
    return np.frombuffer(view._molecule.positions, "<f4").reshape(-1, 3)


def test_a_chosen_frame_is_shown_until_live_is_asked_for(shown):
    view, selection, campaign = shown
    newest = positions(view)
    selection.show_frame(5)
    view.update(campaign.glance())
    frame = campaign.reader.frame(5)
    np.testing.assert_allclose(positions(view), frame.positions, atol=1e-5)
    assert view._timeline.value == 5 and f"step {frame.step}" in view._timeline.text
    view._timeline.value = 0
    assert selection.frame is None
    np.testing.assert_array_equal(positions(view), newest)
    assert view._timeline.text.startswith("live")


def test_a_stored_frame_says_what_it_was_and_has_its_own_colours(shown):
    view, selection, campaign = shown
    query = campaign.glance().state.queue[-1]
    selection.query = query.id
    assert selection.frame == query.frame_id
    view.update(campaign.glance())
    frame = campaign.reader.frame(query.frame_id)
    assert "labelled" in view._timeline.text and "kcal/mol" in view._timeline.text
    values = np.frombuffer(view._molecule.values, "<f4")
    assert values.max() == pytest.approx(frame.force_bound, rel=1e-5)
    selection.frame = 2
    assert np.isnan(np.frombuffer(view._molecule.values, "<f4")).all()
    assert "before trust" in view._molecule.note


def test_the_box_breathes_with_the_cell_and_only_where_it_changes(breathed, shown):
    campaign, selection = app_state.campaign(breathed), Selection()
    view = Scene(campaign, selection)
    volumes = []
    for frame_id in (3, 40):
        selection.show_frame(frame_id)
        view.update(campaign.glance())
        np.testing.assert_allclose(
            view._molecule.box, campaign.reader.frame(frame_id).cell.ravel(), rtol=1e-6
        )
        volumes.append(np.linalg.det(np.reshape(view._molecule.box, (3, 3))))
    assert abs(volumes[1] / volumes[0] - 1) > 0.01
    assert shown[0]._molecule.box == []


def test_flagged_frames_are_visited_in_turn(shown):
    view, selection, campaign = shown
    ids = [q.frame_id for q in campaign.glance().state.queue]
    for expected in (ids[-1], ids[-2]):
        view._timeline._handle_msg(-1)
        assert selection.frame == expected
    assert selection.query == len(ids) - 1
    view._timeline._handle_msg(1)
    view._timeline._handle_msg(1)
    assert selection.frame is None


def test_every_frame_has_its_place_on_the_line(shown):
    view, _, campaign = shown
    assert view._timeline.last == campaign.series["id"][-1]
    trained = [q.frame_id for q in campaign.glance().state.queue if q.status == "trained"]
    assert view._timeline.labelled == trained


def test_a_frame_that_does_not_exist_leads_to_the_live_one(shown):
    _, selection, _ = shown
    selection.frame = 10**6
    assert selection.frame is None


def test_the_trace_of_a_picked_coordinate_begins_and_ends(shown):
    view, selection, _ = shown
    view._molecule.traced = [2, 0, 1]
    assert selection.coordinate == (2, 0, 1)
    view._molecule.traced = [0, 99]
    assert selection.coordinate == (2, 0, 1)
    selection.coordinate = ()
    assert view._molecule.traced == []


def test_ticks_are_few_but_spread_over_all(monkeypatch):
    monkeypatch.setattr(scene_, "TICKS", 10)
    assert thinned(list(range(5))) == list(range(5))
    assert len(thinned(list(range(95)))) == 10 and thinned(list(range(95)))[-1] == 90
    assert thinned([]) == []


def test_the_largest_atomic_bound_is_the_calibrated_one():
    sigma = np.array([0.1, 0.2, 0.05])
    np.testing.assert_allclose(bounds(sigma, 0.3, trusted=True), [0.15, 0.3, 0.075])
    for nothing in (bounds(sigma, 0.3, trusted=False), bounds(sigma, np.nan, trusted=True)):
        assert np.isnan(nothing).all()
    assert np.isnan(bounds(np.zeros(3), 0.3, trusted=True)).all()
