from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.campaign import events as ev
from core.campaign import loop
from core.campaign.loop import CommandRefusedError, advance, replay
from core.campaign.state import PHASES, State


class Driver:
    """Feeds events to `advance` and plays a worker that never fails."""

    def __init__(self, state: State) -> None:
        self.state, self.requests, self.frames = state, (), 1

    def __call__(self, *events: ev.Event) -> State:
        for event in events:
            self.state, self.requests = advance(self.state, event)
        return self.state

    def check(self, *reasons: str, probability: float = 0.9) -> State:
        self.frames += 1
        step = self.state.next_stop
        return self(
            ev.FrameChecked(
                frame_id=self.frames, step=step, key=f"k{self.frames}",
                snapshot=self.state.snapshot, reasons=reasons, probability=probability,
            )
        )  # fmt: skip

    def label(self, *ids: int) -> State:
        self(ev.LabelsSubmitted(ids=ids))
        return self(*(ev.LabelArrived(query_id=i) for i in ids))

    def update(self) -> State:
        return self(
            ev.Updated(snapshot=self.state.snapshot + 1, n_labels=self.state.n_labels, weights="w")
        )


@pytest.fixture
def drive(ready):
    return Driver(ready)


@pytest.fixture
def trusted(make_settings):
    """A function that returns a driver past the start of trust, in the mode asked for."""

    def make(mode: str = "threshold", **overrides) -> Driver:
        made = make_settings(**overrides)
        drive = Driver(State(made, n_atoms=7))
        drive(ev.Start())
        for _ in range(3):
            drive.check("initial")
        drive.label(1, 2, 3)
        drive.update()
        drive(ev.ChangeSetting(path="labelling.mode", value=mode))
        return drive

    return make


def test_trust_starts_with_labelled_frames(drive):
    assert drive.state.phase == "ready"
    assert drive(ev.Start()).phase == "running"
    drive.check("initial")
    assert drive.requests == (loop.SubmitLabels((1,)),)
    drive.check("initial")
    assert drive.state.phase == "running" and not drive.state.trusted
    assert drive.check("initial").phase == "labelling"
    drive.label(1, 2)
    assert drive.label(3).phase == "updating"
    assert drive.requests == (loop.UpdateModel(first=True),)
    state = drive.update()
    assert state.phase == "running" and state.trusted and state.anchor == (4, 30)


def test_in_approve_mode_the_initial_frames_are_one_batch(make_settings):
    drive = Driver(State(make_settings(labelling__mode="approve"), n_atoms=7))
    drive(ev.Start())
    for _ in range(3):
        drive.check("initial")
    assert drive.state.phase == "deciding" and drive.state.proposal == (1, 2, 3)
    drive(ev.Approve(ids=(1, 2, 3)))
    assert drive.requests == (loop.SubmitLabels((1, 2, 3)),)
    assert drive(ev.Undo()).proposal == (1, 2, 3)
    assert drive.requests == (loop.CancelLabels((1, 2, 3)),)


def test_a_rejected_initial_frame_is_replaced(make_settings):
    drive = Driver(State(make_settings(labelling__mode="approve"), n_atoms=7))
    drive(ev.Start())
    for _ in range(3):
        drive.check("initial")
    drive(ev.Reject(ids=(2,)))
    assert drive.state.phase == "running"
    assert drive.check("initial").phase == "deciding"
    assert drive.state.ids("waiting") == (1, 3, 4)


def test_threshold_labels_without_asking(trusted):
    drive = trusted()
    assert drive.check().phase == "running"
    assert drive.check("energy").phase == "labelling"
    assert drive.requests == (loop.SubmitLabels((4,)),)
    query = drive.state.query(4)
    assert query.decided_by == "threshold" and query.reasons == ("energy",)
    assert drive.label(4).phase == "updating"
    assert drive.update().phase == "running"
    assert drive.state.query(4).status == "trained"


def test_approve_holds_until_a_decision_and_reject_goes_on(trusted):
    drive = trusted("approve")
    assert drive.check("force").phase == "deciding"
    step = drive.state.step
    assert drive(ev.Reject(ids=(4,), who="Ada")).phase == "running"
    assert drive.state.next_stop == step + 10
    assert drive.state.query(4).decided_by == "Ada"


def test_a_batch_collects_is_proposed_and_is_undone_as_one(trusted):
    drive = trusted("batch", labelling__batch_size=2)
    for _ in range(3):
        assert drive.check("energy").phase == "running"
    drive.check("energy")
    assert drive.requests == (loop.SelectBatch((4, 5, 6, 7), 2),)
    assert drive(ev.BatchProposed(ids=(4, 6))).phase == "deciding"
    assert drive(ev.Approve(ids=(4, 6))).phase == "labelling"
    assert drive(ev.Undo()).proposal == (4, 6)
    assert drive.state.ids("waiting") == (4, 5, 6, 7)
    drive(ev.Approve(ids=(4, 6)))
    drive.label(4, 6)
    drive.update()
    assert drive.requests == (loop.Rescore((5, 7)),)


def test_a_rescored_frame_that_is_trusted_now_leaves_the_queue(trusted):
    drive = trusted("batch")
    drive.check("energy")
    rescored = ev.Rescored(
        query_id=4, reasons=(), sigma_energy=0, sigma_force=0, probability=0.99,
        energy_bound=0, force_bound=0,
    )  # fmt: skip
    query = drive(rescored).query(4)
    assert (query.status, query.decided_by) == ("skipped", "model")


def test_a_threshold_on_the_queue_is_one_decision(trusted):
    drive = trusted("batch")
    for probability in (0.2, 0.9):
        drive.check("energy", probability=probability)
    drive(ev.ApplyThreshold(probability=0.5))
    assert [drive.state.query(i).status for i in (4, 5)] == ["approved", "rejected"]
    drive(ev.Undo())
    assert drive.state.ids("waiting") == (4, 5)


def test_labels_computed_elsewhere_are_learned_like_others(trusted):
    drive = trusted("approve")
    for reason in ("energy", "force"):
        drive.check(reason)
        drive(ev.Reject(ids=(len(drive.state.queue),)))
    drive(ev.ImportLabels(ids=(4,), source="x.extxyz", who="Ada"))
    assert drive.state.phase == "updating"
    assert drive.requests == (loop.UpdateModel(first=False),)
    query = drive.update().query(4)
    assert (query.status, query.by_hand, query.decided_by) == ("trained", True, "Ada")
    assert not drive.state.query(5).by_hand
    with pytest.raises(CommandRefusedError, match="Frame 4 is trained"):
        drive(ev.ImportLabels(ids=(4,)))


def test_a_label_at_the_reference_is_not_imported(trusted):
    drive = trusted()
    drive.check("energy")
    with pytest.raises(CommandRefusedError, match="Frame 4 is approved"):
        drive(ev.ImportLabels(ids=(4,)))


def test_imported_labels_may_begin_trust_and_answer_a_failure(make_settings):
    drive = Driver(State(make_settings(labelling__mode="approve"), n_atoms=7))
    drive(ev.Start())
    for _ in range(3):
        drive.check("initial")
    drive(ev.Approve(ids=(1,)))
    drive(ev.LabelsSubmitted(ids=(1,)), ev.LabelFailed(query_id=1, failure="unconverged"))
    drive(ev.ImportLabels(ids=(1,)))
    assert drive.state.query(1).failure is None and drive.state.phase == "deciding"
    assert drive.state.proposal == (2, 3)
    drive(ev.ImportLabels(ids=(2, 3)))
    assert drive.requests == (loop.UpdateModel(first=True),)


def test_an_import_is_taken_back_while_it_is_not_in_use(trusted):
    drive = trusted("approve")
    drive.check("energy")
    drive(ev.Pause(), ev.ImportLabels(ids=(4,)))
    assert drive.state.query(4).status == "labelled" and drive.state.fresh == 1
    query = drive(ev.Undo()).query(4)
    assert (query.status, query.by_hand, drive.state.fresh) == ("waiting", False, 0)


def learned_three_times(trusted):
    """A campaign that learned its first labels, then one and one more."""
    drive = trusted()
    for _ in range(2):
        drive.check("energy")
        drive.label(len(drive.state.queue))
        drive.update()
    assert drive.state.learned == ((1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 5))
    return drive


def test_going_back_sets_later_labels_aside_and_they_can_be_taken_in_again(trusted):
    drive = learned_three_times(trusted)
    state = drive(ev.RollBack(snapshot=1))
    assert drive.requests == (loop.RestoreSnapshot(1),) and state.phase == "updating"
    state = drive(ev.RolledBack(snapshot=4, to=1, weights="w"))
    assert state.snapshot == 4 and state.learned[-1] == (1, 2, 3) and state.phase == "running"
    assert state.ids("withdrawn") == (4, 5) and state.n_labels == 3
    state = drive(ev.Retry(ids=(4,)))
    assert not any(isinstance(r, loop.SubmitLabels) for r in drive.requests), "it is paid for"
    assert drive.requests == (loop.UpdateModel(first=False),)
    state = drive.update()
    assert state.learned[-1] == (1, 2, 3, 4) and state.ids("withdrawn") == (5,)


def test_going_back_can_itself_be_taken_back(trusted):
    drive = learned_three_times(trusted)
    drive(ev.RollBack(snapshot=2), ev.RolledBack(snapshot=4, to=2, weights="w"))
    assert drive.state.ids("withdrawn") == (5,)
    drive(ev.RollBack(snapshot=3), ev.RolledBack(snapshot=5, to=3, weights="w"))
    assert drive.state.ids("withdrawn") == () and drive.state.learned[-1] == (1, 2, 3, 4, 5)


def test_going_back_to_what_is_not_there_is_refused(trusted):
    drive = learned_three_times(trusted)
    for snapshot, why in ((0, "there are 1 to 3"), (4, "there are 1 to 3"), (3, "in force")):
        with pytest.raises(loop.CommandRefusedError, match=why):
            drive(ev.RollBack(snapshot=snapshot))
    drive(ev.RollBack(snapshot=1))
    with pytest.raises(loop.CommandRefusedError, match="is learning"):
        drive(ev.RollBack(snapshot=2))


def test_a_worker_that_takes_over_goes_on_going_back(trusted):
    drive = learned_three_times(trusted)
    drive(ev.RollBack(snapshot=1))
    assert loop.outstanding(drive.state) == (loop.RestoreSnapshot(1),)
    state = drive(ev.Stop())
    assert state.restoring is None and loop.outstanding(state) == ()


def test_withdrawn_labels_stay_paid_for(trusted):
    drive = learned_three_times(trusted)
    drive(ev.RollBack(snapshot=1), ev.RolledBack(snapshot=4, to=1, weights="w"))
    drive(ev.ChangeSetting(path="labelling.max_labels", value=5))
    state = drive.check("energy")
    assert state.paused is not None and "All 5 labels" in state.paused


def test_undo_stops_at_labels_in_use(trusted):
    drive = trusted("approve")
    drive.check("energy")
    drive(ev.Approve(ids=(4,)))
    drive.label(4)
    with pytest.raises(CommandRefusedError, match="in use"):
        drive(ev.Undo())
    drive.update()
    with pytest.raises(CommandRefusedError, match="in use"):
        drive(ev.Undo())


def test_undoing_the_threshold_asks_a_person(trusted):
    drive = trusted()
    drive.check("energy")
    assert drive(ev.Undo()).phase == "deciding"
    assert drive.requests == (loop.CancelLabels((4,)),)
    assert drive(ev.LabelArrived(query_id=4)).query(4).status == "waiting"


def test_a_failed_label_does_not_stop_a_threshold_campaign(trusted):
    drive = trusted()
    for i in (4, 5):
        drive.check("energy")
        state = drive(ev.LabelFailed(query_id=i, failure="unconverged", message="no SCF"))
        assert state.phase == "running" and state.query(i).status == "skipped"
    drive.check("energy")
    assert drive(ev.LabelFailed(query_id=6, failure="timeout")).phase == "paused"
    assert "3 reference calculations failed" in drive.state.paused
    assert drive(ev.Resume()).phase == "running"
    assert drive(ev.Retry(ids=(4,))).query(4).status == "approved"


def test_a_label_that_arrives_ends_the_row_of_failures(trusted):
    drive = trusted()
    for i in (4, 5, 6, 7, 8):
        drive.check("energy")
        if i == 6:
            drive.label(i)
            drive.update()
        else:
            drive(ev.LabelFailed(query_id=i, failure="timeout"))
    assert drive.state.phase == "running"


def test_a_failed_label_waits_for_a_person_in_approve_mode(trusted):
    drive = trusted("approve")
    drive.check("energy")
    drive(ev.Approve(ids=(4,)), ev.LabelFailed(query_id=4, failure="crashed"))
    assert drive.state.phase == "deciding" and drive.state.query(4).status == "failed"
    assert drive(ev.Skip(ids=(4,))).phase == "running"


def test_broken_dynamics_rewind_and_pause_in_the_end(trusted):
    drive = trusted()
    drive.check()
    for attempt in range(1, loop.MAX_ATTEMPTS + 2):
        state = drive(ev.Broken(step=43, reason="too hot"))
        assert drive.requests == (loop.Rewind(5, 40, fresh=True),) and state.step == 40
        assert (state.phase == "paused") == (attempt > loop.MAX_ATTEMPTS)
    assert "too hot" in state.paused and state.steps_run == 40 + 3 * 6


def test_a_break_between_two_checks_goes_back_to_the_last_trusted_frame(trusted):
    drive = trusted()
    drive.check()
    drive(ev.StepBy(steps=5), ev.StepsDone(step=45), ev.Resume(), ev.Broken(step=47, reason="x"))
    assert drive.state.step == 40 and drive.state.steps_run == 47


def test_passing_the_broken_place_resets_the_attempts(trusted):
    drive = trusted()
    drive(ev.Broken(step=35, reason="x"))
    assert drive.check().attempts == 0
    drive(ev.Broken(step=55, reason="x"))
    assert drive.check().attempts == 1


def test_refused_weights_leave_the_old_ones_and_pause_if_repeated(trusted):
    drive = trusted()
    for i in (4, 5, 6):
        drive.check("energy")
        drive.label(i)
        state = drive(ev.UpdateRefused(reason="drift"))
        assert state.snapshot == 1 and state.query(i).status == "labelled"
    assert state.phase == "paused" and "drift" in state.paused and state.updates_refused == 3


def test_a_refused_first_update_is_tried_again_on_resume(drive):
    drive(ev.Start())
    for _ in range(3):
        drive.check("initial")
    drive.label(1, 2, 3)
    assert drive(ev.UpdateRefused(reason="drift")).phase == "paused"
    assert drive(ev.Resume()).phase == "updating"
    assert drive.requests == (loop.UpdateModel(first=True),)


def test_going_back_to_the_last_trusted_frame(trusted):
    drive = trusted(labelling__resume_from="last-trusted")
    drive.check()
    drive.check("energy")
    drive.label(4)
    state = drive.update()
    assert drive.requests == (loop.Rewind(5, 40, fresh=False),)
    assert (state.step, state.steps_run) == (40, 50)


def test_stepping_pauses_after_the_steps(trusted):
    drive = trusted()
    drive(ev.StepBy(steps=7))
    assert drive.state.next_stop == 37
    assert drive(ev.StepsDone(step=37)).phase == "paused"
    assert drive(ev.Resume()).next_stop == 40


def test_live_settings_change_and_others_do_not(trusted):
    drive = trusted()
    drive(ev.ChangeSetting(path="trust.energy_tolerance", value="1 kcal/mol"))
    assert drive.state.energy_tolerance == pytest.approx(0.0433641)
    assert drive.requests == (loop.Reconfigure(),)
    with pytest.raises(CommandRefusedError, match="cannot be changed"):
        drive(ev.ChangeSetting(path="posterior.kind", value="sghmc"))
    with pytest.raises(CommandRefusedError, match="confidence"):
        drive(ev.ChangeSetting(path="trust.confidence", value=7))


def test_the_label_budget_pauses_and_can_be_raised(trusted):
    drive = trusted(labelling__max_labels=3)
    assert drive.check("energy").phase == "paused" and "max_labels" in drive.state.paused
    drive(ev.ChangeSetting(path="labelling.max_labels", value=5))
    assert drive(ev.Resume()).phase == "labelling"


def test_a_person_cannot_exceed_the_label_budget(trusted):
    drive = trusted("approve", labelling__max_labels=3)
    drive.check("energy")
    with pytest.raises(CommandRefusedError, match="max_labels"):
        drive(ev.Approve(ids=(4,)))


def test_a_frame_decided_during_the_selection_is_not_proposed(trusted):
    drive = trusted("batch", labelling__batch_size=2)
    for _ in range(4):
        drive.check("energy")
    drive(ev.Reject(ids=(4,)))
    assert drive(ev.BatchProposed(ids=(4, 6))).proposal == (6,)


def test_the_end_and_more_steps(trusted):
    drive = trusted(dynamics__steps=40)
    assert drive.check().phase == "finished"
    with pytest.raises(CommandRefusedError, match="raise dynamics.steps"):
        drive(ev.Resume())
    assert drive(ev.ChangeSetting(path="dynamics.steps", value=60)).phase == "running"


def test_stop_cancels_labels_and_resume_takes_them_up(trusted):
    drive = trusted()
    drive.check("energy")
    assert drive(ev.Stop()).phase == "finished"
    assert drive.requests == (loop.CancelLabels((4,)),)
    assert drive(ev.Resume()).phase == "labelling"
    assert drive.requests == (loop.SubmitLabels((4,)),)


def test_a_new_worker_takes_up_what_was_under_way(trusted):
    drive = trusted()
    drive.check("energy")
    drive(ev.WorkerStarted(pid=1))
    assert drive.requests == (loop.SubmitLabels((4,)),)
    drive.label(4)
    drive(ev.WorkerStarted(pid=2))
    assert drive.requests == (loop.UpdateModel(first=False),)


def test_a_failed_worker_is_seen_and_resumed(trusted):
    drive = trusted()
    drive.check("energy")
    drive.label(4)
    assert drive(ev.WorkerFailed(traceback="Traceback\nValueError: no")).phase == "failed"
    assert drive(ev.WorkerStarted(pid=2)).phase == "paused"
    assert "ValueError: no" in drive.state.paused
    assert drive(ev.Resume()).phase == "updating"


def test_frames_chosen_by_a_person_are_judged_labelled_and_taken_back_as_one(trusted):
    drive = trusted("threshold")
    for _ in range(4):
        drive.check()
    drive.check("energy")
    there = {q.frame_id for q in drive.state.queue}
    free = [i for i in range(1, drive.state.here[0] + 1) if i not in there][:2]
    drive(ev.LabelFrames(frame_ids=tuple(free), who="page 1"))
    assert drive.requests == (loop.JudgeFrames(tuple(free)),)
    assert loop.JudgeFrames(tuple(free)) in loop.outstanding(drive.state)
    state = drive(ev.FramesJudged(frames=tuple(judged_frame(i) for i in free)))
    new = tuple(q.id for q in state.queue if q.reasons == ("chosen",))
    assert [state.query(i).frame_id for i in new] == free and not state.choosing
    assert {state.query(i).decided_by for i in new} == {"page 1"}
    assert drive.requests == (loop.SubmitLabels(new),)
    undone = drive(ev.Undo())
    assert {undone.query(i).status for i in new} == {"waiting"}


def test_frames_that_cannot_be_chosen_are_refused(trusted, make_settings):
    drive = trusted("approve")
    drive.check("energy")
    learned, flagged = drive.state.query(1).frame_id, drive.state.query(4).frame_id
    for ids, why in (
        ((), "No frame"), ((flagged, flagged), "twice"), ((learned,), "is trained"),
        ((0,), "no frame 0"), ((drive.state.here[0] + 1,), "no frame"),
    ):  # fmt: skip
        with pytest.raises(CommandRefusedError, match=why):
            drive(ev.LabelFrames(frame_ids=ids))
    drive(ev.LabelFrames(frame_ids=(flagged,)))
    with pytest.raises(CommandRefusedError, match="being judged"):
        drive(ev.LabelFrames(frame_ids=(flagged,)))
    state = drive(ev.FramesJudged(frames=(judged_frame(flagged),)))
    assert state.query(4).status == "approved" and len(state.queue) == 4
    before = Driver(State(make_settings(), n_atoms=5))
    before(ev.Start())
    with pytest.raises(CommandRefusedError, match="first labels"):
        before(ev.LabelFrames(frame_ids=(1,)))


def test_no_more_frames_are_chosen_than_labels_are_allowed(trusted):
    drive = trusted("approve", labelling__max_labels=4)
    for _ in range(3):
        drive.check()
    free = tuple(drive.state.here[0] - k for k in range(2))
    with pytest.raises(CommandRefusedError, match="max_labels"):
        drive(ev.LabelFrames(frame_ids=free))
    drive(ev.LabelFrames(frame_ids=free[:1]))
    assert drive(ev.Stop()).choosing == ()
    assert drive(ev.FramesJudged(frames=(judged_frame(free[0]),))).counts["approved"] == 0


@pytest.mark.parametrize("ids", [(), (9,), (0,), (1,), (4, 4)])
def test_decisions_about_impossible_frames_are_refused(trusted, ids):
    drive = trusted("approve")
    drive.check("energy")
    with pytest.raises(CommandRefusedError):
        drive(ev.Approve(ids=ids))


frame_numbers = st.lists(st.integers(0, 40), unique=True, max_size=3)


def judged_frame(number: int) -> dict:
    """What is judged of a stored frame, as a worker would tell it."""
    return {
        "frame_id": number, "step": 10 * number, "key": f"chosen {number}", "snapshot": 1,
        "sigma_energy": 0.01, "sigma_force": 0.1, "probability": 0.9, "energy_bound": 0.02,
        "force_bound": 0.2, "sigma_stress": None, "stress_bound": None, "novelty": 1.0,
    }  # fmt: skip


def random_event(draw, driver: Driver) -> ev.Event | None:
    """One event that a person or a worker could produce now."""
    state = driver.state
    ids = tuple(range(1, len(state.queue) + 1))
    some = tuple(draw(st.lists(st.sampled_from(ids), unique=True, max_size=4))) if ids else ()
    person = [
        ev.Start(), ev.Pause(), ev.Resume(), ev.StepBy(steps=draw(st.integers(1, 25))), ev.Stop(),
        ev.Undo(), ev.ProposeBatch(), ev.ApplyThreshold(probability=draw(st.floats(0, 1))),
        ev.Approve(ids=some), ev.Reject(ids=some), ev.Skip(ids=some), ev.Retry(ids=some),
        ev.RollBack(snapshot=draw(st.integers(0, 5))),
        ev.LabelFrames(frame_ids=tuple(draw(frame_numbers)), who="page 1"),
        ev.ChangeSetting(
            path="labelling.mode", value=draw(st.sampled_from(["approve", "threshold", "batch"]))
        ),
    ]  # fmt: skip
    worker: list[ev.Event] = [ev.WorkerStarted(pid=1), ev.WorkerFailed(traceback="x")]
    for i in state.ids("approved", "labelling"):
        worker += [ev.LabelsSubmitted(ids=(i,)), ev.LabelArrived(query_id=i)]
        worker.append(ev.LabelFailed(query_id=i, failure="timeout"))
    if state.restoring is not None:
        back = ev.RolledBack(snapshot=len(state.learned) + 1, to=state.restoring, weights="w")
        worker += [back] * 3
    elif state.updating:
        worker += [ev.Updated(snapshot=state.snapshot + 1, n_labels=state.n_labels, weights="w")]
        worker += [ev.UpdateRefused(reason="drift")]
    if state.proposing:
        worker.append(ev.BatchProposed(ids=state.ids("waiting")[:2]))
    if state.choosing:
        judged = tuple(judged_frame(i) for i in state.choosing)
        worker += [ev.FramesJudged(frames=judged)] * 3
    if state.phase == "running":
        driver.frames += 1
        reasons = draw(st.sampled_from([(), ("energy",), ("force",)]))
        checked = ev.FrameChecked(
            frame_id=driver.frames, step=state.next_stop, key=str(driver.frames),
            snapshot=state.snapshot, reasons=reasons if state.trusted else ("initial",),
            probability=0.5,
        )  # fmt: skip
        worker += [checked] * 6 + [ev.Broken(step=state.step + 3, reason="hot")]
    return draw(st.sampled_from(person + worker * 3))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_histories_keep_the_invariants(data):
    from core.settings import from_dict

    made = from_dict(
        {
            "structure": {"smiles": "C"},
            "trust": {"initial_labels": 2, "initial_stride": 5},
            "labelling": {"batch_size": 2, "max_labels": 12},
        }
    )
    driver, journal, trained = Driver(State(made, n_atoms=5)), [], {}
    for _ in range(data.draw(st.integers(1, 120))):
        event, before = random_event(data.draw, driver), driver.state
        try:
            driver(event)
        except CommandRefusedError:
            assert driver.state is before and isinstance(event, ev.Command)
            continue
        journal.append(event)
        check_invariants(before, event, driver, trained)
    copies = [ev.from_json(ev.to_json(event)) for event in journal]
    assert replay(State(made, n_atoms=5), copies) == driver.state


def check_invariants(before: State, event: ev.Event, driver: Driver, trained: dict) -> None:
    after = driver.state
    assert after.phase in PHASES
    assert [q.id for q in after.queue] == list(range(1, len(after.queue) + 1))
    assert len({q.frame_id for q in after.queue}) == len(after.queue)
    assert all(after.query(i).status in ("trained", "withdrawn", "labelled") for i in trained)
    trained.update(dict.fromkeys(after.ids("trained")))
    if after.learned:
        assert set(after.learned[-1]) == set(after.ids("trained"))
        assert len(set(after.learned[-1])) == len(after.learned[-1])
    spent = after.ids("approved", "labelling", "labelled", "trained", "withdrawn")
    assert len(spent) <= 12
    submitted = {i for r in driver.requests if isinstance(r, loop.SubmitLabels) for i in r.ids}
    assert submitted <= set(after.ids("approved", "labelling"))
    assert set(after.proposal) <= set(after.ids("waiting"))
    assert not (after.updating and before.updating and after.ids("approved", "labelling"))
    if isinstance(event, ev.Undo):
        undone = before.history[-1].before
        assert all(after.query(i).status in (s, "approved") for i, s in undone)
    assert replace(after, queue=after.queue) == after
