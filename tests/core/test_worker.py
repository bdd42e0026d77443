"""The worker as a process: start, stop, kill at any moment, resume."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from core import settings, worker
from core.campaign import events as ev
from core.campaign.loop import replay
from core.campaign.reader import CampaignReader, Commander
from core.campaign.state import State
from core.errors import CampaignError, SettingsError
from core.worker import WorkerHandle

PATIENCE_S = 90


@pytest.fixture
def directory(tmp_path, argon):
    worker.prepare(tmp_path / "campaign", argon(tmp_path))
    return tmp_path / "campaign"


@pytest.fixture
def handle(directory):
    made = WorkerHandle(directory)
    yield made
    made.kill()


def wait(directory: Path, done, patience: float = PATIENCE_S) -> State:
    """Return the state once `done` is true of it."""
    end = time.monotonic() + patience
    with CampaignReader(directory) as reader:
        while not done(state := reader.state()):
            assert time.monotonic() < end, (state.phase, state.failure, state.paused, state.step)
            time.sleep(0.02)
        return state


class Program:
    """A pickle that runs `code` when it is opened."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


def check_nothing_lost(directory: Path) -> None:
    """The journal replays, and no label was bought twice or forgotten."""
    with CampaignReader(directory) as reader:
        events = [event for _, event in reader.events_since(0)]
        start = State(reader.settings, n_atoms=len(reader.structure))
        assert replay(start, events) == reader.state()
        labels = {label.query_id for label in reader.labels()}
        state = reader.state()
    assert labels == {q.id for q in state.queue if q.status in ("labelled", "trained")}
    arrived = Counter(e.query_id for e in events if isinstance(e, ev.LabelArrived))
    assert set(arrived.values()) <= {1}
    ledger = [json.loads(x) for x in (directory / "labels/ledger.jsonl").read_text().splitlines()]
    bought = Counter(e["key"] for e in ledger if e.get("outcome") == "label")
    assert set(bought.values()) <= {1}


@pytest.mark.parametrize("where", ["potential.model", "labelling.reference"])
def test_a_pickled_model_ends_the_campaign_unopened(tmp_path, argon, where):
    file, ran = tmp_path / "evil.model", tmp_path / "ran"
    file.write_bytes(pickle.dumps(Program(f"import pathlib; pathlib.Path({str(ran)!r}).touch()")))
    name = str(file) if where == "potential.model" else f"teacher:{file}"
    directory = tmp_path / "campaign"
    worker.prepare(directory, argon(tmp_path).with_value(where, name))
    Commander(directory).post(ev.Start(who="Ada"))
    handle = WorkerHandle(directory)
    handle.start()
    try:
        state = wait(directory, lambda s: s.phase == "failed")
    finally:
        handle.kill()
    assert "pickles, which run code when opened, so it was not opened" in state.failure
    assert not ran.exists()
    pickle.loads(file.read_bytes())
    assert ran.exists(), "it would have, had anybody opened it"


def test_a_worker_runs_a_campaign_to_its_end(directory, handle):
    Commander(directory).post(ev.Start(who="Ada"))
    handle.start()
    state = wait(directory, lambda s: s.phase == "finished")
    end = time.monotonic() + 10
    while handle.alive and time.monotonic() < end:
        time.sleep(0.02)
    assert not handle.alive and state.step == 200 and state.trusted
    with CampaignReader(directory) as reader:
        live = reader.live()
    assert live.step == 200 and live.trusted and live.phase == "finished"


def test_pause_and_a_live_change_survive_a_kill(directory, handle):
    commander = Commander(directory)
    commander.post(ev.Start())
    handle.start()
    wait(directory, lambda s: s.trusted)
    assert os.getpriority(os.PRIO_PROCESS, handle.pid) >= worker.NICENESS  # the page comes first
    commander.post(ev.ChangeSetting(path="dynamics.steps", value=100_000))
    commander.post(ev.ChangeSetting(path="trust.confidence", value=0.9))
    wait(directory, lambda s: s.settings.trust.confidence == 0.9)
    began = time.monotonic()
    commander.post(ev.Pause(who="Ada"))
    paused = wait(directory, lambda s: s.phase == "paused")
    assert time.monotonic() - began < 2.0  # 1 s where no other test runs
    handle.kill()
    assert not handle.alive
    posted = commander.post(ev.StepBy(steps=5))
    handle.start()
    state = wait(directory, lambda s: s.step == paused.step + 5)
    assert (
        state.settings.trust.confidence == 0.9 and state.paused == "The steps asked for are done."
    )
    with CampaignReader(directory) as reader:
        assert reader.command(posted).outcome == "done"
    assert handle.stop()
    check_nothing_lost(directory)


def test_one_worker_at_a_time(directory, handle):
    handle.start()
    assert worker.holder(directory) == handle.pid  # from the first moment, before it opens anything
    second = WorkerHandle(directory)
    second.start()
    assert second.pid == handle.pid
    with pytest.raises(CampaignError, match=f"process {handle.pid}"):
        worker.run_inline(directory)
    assert handle.stop() and worker.holder(directory) is None


def test_a_worker_killed_as_it_starts_is_gone_and_can_be_started_again(directory, handle):
    handle.start()
    WorkerHandle(directory).kill()
    handle.kill()
    assert worker.holder(directory) is None
    Commander(directory).post(ev.Start())
    handle.start()
    wait(directory, lambda s: s.phase == "finished")
    check_nothing_lost(directory)


def test_an_unknown_error_becomes_a_failed_campaign(directory, monkeypatch):
    def burst(*args):
        raise ZeroDivisionError("no such number")

    monkeypatch.setattr("core.campaign.engine.Engine.check", burst)
    state = worker.run_inline(directory)
    assert state.phase == "failed" and "ZeroDivisionError: no such number" in state.failure
    monkeypatch.undo()
    assert worker.run_inline(directory).phase == "finished"


def test_a_missing_campaign_is_said_before_a_process_starts(tmp_path):
    with pytest.raises(CampaignError, match="holds no campaign"):
        WorkerHandle(tmp_path).start()


def test_other_settings_are_refused_unless_live(directory, argon, tmp_path):
    given = argon(tmp_path)
    worker.run_inline(directory, until=lambda s: s.step >= 10)
    assert worker.prepare(directory, given) == []
    (change,) = worker.prepare(directory, given.with_value("trust.confidence", 0.9))
    assert (change.path, change.value) == ("trust.confidence", 0.9)
    with pytest.raises(SettingsError, match="labelling.seed is 1, not 2"):
        worker.prepare(directory, given.with_value("labelling.seed", 2))


def test_a_campaign_that_never_started_takes_other_settings(directory, argon, tmp_path):
    wrong = argon(tmp_path).with_value("labelling.seed", 2)
    assert worker.prepare(directory, wrong) == []
    with CampaignReader(directory) as reader:
        assert reader.settings.labelling.seed == 2


def test_ctrl_c_pauses_and_the_same_command_resumes(directory, argon, tmp_path):
    code = f"from core import worker; print(worker.run_inline({str(directory)!r}).paused)"
    changed = argon(tmp_path).with_value("dynamics.steps", 100_000)
    Commander(directory).post(ev.ChangeSetting(path="dynamics.steps", value=100_000))
    process = subprocess.Popen(
        [sys.executable, "-c", f"if __name__ == '__main__': {code}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait(directory, lambda s: s.trusted)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the label processes get it too
    out, err = process.communicate(timeout=20)
    assert (out.strip(), err, process.returncode) == ("Paused by Ctrl-C.", "", 0)
    steps = wait(directory, lambda s: s.phase == "paused").step
    state = worker.run_inline(
        directory, worker.prepare(directory, changed), until=lambda s: s.step > steps + 20
    )
    assert state.paused is None and state.step > steps + 20


def children_of(pid: int) -> list[psutil.Process]:
    """The label processes of a worker (not Python's resource tracker)."""
    try:
        found = psutil.Process(pid).children(recursive=True)
        return [c for c in found if "resource_tracker" not in " ".join(c.cmdline())]
    except psutil.NoSuchProcess:
        return []


def kill_at_random(directory: Path, handle: WorkerHandle, times: int, victim, pause) -> int:
    """Kill what `victim` returns (pids) at random moments until the campaign is finished."""
    killed, rng = 0, random.Random(1)
    Commander(directory).post(ev.Start())
    handle.start()
    end = time.monotonic() + 25 * times
    while killed < times and time.monotonic() < end:
        time.sleep(rng.uniform(*pause))
        for pid in victim(handle):
            os.kill(pid, signal.SIGKILL)
            killed += 1
            while handle.pid == pid:  # a process with much memory takes a moment to die
                time.sleep(0.01)
        with CampaignReader(directory) as reader:
            state = reader.state()
        if state.phase == "paused":
            Commander(directory).post(ev.Resume())
        if not handle.alive:
            handle.start()
    return killed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_of_the_worker_lose_nothing(directory, handle):
    Commander(directory).post(ev.ChangeSetting(path="trust.energy_tolerance", value=1e-4))
    Commander(directory).post(ev.ChangeSetting(path="dynamics.steps", value=4000))
    killed = kill_at_random(directory, handle, 20, lambda h: [h.pid] if h.pid else [], (0.2, 6.0))
    Commander(directory).post(ev.ChangeSetting(path="dynamics.steps", value=1))
    wait(directory, lambda s: s.phase == "finished")
    assert killed == 20
    check_nothing_lost(directory)
    with CampaignReader(directory) as reader:
        assert reader.state().settings.trust.energy_tolerance == 1e-4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_of_label_processes_lose_nothing(directory, handle):
    Commander(directory).post(ev.ChangeSetting(path="trust.energy_tolerance", value=1e-6))
    Commander(directory).post(ev.ChangeSetting(path="dynamics.steps", value=100_000))

    def labellers(h: WorkerHandle) -> list[int]:
        return [c.pid for c in children_of(h.pid)][:1] if h.pid else []

    killed = kill_at_random(directory, handle, 20, labellers, (0.5, 6.0))
    Commander(directory).post(ev.ChangeSetting(path="dynamics.steps", value=1))
    wait(directory, lambda s: s.phase in ("finished", "paused"))
    handle.stop()
    assert killed >= 20
    check_nothing_lost(directory)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_campaign_goes_on_with_compiled_steps(tmp_path, monkeypatch):
    pytest.importorskip("tblite", reason="GFN2-xTB labels need tblite (the xtb extra)")
    monkeypatch.setenv("FLYWISE_HOME", str(tmp_path / "home"))
    given = settings.from_dict(
        {
            "structure": {"name": "CH3CH2OH"},
            "potential": {"compiled": True},
            "dynamics": {"temperature_K": 300, "steps": 100_000},
            "labelling": {"reference": "gfn2-xtb"},
        }
    )
    directory = tmp_path / "ethanol"
    worker.prepare(directory, given)

    def compiled() -> list[ev.StepCompiled]:
        with CampaignReader(directory) as reader:
            return [e for _, e in reader.events_since(0) if isinstance(e, ev.StepCompiled)]

    handle = WorkerHandle(directory)
    try:
        handle.start()
        Commander(directory).post(ev.Start())
        wait(directory, lambda s: bool(compiled()) and s.trusted, 600)
        (made,) = compiled()[:1]
        assert not made.problem and made.after_ms < made.before_ms
        labels = wait(directory, lambda s: s.step > made.step + 500, 300).n_labels
        assert labels >= 3
    finally:
        handle.kill()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_kills_of_a_worker_with_mace_and_xtb_lose_nothing(tmp_path):
    pytest.importorskip("tblite", reason="GFN2-xTB labels need tblite (the xtb extra)")
    given = settings.from_dict(
        {
            "structure": {"name": "CH3CH2OH"},
            "dynamics": {"temperature_K": 300, "steps": 100_000},
            "trust": {"force_tolerance": "0.1 eV/Å"},  # labels are asked for until the end
            "labelling": {"reference": "gfn2-xtb"},
        }
    )
    directory = tmp_path / "ethanol"
    worker.prepare(directory, given)
    handle = WorkerHandle(directory)
    try:
        Commander(directory).post(ev.ChangeSetting(path="trust.confidence", value=0.9))
        victim = kill_at_random(
            directory, handle, 20, lambda h: [h.pid] if h.pid else [], (8.0, 28.0)
        )
        assert victim == 20
        with CampaignReader(directory) as reader:
            known = reader.state().n_labels
        # Before anything else all labels are learned again: seconds for each.
        wait(directory, lambda s: s.trusted and s.n_labels > max(20, known), 4 * PATIENCE_S)
        Commander(directory).post(ev.ChangeSetting(path="dynamics.steps", value=1))
        state = wait(directory, lambda s: s.phase in ("finished", "paused"), 4 * PATIENCE_S)
        handle.stop()
    finally:
        handle.kill()
    check_nothing_lost(directory)
    assert state.trusted and state.n_labels > 20 and state.settings.trust.confidence == 0.9
