"""The map of the frames, without a browser: directions, points, clicks and rings."""

import numpy as np
import pytest

from app import state as app_state
from app import theme
from app.selection import Selection
from app.views import map as module
from app.views.map import Map, main_directions, spread
from core import worker


@pytest.fixture
def learned(argon):
    directory = argon("threshold", "0.2 kcal/mol", 300)
    worker.run_inline(directory)
    return app_state.campaign(directory)


@pytest.fixture
def view(learned):
    made = Map(learned, Selection())
    made.update(learned.glance())
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
    view = Map(learned, Selection())
    view.update(learned.glance())
    first = view._points.copy()
    view.update(learned.glance())
    assert len(view._points) == 12
    np.testing.assert_array_equal(view._points[:6], first)


def test_before_there_are_frames_it_says_what_will_come(argon):
    campaign = app_state.campaign(argon("threshold", "0.2 kcal/mol", 300))
    view = Map(campaign, Selection())
    view.update(campaign.glance())
    view.paint(theme.DARK)
    assert "Nothing to draw yet" in view._legend.object
    assert view.nearest(0.0, 0.0) is None
