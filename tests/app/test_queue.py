"""The queue without a browser: give it a glance, press, read what it shows and posts."""

from dataclasses import replace

import pytest

from app import state as app_state
from app.lease import Lease
from app.seat import Seat
from app.selection import Selection
from app.views.exchange import Exchange
from app.views.queue import Queue
from core.campaign import events as ev
from core.campaign.state import State
from core.units import GPA

from .test_deciding import ASK
from .test_wording import glance, query


@pytest.fixture
def campaign(argon, monkeypatch):
    found = app_state.campaign(argon())
    found.show = lambda **given: monkeypatch.setattr(
        found, "glance", lambda: replace(glance(), state=State(ASK, 9, started=True, **given))
    )
    return found


@pytest.fixture
def queue(campaign):
    warned = []
    seat = Seat(campaign, Lease(), warned.append)
    seat.identify("s" * 32)
    view = Queue(campaign, seat, Selection(), *strip(campaign, seat))
    view.warned = warned
    return view


def strip(campaign, seat):
    exchange = Exchange(campaign, seat)
    return exchange.button, exchange


def posted(campaign):
    return [row.command for row in campaign.reader.commands_since(0)]


def shown(campaign, view, **given):
    campaign.show(trusted=True, **given)
    view.update(campaign.glance())
    return view


def test_a_flagged_frame_says_why_how_sure_and_what_it_costs(campaign, queue):
    page = shown(campaign, queue, queue=(query(),))._text.object
    assert "Frame at step 120" in page and "may be off by more than the tolerance" in page
    assert "2.3 kcal/mol" in page and "60 % likely" in page
    assert not queue._approve.disabled and queue._undo.disabled
    (row,) = queue._rows.rows
    assert row["status"] == "waiting" and row["over"] and row["figure"] == "± 2.3 kcal/mol"


@pytest.mark.parametrize(("by", "said"), [("joint", "adds to the labels"), ("sigma", "largest σ")])
def test_a_proposed_batch_says_how_it_was_chosen_what_it_costs_and_which_it_holds(queue, by, said):
    settings = ASK.with_value("labelling.mode", "batch").with_value("labelling.batch_by", by)
    three = tuple(replace(query(), id=i) for i in (1, 2, 3))
    asked = State(settings, 9, started=True, trusted=True, queue=three, proposal=(1, 3))
    queue.update(replace(glance(), state=asked, label_s=2.0))
    assert said in queue._text.object and "2 frames · about 4 s" in queue._text.object
    found = {row["id"]: (row["status"], row["marked"]) for row in queue._rows.rows}
    assert found == {1: ("proposed", True), 2: ("waiting", False), 3: ("proposed", True)}
    queue.update(replace(glance(), state=asked, label_s=None))
    assert "cost not known yet" in queue._text.object


@pytest.mark.parametrize(
    ("given", "figure", "over"),
    [
        ({"energy_bound": 0.01, "force_bound": 0.3}, "± 0.30 eV/Å", True),
        ({"energy_bound": 0.03, "force_bound": 0.2}, "± 0.69 kcal/mol", True),
        ({"energy_bound": 0.01, "force_bound": 0.03}, "± 0.23 kcal/mol", False),
        ({"energy_bound": float("nan"), "force_bound": 0.3}, "± 0.30 eV/Å", True),
        ({"energy_bound": 0.01, "force_bound": 0.1, "stress_bound": 3 * GPA}, "± 3.0 GPa", True),
    ],
)
def test_a_row_shows_the_bound_that_is_furthest_beyond_its_tolerance(
    campaign, queue, given, figure, over
):
    crystal = ASK.with_value("trust.stress_tolerance", 1 * GPA)
    flagged = replace(query(), **given)
    state = State(crystal, 9, started=True, trusted=True, queue=(flagged,))
    row = queue._row(replace(glance(), state=state), flagged)
    assert (row["figure"], row["over"]) == (figure, over)


def test_nothing_to_decide_disables_the_buttons(campaign, queue):
    shown(campaign, queue)
    assert queue._approve.disabled and queue._reject.disabled and queue._skip.disabled
    queue.approve()
    assert posted(campaign) == []


def test_buttons_post_what_they_say(campaign, queue):
    shown(campaign, queue, queue=(query(),))
    queue.approve(), queue.reject(), queue.skip(), queue.undo()
    kinds = [type(c) for c in posted(campaign)]
    assert kinds == [ev.Approve, ev.Reject, ev.Skip, ev.Undo]
    assert all(c.ids == (1,) for c in posted(campaign)[:3])


def test_a_failed_label_is_retried_but_not_rejected(campaign, queue):
    failed = query("failed", failure="unconverged: <b>SCF</b>")
    shown(campaign, queue, queue=(failed,))
    assert (queue._approve.label, queue._reject.disabled) == ("Retry", True)
    assert "&lt;b&gt;SCF" in queue._text.object
    queue.reject(), queue.approve()
    assert [type(c) for c in posted(campaign)] == [ev.Retry]


def test_choosing_a_row_shows_its_frame_and_deciding_returns(campaign, queue):
    two = (query(), replace(query(), id=2, frame_id=7, step=130))
    shown(campaign, queue, queue=two)
    queue.move(1), queue.move(1)
    assert queue._selection.query == 2 and queue._selection.frame == 7
    assert "step 130" in queue._text.object
    queue.move(1)
    assert queue._selection.query == 2  # the last row
    queue.reject()
    assert posted(campaign)[0].ids == (2,)
    assert queue._selection.query is None and queue._selection.frame is None


def test_the_sweep_is_previewed_before_it_is_applied(campaign, queue):
    unsure = replace(query(), id=2, probability=0.2)
    shown(campaign, queue, queue=(query(), unsure))
    assert queue._strip in queue._layout
    queue._slider.value = 0.5
    assert "1 of 2" in queue._outlook.object and "1 rejected" in queue._outlook.object
    assert posted(campaign) == []
    queue._sweep()
    (command,) = posted(campaign)
    assert isinstance(command, ev.ApplyThreshold) and command.probability == 0.5


def test_a_viewer_sees_everything_and_decides_nothing(campaign, queue):
    shown(campaign, queue, queue=(query(),))
    lease = queue._seat._lease
    seat = Seat(campaign, lease, queue.warned.append)
    other = Queue(campaign, seat, Selection(), *strip(campaign, seat))
    other._seat.identify("t" * 32)
    other.update(campaign.glance())
    assert "Frame at step 120" in other._text.object
    assert other._approve.disabled and other._undo.disabled and other._mode.disabled
    other.approve()
    assert posted(campaign) == [] and "page 1 drives" in queue.warned[-1]
