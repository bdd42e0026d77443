"""The panels without a browser: give them a glance, read what they show."""

from dataclasses import replace

import numpy as np
import pytest

from app import state as app_state
from app import theme
from app.views.controls import Controls
from app.views.decision import Decision, asked, undoable
from app.views.scene import bounds
from app.views.traces import Traces, marks, with_gaps
from app.views.tuning import ENERGY, MODE, Tuning
from core.campaign import events as ev
from core.campaign.state import Decision as Kept
from core.campaign.state import State

from .test_wording import SETTINGS, glance, query

ASK = SETTINGS.with_value("labelling.mode", "approve")


@pytest.fixture
def campaign(argon):
    return app_state.campaign(argon())


def test_controls_offer_what_the_phase_allows(campaign):
    view = Controls(campaign, lambda number: None)
    view.update(glance())
    assert (view._main.label, view._stop.disabled) == ("Start", True)
    assert "UNTRUSTED" in view._state.object
    view.update(glance(started=True, trusted=True))
    assert (view._main.label, view._stop.disabled) == ("Pause", False)
    assert "UNTRUSTED" not in view._state.object
    view.update(glance(failure="broken"))
    assert (view._main.label, view._step.disabled) == ("Try again", True)


def test_a_flagged_frame_says_why_and_what_it_costs(campaign):
    view = Decision(campaign, lambda number: None)
    state = State(ASK, 9, started=True, trusted=True, queue=(query(),))
    view.update(replace(glance(), state=state))
    page = view._text.object
    assert "Frame at step 120" in page and "may be off by more than the tolerance" in page
    assert "2.3 kcal/mol" in page and "60 % likely" in page
    assert not view._approve.disabled and view._undo.disabled


def test_nothing_to_decide_disables_the_buttons(campaign):
    view = Decision(campaign, lambda number: None)
    view.update(glance())
    assert view._approve.disabled and view._reject.disabled and view._skip.disabled


def test_a_failed_label_can_be_retried_but_not_rejected(campaign):
    view = Decision(campaign, lambda number: None)
    failed = query("failed", failure="unconverged: <b>SCF</b>")
    view.update(glance(started=True, trusted=True, queue=(failed,)))
    assert (view._approve.label, view._reject.disabled) == ("Retry", True)
    assert "&lt;b&gt;SCF" in view._text.object


def test_the_first_frames_are_decided_together():
    two = ASK.with_value("trust.initial_labels", 2)
    first = query(reasons=("initial",))
    assert asked(State(two, 9, started=True, queue=(first,))) == ()  # still collecting
    assert asked(State(two, 9, started=True, queue=(first, replace(first, id=2)))) == (1, 2)


def test_a_decision_that_was_learned_stands():
    kept = (Kept(before=((1, "waiting"),)),)
    assert undoable(State(SETTINGS, 9, queue=(query("approved"),), history=kept))
    assert not undoable(State(SETTINGS, 9, queue=(query("trained"),), history=kept))
    assert not undoable(State(SETTINGS, 9))


def test_tuning_posts_what_a_person_changed_and_nothing_else(campaign):
    posted, warned = [], []
    view = Tuning(campaign, posted.append, warned.append)
    view.update(campaign.glance())
    assert posted == [] and view._inputs[ENERGY].value == 0.2
    view._inputs[MODE].value = "approve"
    assert len(posted) == 1
    command = campaign.reader.command(posted[0]).command
    assert isinstance(command, ev.ChangeSetting) and command.value == "approve"
    view._inputs[ENERGY].value = -1.0
    assert len(posted) == 1 and "greater than 0" in warned[0]
    view.update(campaign.glance())
    assert view._inputs[ENERGY].value == 0.2


def test_traces_start_empty_and_shade_what_is_untrusted(campaign):
    view = Traces(campaign)
    view.update(campaign.glance())
    plot = view._plots["force"]
    assert len(view._source.data["step"]) == 0
    assert plot._shade.right == view._x.end and plot._limit.location == 0.02


def test_marks_leave_out_the_first_frames_and_fill_the_labelled():
    queue = (query(reasons=("initial",)), query(), query("trained"))
    columns = marks(queue, theme.LIGHT)
    assert columns["step"] == [120, 120]
    assert columns["fill"] == [theme.LIGHT.surface, theme.LIGHT.accent]


def test_a_rewind_breaks_the_line():
    step = np.array([30.0, 40.0, 20.0, 30.0])
    columns = with_gaps(20, step, step, step)
    assert np.isnan(columns["energy"][2]) and len(columns["step"]) == 5
    assert len(with_gaps(50, step, step, step)["step"]) == 6


def test_the_largest_atomic_bound_is_the_calibrated_one():
    sigma = np.array([0.1, 0.2, 0.05])
    np.testing.assert_allclose(bounds(sigma, 0.3, trusted=True), [0.15, 0.3, 0.075])
    for nothing in (bounds(sigma, 0.3, trusted=False), bounds(sigma, np.nan, trusted=True)):
        assert np.isnan(nothing).all()
    assert np.isnan(bounds(np.zeros(3), 0.3, trusted=True)).all()
