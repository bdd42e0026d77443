"""The active-learning logic as one pure function: `advance(state, event) -> (state, requests)`.

No clock, no random number, no I/O: a journal replayed gives the same state. What lasts (dynamics
running, holding) is the state's `phase`; a request is something to be done once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from core.campaign import events as ev
from core.campaign.state import (
    IN_FLIGHT,
    PAID,
    POOL_FACTOR,
    WINDOW,
    WITHOUT_LABEL,
    Decision,
    Query,
    State,
    Status,
)
from core.errors import CampaignError, SettingsError
from core.settings import live_paths

_JUDGED_BY = ("trust.energy_tolerance", "trust.force_tolerance", "trust.calibration")
"""Settings after whose change frames judged before count no more."""
MAX_ATTEMPTS = 5
"""Rewinds of one segment before the campaign pauses."""
MAX_FAILURES = 3
"""Labels failing one after the other before the campaign pauses."""
MAX_REFUSALS = 3
"""Updates refused one after the other before the campaign pauses."""
HISTORY = 50
"""Decisions that can be taken back."""


class CommandRefusedError(CampaignError):
    """A command that has no meaning at this moment; the message says why."""


@dataclass(frozen=True)
class SubmitLabels:
    """Hand these queries to the reference."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class CancelLabels:
    """Stop the calculations of these queries."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class UpdateModel:
    """Learn from all labels; `first` sets the offset and the first calibration as well."""

    first: bool


@dataclass(frozen=True)
class RestoreSnapshot:
    """Put the weights of an earlier snapshot in force."""

    snapshot: int


@dataclass(frozen=True)
class Rewind:
    """Continue the dynamics from a stored frame; later frames no longer count.

    `fresh` draws new velocities.
    """

    frame_id: int
    step: int
    fresh: bool


@dataclass(frozen=True)
class SelectBatch:
    """Choose `n` diverse queries among `ids`."""

    ids: tuple[int, ...]
    n: int


@dataclass(frozen=True)
class JudgeFrames:
    """Judge these stored frames, so that they can be queued for a label."""

    frame_ids: tuple[int, ...]


@dataclass(frozen=True)
class Rescore:
    """Judge these waiting queries again with the weights in force."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Reconfigure:
    """A live setting changed."""


Request = (
    SubmitLabels | CancelLabels | UpdateModel | RestoreSnapshot | Rewind | SelectBatch | JudgeFrames
    | Rescore | Reconfigure
)  # fmt: skip
Step = tuple[State, tuple[Request, ...]]


def advance(state: State, event: ev.Event) -> Step:
    """Return the state after `event`, and what has to be done about it.

    Raises:
        CommandRefusedError: a command that has no meaning in this state; the state stands.
    """
    handled, requests = _HANDLERS[type(event)](state, event)
    settled, more = _settle(handled, event)
    return settled, requests + more


def replay(state: State, events: Iterable[ev.Event]) -> State:
    """Return the state after all of `events`."""
    for event in events:
        state, _ = advance(state, event)
    return state


def outstanding(state: State) -> tuple[Request, ...]:
    """Return what a worker that takes over has to do: requests whose outcome is not journalled."""
    requests: list[Request] = []
    in_flight = state.ids(*IN_FLIGHT)
    if in_flight:
        requests.append(SubmitLabels(in_flight))
    if state.restoring is not None:
        requests.append(RestoreSnapshot(state.restoring))
    elif state.updating:
        requests.append(UpdateModel(first=not state.trusted))
    if state.proposing:
        requests.append(_selection(state))
    if state.choosing:
        requests.append(JudgeFrames(state.choosing))
    return tuple(requests)


def _settle(state: State, event: ev.Event) -> Step:
    """Apply the rules that follow from the state whatever the event was."""
    if state.stop_at is not None and state.step >= state.stop_at:
        state = replace(state, stop_at=None, paused="The steps asked for are done.")
    held = state.stopped or state.paused is not None or state.failure is not None
    if held or not state.started or state.updating:
        return state, ()
    requests: tuple[Request, ...] = ()
    if state.mode == "threshold":
        state, requests = _approve_automatically(state, event)
        if state.paused is not None:
            return state, requests
    in_flight = bool(state.ids(*IN_FLIGHT))
    if state.fresh and not in_flight and _enough(state):
        state = replace(state, updating=True)
        return state, (*requests, UpdateModel(first=not state.trusted))
    return _propose(state, requests)


def _enough(state: State) -> bool:
    return state.trusted or state.n_labels >= state.settings.trust.initial_labels


def _propose(state: State, requests: tuple[Request, ...]) -> Step:
    waiting = state.ids("waiting")
    if state.mode == "threshold" or state.proposal or state.proposing or not waiting:
        return state, requests
    if not state.trusted:
        return replace(state, proposal=() if state.collecting else waiting), requests
    if state.mode == "batch" and len(waiting) >= POOL_FACTOR * state.settings.labelling.batch_size:
        state = replace(state, proposing=True)
        return state, (*requests, _selection(state))
    return state, requests


def _selection(state: State) -> SelectBatch:
    waiting = state.ids("waiting")
    return SelectBatch(waiting, min(state.settings.labelling.batch_size, len(waiting)))


def _approve_automatically(state: State, event: ev.Event) -> Step:
    waiting = tuple(q.id for q in state.queue if q.status == "waiting" and not q.taken_back)
    if not waiting:
        return state, ()
    budget = _budget(state)
    if budget < len(waiting):
        return replace(state, paused=_spent(state)), ()
    return _decide(state, {i: "approved" for i in waiting}, "threshold", event.at)


def _budget(state: State) -> int:
    spent = sum(q.status in PAID for q in state.queue)
    return state.settings.labelling.max_labels - spent


def _spent(state: State) -> str:
    most = state.settings.labelling.max_labels
    return f"All {most} labels allowed (labelling.max_labels) are used; raise it to go on."


def _decide(state: State, statuses: dict[int, Status], who: str, at: float) -> Step:
    """Give each query its new status as one decision that can be taken back."""
    ids = tuple(statuses)
    before = tuple((i, state.query(i).status) for i in ids)
    history = (*state.history, Decision(before, state.proposal))[-HISTORY:]
    for i, status in statuses.items():
        state = state.with_queries((i,), status=status, decided_by=who, decided_at=at)
    open_ = tuple(i for i in state.proposal if i not in statuses)
    approved = tuple(i for i, status in statuses.items() if status == "approved")
    requests: tuple[Request, ...] = (SubmitLabels(approved),) if approved else ()
    return replace(state, history=history, proposal=open_), requests


# Commands


def _start(state: State, event: ev.Start | ev.Resume) -> Step:
    if state.phase not in ("ready", "paused", "finished"):
        raise CommandRefusedError(f"The campaign is {state.phase}; there is nothing to start.")
    if state.phase == "finished" and not state.stopped:
        raise CommandRefusedError(
            f"All {state.steps_total} steps are done; raise dynamics.steps to go on."
        )
    waits_for_update = len(state.ids("labelled")) if not state.trusted else state.fresh
    return replace(
        state, started=True, stopped=False, paused=None, stop_at=None,
        attempts=0, failures=0, refusals=0, fresh=waits_for_update,
    ), ()  # fmt: skip


def _pause(state: State, event: ev.Pause) -> Step:
    if state.phase in ("ready", "paused", "finished", "failed"):
        raise CommandRefusedError(f"The campaign is {state.phase}; there is nothing to pause.")
    return replace(state, paused=f"Paused by {event.who}.", stop_at=None), ()


def _step_by(state: State, event: ev.StepBy) -> Step:
    if event.steps < 1:
        raise CommandRefusedError(f"{event.steps} steps were asked for; give at least 1.")
    if state.phase not in ("ready", "paused", "running"):
        raise CommandRefusedError(f"The campaign is {state.phase} and cannot step.")
    return replace(
        state, started=True, paused=None, stop_at=state.step + event.steps, attempts=0
    ), ()


def _stop(state: State, event: ev.Stop) -> Step:
    if state.stopped:
        raise CommandRefusedError("The campaign is stopped already.")
    in_flight = state.ids(*IN_FLIGHT)
    state = state.with_queries(in_flight, status="waiting", decided_by=None, decided_at=None)
    state = replace(
        state, started=True, stopped=True, paused=None, stop_at=None,
        updating=False, restoring=None, proposing=False, choosing=(), fresh=_untrained(state),
    )  # fmt: skip
    return state, (CancelLabels(in_flight),) if in_flight else ()


def _untrained(state: State) -> int:
    return max(state.fresh, len(state.ids("labelled")) if state.updating else 0)


def _change_setting(state: State, event: ev.ChangeSetting) -> Step:
    if event.path not in live_paths():
        raise CommandRefusedError(f"{event.path} cannot be changed while a campaign runs.")
    if event.path == "dynamics.temperature_K" and state.settings.dynamics.ensemble == "nve":
        raise CommandRefusedError("The nve ensemble has no thermostat whose temperature to change.")
    try:
        settings = state.settings.with_value(event.path, event.value)
    except SettingsError as error:
        raise CommandRefusedError(str(error)) from error
    within = () if event.path in _JUDGED_BY else state.within
    return replace(state, settings=settings, proposal=(), within=within), (Reconfigure(),)


def _with_status(state: State, ids: tuple[int, ...], *accepted: Status) -> tuple[int, ...]:
    if not ids:
        raise CommandRefusedError("No frame was named; select at least one.")
    if len(set(ids)) != len(ids):
        raise CommandRefusedError("A frame was named twice.")
    for i in ids:
        if not 1 <= i <= len(state.queue):
            raise CommandRefusedError(f"There is no flagged frame {i}.")
        if state.query(i).status not in accepted:
            raise CommandRefusedError(
                f"Frame {i} is {state.query(i).status}; this acts on frames that are "
                f"{' or '.join(accepted)}."
            )
    return ids


def _affordable(state: State, ids: tuple[int, ...]) -> tuple[int, ...]:
    if len(ids) > _budget(state):
        raise CommandRefusedError(_spent(state))
    return ids


def _approve(state: State, event: ev.Approve) -> Step:
    ids = _affordable(state, _with_status(state, event.ids, "waiting"))
    return _decide(state, dict.fromkeys(ids, "approved"), event.who, event.at)


def _reject(state: State, event: ev.Reject) -> Step:
    ids = _with_status(state, event.ids, "waiting")
    return _decide(state, dict.fromkeys(ids, "rejected"), event.who, event.at)


def _skip(state: State, event: ev.Skip) -> Step:
    ids = _with_status(state, event.ids, "waiting", "failed")
    return _decide(state, dict.fromkeys(ids, "skipped"), event.who, event.at)


def _retry(state: State, event: ev.Retry) -> Step:
    ids = _with_status(state, event.ids, "failed", "skipped", "withdrawn")
    paid = tuple(i for i in ids if state.query(i).status == "withdrawn")
    _affordable(state, tuple(i for i in ids if i not in paid))
    statuses: dict[int, Status] = {i: "labelled" if i in paid else "approved" for i in ids}
    state, requests = _decide(state, statuses, event.who, event.at)
    state = state.with_queries(paid, failure=None)
    return replace(state, fresh=state.fresh + len(paid)), requests


def _import_labels(state: State, event: ev.ImportLabels) -> Step:
    ids = _with_status(state, event.ids, *WITHOUT_LABEL)
    state, requests = _decide(state, dict.fromkeys(ids, "labelled"), event.who, event.at)
    state = state.with_queries(ids, by_hand=True, failure=None)
    return replace(state, fresh=state.fresh + len(ids)), requests


def _apply_threshold(state: State, event: ev.ApplyThreshold) -> Step:
    waiting = state.ids("waiting")
    if not waiting:
        raise CommandRefusedError("No frame waits for a decision.")
    statuses: dict[int, Status] = {
        i: "approved" if state.query(i).probability < event.probability else "rejected"
        for i in waiting
    }
    _affordable(state, tuple(i for i, status in statuses.items() if status == "approved"))
    return _decide(state, statuses, event.who, event.at)


def _label_frames(state: State, event: ev.LabelFrames) -> Step:
    if not state.trusted:
        raise CommandRefusedError("Frames are chosen once the first labels are learned.")
    if state.choosing:
        raise CommandRefusedError("The frames chosen before are being judged; try again.")
    ids = event.frame_ids
    if not ids:
        raise CommandRefusedError("No frame was named; select at least one.")
    if len(set(ids)) != len(ids):
        raise CommandRefusedError("A frame was named twice.")
    queued = {q.frame_id: q for q in state.queue}
    for i in ids:
        if not 1 <= i <= state.here[0]:
            raise CommandRefusedError(f"The trajectory has no frame {i}.")
        if i in queued and queued[i].status not in WITHOUT_LABEL:
            raise CommandRefusedError(
                f"The frame at step {queued[i].step} is {queued[i].status}; choose frames that are "
                "not."
            )
    state = replace(state, choosing=_affordable(state, ids), chosen_by=event.who)
    return state, (JudgeFrames(ids),)


def _propose_batch(state: State, event: ev.ProposeBatch) -> Step:
    if state.mode != "batch" or not state.trusted or state.proposal or state.proposing:
        raise CommandRefusedError(
            "A batch is proposed in batch mode, once the model is trusted and when none is open."
        )
    if not state.ids("waiting"):
        raise CommandRefusedError("No flagged frame has been collected yet.")
    state = replace(state, proposing=True)
    return state, (_selection(state),)


def _roll_back(state: State, event: ev.RollBack) -> Step:
    if state.updating:
        raise CommandRefusedError("The model is learning; wait until it has.")
    if not 1 <= event.snapshot <= len(state.learned):
        there = f"1 to {len(state.learned)}" if state.learned else "none yet"
        raise CommandRefusedError(f"There is no snapshot {event.snapshot}; there are {there}.")
    if event.snapshot == state.snapshot:
        raise CommandRefusedError(f"Snapshot {event.snapshot} is in force already.")
    state = replace(state, updating=True, restoring=event.snapshot)
    return state, (RestoreSnapshot(event.snapshot),)


def _undo(state: State, event: ev.Undo) -> Step:
    if not state.history:
        raise CommandRefusedError("There is no decision to take back.")
    last = state.history[-1]
    now = {i: state.query(i).status for i, _ in last.before}
    if state.updating or {"trained", "withdrawn"} & set(now.values()):
        raise CommandRefusedError("The last decision's label is in use already; it stands.")
    running = tuple(i for i, status in now.items() if status in IN_FLIGHT)
    for i, status in last.before:
        state = state.with_queries(
            (i,), status=status, decided_by=None, decided_at=None, taken_back=True, by_hand=False
        )
    unused = sum(status == "labelled" for status in now.values())
    state = replace(
        state, history=state.history[:-1], proposal=last.proposal,
        fresh=max(state.fresh - unused, 0),
    )  # fmt: skip
    return state, (CancelLabels(running),) if running else ()


# Facts


def _worker_started(state: State, event: ev.WorkerStarted) -> Step:
    if state.failure is None:
        return state, outstanding(state)
    why = f"The worker had failed ({state.failure.strip().splitlines()[-1]}); resume to go on."
    state = replace(state, failure=None, paused=why)
    return state, outstanding(state)


def _worker_failed(state: State, event: ev.WorkerFailed) -> Step:
    fresh = _untrained(state)
    text = event.traceback.strip() or "unknown error"
    state = replace(
        state, failure=text, updating=False, restoring=None, proposing=False, choosing=()
    )
    return replace(state, fresh=fresh), ()


def _step_compiled(state: State, event: ev.StepCompiled) -> Step:
    return state, ()


def _frame_checked(state: State, event: ev.FrameChecked) -> Step:
    here = (event.frame_id, event.step)
    run = state.steps_run + max(event.step - state.step, 0)
    state = replace(state, step=event.step, steps_run=run, here=here, novelty=event.novelty)
    if not event.reasons:
        attempts = 0 if event.step > state.broken_step else state.attempts
        within = state.within
        if event.within is not None:
            within = (*within, event.within)[-WINDOW:]
        return replace(state, anchor=here, attempts=attempts, within=within), ()
    query = Query(
        id=len(state.queue) + 1, step=event.step, frame_id=event.frame_id, key=event.key,
        reasons=event.reasons, sigma_energy=event.sigma_energy, sigma_force=event.sigma_force,
        probability=event.probability, energy_bound=event.energy_bound,
        force_bound=event.force_bound, energy_tolerance=state.energy_tolerance,
        force_tolerance=state.force_tolerance, snapshot=event.snapshot, at=event.at,
        sigma_stress=event.sigma_stress, stress_bound=event.stress_bound, novelty=event.novelty,
    )  # fmt: skip
    return replace(state, queue=(*state.queue, query)), ()


def _steps_done(state: State, event: ev.StepsDone) -> Step:
    run = state.steps_run + max(event.step - state.step, 0)
    return replace(state, step=event.step, steps_run=run), ()


def _broken(state: State, event: ev.Broken) -> Step:
    frame_id, step = state.anchor
    state = replace(
        state, step=step, here=state.anchor, rewinds=state.rewinds + 1,
        steps_run=state.steps_run + max(event.step - state.step, 0),
        attempts=state.attempts + 1, broken_step=max(event.step, state.broken_step),
    )  # fmt: skip
    if state.attempts > MAX_ATTEMPTS:
        why = (
            f"The dynamics broke {state.attempts} times after step {step} ({event.reason}). "
            "Lower the temperature or the time step, or resume to try again."
        )
        state = replace(state, paused=why)
    return state, (Rewind(frame_id, step, fresh=True),)


def _labels_submitted(state: State, event: ev.LabelsSubmitted) -> Step:
    ids = tuple(i for i in event.ids if state.query(i).status == "approved")
    return state.with_queries(ids, status="labelling"), ()


def _label_arrived(state: State, event: ev.LabelArrived) -> Step:
    if state.query(event.query_id).status not in IN_FLIGHT:
        return state, ()  # taken back meanwhile; the store keeps the label
    state = state.with_queries((event.query_id,), status="labelled", failure=None)
    return replace(state, fresh=state.fresh + 1, failures=0), ()


def _label_failed(state: State, event: ev.LabelFailed) -> Step:
    if state.query(event.query_id).status not in IN_FLIGHT:
        return state, ()
    text = f"{event.failure}: {event.message}" if event.message else event.failure
    status = "skipped" if state.mode == "threshold" else "failed"
    state = state.with_queries((event.query_id,), status=status, failure=text)
    state = replace(state, failures=state.failures + 1)
    if state.failures >= MAX_FAILURES and state.paused is None:
        why = f"{state.failures} reference calculations failed in a row (last: {text})."
        state = replace(state, paused=why)
    return state, ()


def _batch_proposed(state: State, event: ev.BatchProposed) -> Step:
    waiting = set(state.ids("waiting"))
    proposal = tuple(i for i in event.ids if i in waiting)
    return replace(state, proposing=False, proposal=proposal), ()


def _frames_judged(state: State, event: ev.FramesJudged) -> Step:
    wanted, who = state.choosing, state.chosen_by
    state = replace(state, choosing=(), chosen_by="")
    queued = {q.frame_id for q in state.queue}
    new = [f for f in event.frames if f["frame_id"] in wanted and f["frame_id"] not in queued]
    queries = tuple(
        Query(
            id=len(state.queue) + k, reasons=("chosen",), at=event.at,
            energy_tolerance=state.energy_tolerance, force_tolerance=state.force_tolerance, **frame,
        )
        for k, frame in enumerate(new, 1)
    )  # fmt: skip
    state = replace(state, queue=(*state.queue, *queries))
    chosen = [q.id for q in state.queue if q.frame_id in wanted and q.status in WITHOUT_LABEL]
    affordable = chosen[: max(_budget(state), 0)]
    if not affordable:
        return state, ()
    return _decide(state, dict.fromkeys(affordable, "approved"), who, event.at)


def _updated(state: State, event: ev.Updated) -> Step:
    first = not state.trusted
    learned = state.ids("labelled")
    before = state.learned[-1] if state.learned else ()
    state = state.with_queries(learned, status="trained")
    at_label = first or state.here[0] in {state.query(i).frame_id for i in learned}
    go_back = state.settings.labelling.resume_from == "last-trusted" and not first
    rewind = go_back and at_label and state.anchor[1] < state.step
    state = replace(
        state, updating=False, trusted=True, fresh=0, refusals=0, snapshot=event.snapshot,
        learned=(*state.learned, (*before, *learned)),
        anchor=state.here if at_label and not rewind else state.anchor,
    )  # fmt: skip
    requests: list[Request] = []
    if state.ids("waiting"):
        requests.append(Rescore(state.ids("waiting")))
    if rewind:
        requests.append(Rewind(*state.anchor, fresh=False))
        state = replace(state, step=state.anchor[1], here=state.anchor)
    return state, tuple(requests)


def _rolled_back(state: State, event: ev.RolledBack) -> Step:
    kept = state.learned[event.to - 1]
    withdrawn = tuple(i for i in state.ids("trained") if i not in kept)
    state = state.with_queries(withdrawn, status="withdrawn")
    state = state.with_queries(kept, status="trained")
    state = replace(
        state, updating=False, restoring=None, snapshot=event.snapshot, refusals=0,
        learned=(*state.learned, kept),
    )  # fmt: skip
    waiting = state.ids("waiting")
    return state, (Rescore(waiting),) if waiting else ()


def _update_refused(state: State, event: ev.UpdateRefused) -> Step:
    refusals = state.refusals + 1
    state = replace(
        state, updating=False, fresh=0, refusals=refusals, updates_refused=state.updates_refused + 1
    )
    if event.contradicting:
        state = state.with_queries(
            event.contradicting, status="withdrawn", failure=f"set aside: {event.reason}"
        )
        state = replace(state, fresh=len(state.ids("labelled")))
    if not (state.trusted or event.contradicting) or refusals >= MAX_REFUSALS:
        why = f"New weights were refused {refusals} times in a row (last: {event.reason})."
        state = replace(state, paused=why)
    return state, ()


def _rescored(state: State, event: ev.Rescored) -> Step:
    if state.query(event.query_id).status != "waiting":
        return state, ()
    changes: dict[str, Any] = {
        "sigma_energy": event.sigma_energy, "sigma_force": event.sigma_force,
        "probability": event.probability, "energy_bound": event.energy_bound,
        "force_bound": event.force_bound, "sigma_stress": event.sigma_stress,
        "stress_bound": event.stress_bound, "novelty": event.novelty,
    }  # fmt: skip
    if event.reasons:
        changes["reasons"] = event.reasons
    else:
        changes |= {"status": "skipped", "decided_by": "model", "decided_at": event.at}
    return state.with_queries((event.query_id,), **changes), ()


_HANDLERS: dict[type[ev.Event], Callable[[State, Any], Step]] = {
    ev.Start: _start,
    ev.Resume: _start,
    ev.Pause: _pause,
    ev.StepBy: _step_by,
    ev.Stop: _stop,
    ev.ChangeSetting: _change_setting,
    ev.Approve: _approve,
    ev.Reject: _reject,
    ev.Skip: _skip,
    ev.Retry: _retry,
    ev.ImportLabels: _import_labels,
    ev.ApplyThreshold: _apply_threshold,
    ev.LabelFrames: _label_frames,
    ev.ProposeBatch: _propose_batch,
    ev.RollBack: _roll_back,
    ev.Undo: _undo,
    ev.WorkerStarted: _worker_started,
    ev.WorkerFailed: _worker_failed,
    ev.StepCompiled: _step_compiled,
    ev.FrameChecked: _frame_checked,
    ev.StepsDone: _steps_done,
    ev.Broken: _broken,
    ev.LabelsSubmitted: _labels_submitted,
    ev.LabelArrived: _label_arrived,
    ev.LabelFailed: _label_failed,
    ev.BatchProposed: _batch_proposed,
    ev.Updated: _updated,
    ev.RolledBack: _rolled_back,
    ev.UpdateRefused: _update_refused,
    ev.Rescored: _rescored,
    ev.FramesJudged: _frames_judged,
}
