"""Whole campaigns in this process: Lennard-Jones argon learning another Lennard-Jones argon."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import torch

from core import worker
from core.campaign import events as ev
from core.campaign import live, store
from core.campaign.engine import WHOLE_SNAPSHOTS, Engine
from core.campaign.learner import Learner
from core.campaign.loop import replay
from core.campaign.reader import CampaignReader, Commander
from core.campaign.runner import Runner
from core.contracts import Compilation


@pytest.fixture
def prepared(tmp_path, make_settings):
    """A function that makes a campaign with overrides, and returns its directory."""

    def make(**overrides):
        directory = tmp_path / "campaign"
        worker.prepare(directory, make_settings(**overrides))
        return directory

    return make


def trajectory(directory) -> dict[str, np.ndarray]:
    with CampaignReader(directory) as reader:
        columns = reader.frames_since(1)
    return {name: columns[name][columns["rewound"] == 0] for name in columns}


def test_a_campaign_learns_and_comes_to_trust(finished):
    with CampaignReader(finished) as reader:
        state, labels, snapshots = reader.state(), reader.labels(), reader.snapshots()
    assert state.phase == "finished" and state.trusted and state.step == 200
    assert {q.status for q in state.queue} == {"trained"}
    assert len(labels) == state.n_labels >= 3 and all(lab.learned for lab in labels)
    assert len({s.weights for s in snapshots}) == len(snapshots)
    assert (trajectory(finished)["kind"] == "trusted").sum() >= 10


def test_the_journal_replays_to_the_same_state(finished):
    reader = CampaignReader(finished)
    events = [event for _, event in reader.events_since(0)]
    runner = Runner(finished)
    assert replay(store.initial_state(runner.store.connection), events) == reader.state()
    assert runner.state == reader.state()
    runner.close()


def test_predictions_before_an_update_are_kept_with_the_label(finished):
    with CampaignReader(finished) as reader:
        for label in reader.labels():
            frame = reader.frame(label.frame_id)
            assert label.z is not None and label.force_ratio > 0
            if frame.kind == "flagged":
                assert label.predicted == pytest.approx(frame.energy)
                assert label.z == pytest.approx((label.energy - frame.energy) / frame.sigma_energy)


def test_learning_may_use_more_threads_than_the_simulation(prepared, monkeypatch):
    seen = []
    update = Learner.first_update

    def watched(self, *given):
        seen.append(torch.get_num_threads())
        return update(self, *given)

    monkeypatch.setattr(Learner, "first_update", watched)
    runner = Runner(prepared(potential__learning_threads=2))
    runner.open()
    runner.apply(ev.Start())
    runner.run(lambda state: state.trusted)
    runner.close()
    assert seen == [2] and torch.get_num_threads() == 1


def test_what_became_of_compiling_the_step_is_journalled_once(prepared, monkeypatch):
    runner = Runner(prepared())
    runner.open()
    made = SimpleNamespace(news=[Compilation(before_ms=5.0, after_ms=1.0)], close=lambda: None)
    monkeypatch.setattr(runner.engine, "_compiler", made)
    runner.apply(ev.Start())
    runner.run(lambda state: state.step >= 20)
    state = runner.state
    runner.close()
    with CampaignReader(runner.directory) as reader:
        found = [e for _, e in reader.events_since(0) if isinstance(e, ev.StepCompiled)]
        assert reader.state() == state
    assert [(e.before_ms, e.after_ms, e.problem) for e in found] == [(5.0, 1.0, "")]


def test_old_snapshots_keep_their_weights_only(prepared):
    directory = prepared(labelling__every=20)
    worker.run_inline(directory)
    with CampaignReader(directory) as reader:
        paths = [directory / snapshot.path for snapshot in reader.snapshots()]
    kept = [sorted(safetensors.numpy.load_file(path)) for path in paths]
    assert len(paths) > WHOLE_SNAPSHOTS and all("theta" in names for names in kept)
    whole = ["directions" in names for names in kept]
    assert whole == [False] * (len(paths) - WHOLE_SNAPSHOTS) + [True] * WHOLE_SNAPSHOTS


def test_a_step_between_checks_is_judged_where_the_energy_may_be_off(prepared, monkeypatch):
    runner = Runner(prepared(dynamics__check_every=50, trust__force_tolerance="none"))
    runner.open()
    runner.apply(ev.Start())
    runner.run(lambda _: runner.engine.judged and runner.engine.judged.kind == "trusted")
    at, sigma, engine = runner.state.step, Engine.sigma_energy.fget, runner.engine
    rises = [float("inf") if k == 7 else 0.0 for k in range(1000)]
    seen = []

    def watched(self):
        seen.append(sigma(self))
        return max(sigma(self), rises[self.dynamics.step - at]) if self.dynamics.step > at else 0.0

    monkeypatch.setattr(Engine, "sigma_energy", property(watched))
    monkeypatch.setattr(runner, "_publish", lambda **_: None)
    runner.run(lambda state: state.step > at)
    assert runner.state.step == at + 7 and engine.suspicious
    assert np.isfinite(seen).all() and min(seen) > 0
    judged = engine.judged
    assert judged.step == at + 7
    monkeypatch.undo()
    assert engine.sigma_energy == pytest.approx(judged.sigma_energy, rel=1e-5)
    for kind, may_ask in (("trusted", True), ("flagged", False)):
        engine.judged = replace(judged, kind=kind)
        assert np.isfinite(engine._energy_limit(runner.state)) == may_ask
    runner.close()


def test_a_campaign_with_a_fixed_period_watches_nothing(prepared):
    runner = Runner(prepared(labelling__every=10, dynamics__check_every=10))
    runner.open()
    runner.apply(ev.Start())
    runner.run(lambda state: state.trusted and state.step > 60)
    assert np.isnan(runner.engine.sigma_energy)
    assert all(q.step % 10 == 0 for q in runner.state.queue)
    runner.close()


def test_frames_before_trust_are_marked(finished):
    columns = trajectory(finished)
    assert set(columns["kind"][columns["step"] <= 30]) == {"untrusted"}
    assert "untrusted" not in columns["kind"][columns["step"] > 30]
    assert (columns["snapshot"][columns["step"] > 30] >= 1).all()


def test_the_same_seed_gives_the_same_campaign(finished, prepared):
    directory = prepared()
    worker.run_inline(directory)
    again, before = trajectory(directory), trajectory(finished)
    np.testing.assert_array_equal(again["energy"], before["energy"])
    np.testing.assert_array_equal(again["sigma_energy"], before["sigma_energy"])


def test_an_interrupted_campaign_ends_as_an_uninterrupted_one(finished, prepared):
    directory = prepared()
    worker.run_inline(directory, until=lambda state: state.step >= 20)
    worker.run_inline(directory, until=lambda state: state.step >= 120)
    worker.run_inline(directory)
    resumed, whole = trajectory(directory), trajectory(finished)
    np.testing.assert_array_equal(resumed["step"], whole["step"])
    np.testing.assert_allclose(resumed["energy"], whole["energy"], atol=2e-5)


@pytest.mark.parametrize("kind", ["sghmc", "last-layer", "deep-ensemble", "blip"])
def test_another_posterior_drives_the_same_loop(prepared, kind):
    directory = prepared(
        posterior__kind=kind, posterior__sghmc_steps=20, posterior__chains=2,
        posterior__descent_steps=20, posterior__ensemble=2, dynamics__steps=60,
    )  # fmt: skip
    state = worker.run_inline(directory)
    assert state.trusted and (state.phase == "finished" or state.updates_refused)


def test_a_new_worker_shows_the_last_check_before_it_makes_one(prepared):
    directory = prepared(labelling__mode="approve")
    worker.run_inline(directory, until=lambda state: state.trusted)
    (directory / live.FILE).unlink()
    runner = Runner(directory)
    runner.open()
    shown, last = live.LiveReader(directory).read(), store.read_last_frame(runner.store.connection)
    runner.close()
    assert shown.sigma_atoms == pytest.approx(last.sigma_atoms)
    assert shown.force_bound == last.force_bound


def test_approve_mode_waits_and_a_person_decides(prepared):
    directory = prepared(labelling__mode="approve")
    commander = Commander(directory)
    state = worker.run_inline(directory)
    assert state.phase == "deciding" and state.proposal == (1, 2, 3)
    approved = commander.post(ev.Approve(ids=(1, 2, 3), who="Ada"))
    changed = commander.post(
        ev.ChangeSetting(path="trust.energy_tolerance", value="0.003 eV", who="Ada")
    )
    refused = commander.post(ev.Reject(ids=(9,)))
    state = worker.run_inline(directory)
    with CampaignReader(directory) as reader:
        assert reader.command(approved).outcome == reader.command(changed).outcome == "done"
        assert "no flagged frame 9" in reader.command(refused).outcome
    assert state.trusted and state.query(1).decided_by == "Ada"
    assert state.energy_tolerance == 0.003


def test_a_batch_is_selected_from_what_was_collected(prepared):
    directory = prepared(
        labelling__mode="batch", labelling__batch_size=2, trust__energy_tolerance=1e-5
    )
    worker.run_inline(directory)
    Commander(directory).post(ev.Approve(ids=(1, 2, 3)))
    state = worker.run_inline(directory)
    assert state.phase == "deciding" and len(state.proposal) == 2
    assert set(state.proposal) < set(state.ids("waiting")) and len(state.ids("waiting")) == 4


def test_a_batch_by_sigma_is_the_least_certain_of_what_was_collected(prepared):
    directory = prepared(
        labelling__mode="batch", labelling__batch_size=2, labelling__batch_by="sigma",
        trust__energy_tolerance=1e-5,
    )  # fmt: skip
    worker.run_inline(directory)
    Commander(directory).post(ev.Approve(ids=(1, 2, 3)))
    state = worker.run_inline(directory)
    waiting = sorted(state.ids("waiting"), key=lambda i: -state.query(i).sigma_force)
    assert state.proposal == tuple(waiting[:2]) and len(waiting) == 4
    runner = Runner(directory)
    runner.open()
    frames = [runner._frame(state.query(i).frame_id).of(runner.structure) for i in waiting]
    for sigmas, expected in (((1, 2, 3, 4), [3, 2]), ((2, 4, 3, 1), [1, 2])):
        assert runner.engine.select(frames, sigmas, 2) == expected
    runner.close()


def test_steps_are_counted_exactly(prepared):
    directory = prepared()
    commander = Commander(directory)
    worker.run_inline(directory, until=lambda state: state.trusted)
    commander.post(ev.StepBy(steps=7))
    state = worker.run_inline(directory)
    assert state.phase == "paused" and state.step == 37


def test_exploding_dynamics_rewind_and_pause(prepared):
    directory = prepared(dynamics__timestep_fs=5, dynamics__max_speed_factor=1.01)
    state = worker.run_inline(directory)
    assert state.phase == "paused" and "exploding" in state.paused
    assert state.rewinds == 6 and state.n_labels == 0


def test_refused_weights_are_rolled_back(prepared, monkeypatch):
    monkeypatch.setattr("core.campaign.canary.DRIFT_KT", 0.0)
    directory = prepared()
    state = worker.run_inline(directory)
    assert state.phase == "paused" and "conserve energy" in state.paused
    assert not state.trusted and state.updates_refused == 1
    monkeypatch.undo()
    assert worker.run_inline(directory).phase == "finished"


def test_labels_that_fail_are_states(prepared):
    directory = prepared(labelling__time_limit_s=1e-3)
    state = worker.run_inline(directory)
    assert state.phase == "paused" and "failed in a row" in state.paused
    failed = [q for q in state.queue if q.status == "skipped"]
    assert len(failed) == 3 and all(q.failure.startswith("timeout") for q in failed)


def test_each_update_leaves_a_receipt(strict):
    with CampaignReader(strict) as reader:
        receipts = [snapshot.info["receipt"] for snapshot in reader.snapshots()]
    first, second = receipts[:2]
    assert set(first["errors"]) == {"new"} and set(second["errors"]) == {"old", "new"}
    before, after = first["errors"]["new"]["force"]
    assert after < 0.5 * before
    (moved,) = first["moved"].values()
    assert moved["moved"] == moved["blocks"] == 2 and 0 < moved["step"] < 1
    assert moved["step"] == pytest.approx(moved["since_foundation"])
    assert first["forgotten"] is None and first["probes"] == 0


def test_going_back_puts_earlier_weights_in_force_and_the_campaign_goes_on(prepared):
    directory = prepared(labelling__every=20, dynamics__steps=120)
    runner = Runner(directory)
    runner.open()
    runner.apply(ev.Start())
    runner.run(lambda state: state.snapshot >= 3)
    runner.apply(ev.RollBack(snapshot=1))
    state = runner.state
    first, *_, last = store.read_snapshots(runner.store.connection)
    assert state.snapshot == last.id == 4 and last.weights == first.weights
    assert last.info == {"restored": 1} and last.calibration == first.calibration
    engine = runner.engine
    assert engine.potential.weights_hash() == first.weights
    assert len(engine.knowledge.labels) == first.n_labels == len(state.ids("trained"))
    withdrawn = state.ids("withdrawn")
    assert len(withdrawn) == 2
    runner.sync()
    runner.close()

    again = Runner(directory)  # as after a crash
    again.open()
    assert again.engine.potential.weights_hash() == first.weights
    assert [lab.query_id for lab in again.engine.knowledge.labels] == list(state.learned[0])
    again.apply(ev.Retry(ids=withdrawn[:1]))
    again.run(lambda s: s.phase == "finished")
    labels = [lab.query_id for lab in again.engine.knowledge.labels]
    again.close()
    assert withdrawn[0] in labels and withdrawn[1] not in labels
    assert again.state.snapshot >= 5


def test_labels_with_shuffled_forces_do_not_enter_the_simulation(prepared, monkeypatch):
    """They passed the check of a label, as if they were spoilt afterwards."""
    honest = Engine.poll
    spoilt: list[int] = []

    def poll(self):
        found = honest(self)
        for k, (query, label) in enumerate(found):
            if self.knowledge.snapshot and len(spoilt) < 2:
                spoilt.append(query)
                shuffled = 40 * np.roll(label.forces, 1, axis=0)  # argon's are small
                found[k] = query, replace(label, forces=shuffled)
        return found

    monkeypatch.setattr(Engine, "poll", poll)
    directory = prepared(labelling__every=20)
    state = worker.run_inline(directory)
    with CampaignReader(directory) as reader:
        events = [event for _, event in reader.events_since(0)]
    refused = [e for e in events if isinstance(e, ev.UpdateRefused)]
    assert len(refused) == 2 and "belonged to other atoms" in refused[0].reason
    assert [e.contradicting for e in refused] == [(i,) for i in spoilt]
    at = events.index(refused[0])
    before = [e for e in events[:at] if isinstance(e, ev.Updated)][-1]
    checks = [e for e in events[at:] if isinstance(e, ev.FrameChecked)]
    assert checks and checks[0].snapshot == before.snapshot, "the former weights stay in force"
    assert state.phase == "finished" and state.ids("withdrawn") == tuple(spoilt)
    assert max(e.snapshot for e in checks) > before.snapshot, "honest labels are learned again"
    with CampaignReader(directory) as reader:
        scored = {label.query_id for label in reader.labels() if label.z is not None}
    assert not scored & set(spoilt), "they do not spoil the calibration"
