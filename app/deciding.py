"""What a person is asked to decide, and how flagged frames are listed. Pure functions."""

from __future__ import annotations

from core.campaign.state import IN_FLIGHT, Query, State

RETRIED = ("failed", "skipped", "withdrawn")
"""Statuses of frames that can be given to the model after all."""
LISTED = 300
"""Rows in the list; of a longer queue the frames still open and the newest others."""


def listed(state: State) -> list[Query]:
    """Return the rows: failed and waiting frames first, then those at work, then the newest."""
    order = {"failed": 0, "waiting": 1, **dict.fromkeys(IN_FLIGHT, 2)}
    open_ = [q for q in state.queue if q.status in order]
    done = [q for q in state.queue if q.status not in order]
    open_.sort(key=lambda q: (order[q.status], q.id))
    return [*open_, *reversed(done)][:LISTED]


def asked(state: State, chosen: int | None = None) -> tuple[int, ...]:
    """Return the ids of the frames that one press decides: a batch, the first frames, or one.

    Args:
        chosen: id of the row a person chose; it comes before what the campaign asks.
    """
    if chosen is not None:
        status = state.query(chosen).status
        if status == "waiting":
            group = asked(state)
            return group if chosen in group else (chosen,)
        return (chosen,) if status in RETRIED else ()
    if failed := state.ids("failed"):
        return failed[:1]
    if state.proposal:
        return state.proposal
    waiting = state.ids("waiting")
    if state.mode == "threshold":
        return tuple(i for i in waiting if state.query(i).taken_back)[:1]
    if state.collecting or (state.mode == "batch" and state.trusted):
        return ()
    first = tuple(i for i in waiting if "initial" in state.query(i).reasons)
    return first or waiting[:1]


def swept(state: State, threshold: float) -> tuple[int, ...]:
    """Return the waiting frames less likely within tolerance than `threshold`."""
    return tuple(i for i in state.ids("waiting") if state.query(i).probability < threshold)


def undoable(state: State) -> bool:
    """True while the last decision can still be taken back: nothing was learned from it."""
    if not state.history or state.updating:
        return False
    used = ("trained", "withdrawn")
    return all(state.query(i).status not in used for i, _ in state.history[-1].before)


def to_retry(state: State, ids: tuple[int, ...]) -> bool:
    """True where approving means to try a label again."""
    return bool(ids) and state.query(ids[0]).status in RETRIED
