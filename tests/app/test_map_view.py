"""The map of the frames, without a browser: directions, points, clicks and rings."""

import numpy as np
import pytest

from app import state as app_state
from app import theme
from app.lease import Lease
from app.seat import Seat
from app.selection import Selection
from app.views import map as module
from app.views.map import Map, main_directions, spread
from core import worker
from core.campaign import events as ev


@pytest.fixture
def learned(argon):
    directory = argon("threshold", "0.2 kcal/mol", 300)
    worker.run_inline(directory)
    return app_state.campaign(directory)


@pytest.fixture
def view(learned):
    made = Map(learned, Selection(), seat(learned))
    made.update(learned.glance())
    return made


def seat(campaign):
    made = Seat(campaign, Lease(), lambda text: None)
    made.identify("s" * 32)
    return made


def test_directions_are_those_of_largest_variance(rng):
    rows = rng.normal(size=(500, 2)) @ np.array([[3.0, 0, 0, 3.0], [0, 1.0, 0, 0]]) + 5
    rows += 0.01 * rng.normal(size=rows.shape)
    mean, directions, share = main_directions(rows)
    np.testing.assert_allclose(mean, rows.mean(0))
    np.testing.assert_allclose(np.abs(directions.T @ directions), np.eye(2), atol=1e-9)
    np.testing.assert_allclose(
        np.abs(directions[:, 0]), np.array([1, 0, 0, 1]) / np.sqrt(2), atol=0.02
    )
    assert share > 0.99
    turned = main_directions(rows[:400], (500, mean, -directions, share))[1]
    assert ((turned * -directions).sum(0) > 0.9).all()


def test_rows_that_are_all_alike_and_narrow_ones():
    _, directions, share = main_directions(np.ones((5, 3)))
    assert directions.shape == (3, 2) and share == 1
    assert main_directions(np.arange(4.0)[:, None])[1].shape == (1, 2)


def test_a_spread_keeps_the_ends():
    assert spread(3, 10).tolist() == [0, 1, 2]
    assert spread(1000, 10)[[0, -1]].tolist() == [0, 999] and len(spread(1000, 10)) == 10


def test_frames_and_labels_are_drawn_once(learned, view):
    ids, rows = learned.reader.activations_since(0)
    assert len(ids) > 10 and rows.shape[1] > 0
    drawn = [*view._frames.data["id"], *view._labels.data["id"]]
    assert sorted(drawn) == ids.tolist()
    first = [q.frame_id for q in learned.glance().state.queue if "initial" in q.reasons]
    early = np.isin(view._labels.data["id"], first)
    assert early.any() and np.isnan(view._labels.data["bound"][early]).all()
    labelled = {q.frame_id for q in learned.glance().state.queue if q.status == "trained"}
    assert set(view._labels.data["id"]) == labelled
    assert "Map of the frames" in view._head.object and "labelled" in view._legend.object


def test_a_click_shows_the_frame_and_rings_it(view):
    frame = int(view._frames.data["id"][3])
    x, y = view._frames.data["x"][3], view._frames.data["y"][3]
    assert view.nearest(x, y) == frame
    assert view.nearest(x + view._size[0], y) is None
    view._selection.show_frame(frame)
    assert view._here.data["x"] == [x] and view._here.data["y"] == [y]
    view._selection.go_live()
    assert view._here.data["x"] == [view._points[-1][0]]


def test_new_frames_keep_the_places_of_the_old(learned, monkeypatch):
    monkeypatch.setattr(module, "BITE", 6)
    monkeypatch.setattr(module, "LOOK_S", 0)
    monkeypatch.setattr(module, "GROWN", 1e9)
    view = Map(learned, Selection(), seat(learned))
    view.update(learned.glance())
    first = view._points.copy()
    view.update(learned.glance())
    assert len(view._points) == 12
    np.testing.assert_array_equal(view._points[:6], first)


def test_before_there_are_frames_it_says_what_will_come(argon):
    campaign = app_state.campaign(argon("threshold", "0.2 kcal/mol", 300))
    view = Map(campaign, Selection(), seat(campaign))
    view.update(campaign.glance())
    view.paint(theme.DARK)
    assert "Nothing to draw yet" in view._legend.object
    assert view.nearest(0.0, 0.0) is None


def test_suggested_frames_are_numbered_and_labelled_at_a_press(argon, monkeypatch):
    directory = argon("threshold", "0.2 kcal/mol", 400)
    worker.run_inline(directory, until=lambda state: state.step >= 300)
    campaign = app_state.campaign(directory)
    view = Map(campaign, Selection(), seat(campaign))
    view.update(campaign.glance())
    assert not view._suggest.disabled and not view._label.visible
    view._many.value = 4
    view.suggest()
    picks = view._suggested
    has_label = {q.frame_id for q in campaign.glance().state.queue if q.status == "trained"}
    assert len(set(picks)) == 4 and not has_label & set(picks)
    assert view._picks.data["number"] == ["1", "2", "3", "4"]
    at = list(view._ids).index(picks[0])
    assert (view._picks.data["x"][0], view._picks.data["y"][0]) == tuple(view._points[at])
    assert (
        view._label.visible
        and view._label.label == "Label these 4"
        and "About" in view._said.object
    )
    _, mean, directions, share = view._fit
    before, view._fit = view._points, (0, mean, -directions, share)  # found again, turned over
    view._seen, view._looked = None, 0.0
    view.update(campaign.glance())
    assert not np.allclose(view._points, before)
    assert (view._picks.data["x"][0], view._picks.data["y"][0]) == tuple(view._points[at])
    view.label()
    (posted,) = [row.command for row in campaign.reader.commands_since(0)]
    assert posted == ev.LabelFrames(frame_ids=picks, who="page 1", at=posted.at)
    assert not view._label.visible and not len(view._picks.data["x"])
    state = worker.run_inline(directory)
    found = {q.frame_id: q for q in state.queue}
    assert [found[i].reasons for i in picks] == [("chosen",)] * 4
    assert {found[i].status for i in picks} == {"trained"}
    assert {found[i].decided_by for i in picks} == {"page 1"}


def test_a_suggestion_that_has_its_label_meanwhile_is_dropped(learned, view, monkeypatch):
    trained = next(q.frame_id for q in learned.glance().state.queue if q.status == "trained")
    other = int(view._frames.data["id"][0])
    view._suggested = (trained, other)
    view._offer(learned.glance())
    assert view._suggested == (other,) and view._label.label == "Label this one"
    assert view._label.disabled and "while the campaign runs" in view._said.object  # at its end
    view.clear()
    assert view._suggested == () and not view._clear.visible


def test_nothing_is_suggested_before_the_first_labels_are_learned(argon):
    campaign = app_state.campaign(argon())
    view = Map(campaign, Selection(), seat(campaign))
    view.update(campaign.glance())
    assert view._suggest.disabled and "Once the first labels" in view._said.object
