"""What a person is asked, and the order of the list."""

from dataclasses import replace

from app.deciding import asked, listed, swept, to_retry, undoable
from core.campaign.state import Decision, State

from .test_wording import SETTINGS, query

ASK = SETTINGS.with_value("labelling.mode", "approve")


def state(*statuses, settings=ASK, **given):
    queue = tuple(replace(query(s), id=i) for i, s in enumerate(statuses, 1))
    return State(settings, 9, started=True, trusted=True, queue=queue, **given)


def test_the_first_frames_are_decided_together():
    two = ASK.with_value("trust.initial_labels", 2)
    first = query(reasons=("initial",))
    assert asked(State(two, 9, started=True, queue=(first,))) == ()  # still collecting
    assert asked(State(two, 9, started=True, queue=(first, replace(first, id=2)))) == (1, 2)


def test_a_chosen_row_comes_before_what_is_asked():
    queue = state("waiting", "waiting", "trained", "failed", "skipped")
    assert asked(queue) == (4,)  # a failed label holds the run
    assert asked(queue, 2) == (2,)
    assert asked(queue, 3) == ()
    assert asked(queue, 5) == (5,) and to_retry(queue, (5,)) and not to_retry(queue, (2,))


def test_a_row_of_a_proposed_batch_stands_for_the_batch():
    batch = state("waiting", "waiting", "waiting", proposal=(1, 3))
    assert asked(batch, 3) == (1, 3)
    assert asked(batch, 2) == (2,)


def test_open_frames_are_listed_first_then_the_newest():
    queue = state("trained", "waiting", "failed", "labelling", "rejected", "waiting")
    assert [q.id for q in listed(queue)] == [3, 2, 6, 4, 5, 1]


def test_a_sweep_takes_the_frames_less_likely_than_the_threshold():
    queue = state("waiting", "trained", "waiting")
    assert swept(queue, 0.61) == (1, 3)
    assert swept(queue, 0.6) == ()


def test_a_decision_that_was_learned_stands():
    kept = (Decision(before=((1, "waiting"),)),)
    assert undoable(state("approved", history=kept))
    assert not undoable(state("trained", history=kept))
    assert not undoable(state("waiting"))
