"""The pool: every kind of failure is a report, cancels are real, and no label is bought twice."""

import fcntl
import os
import signal
import time
from multiprocessing import get_context

import numpy as np
import psutil
import pytest
from sample_references import (
    Buggy,
    Shuffled,
    Slow,
    Springs,
    Stuck,
    Suicidal,
    Threads,
    Unconverged,
    ledger,
    results,
    triangle,
    wait_for,
    work,
)

from core.contracts import Failure, Label
from core.reference.base import label_path
from core.reference.submitter import Submitter


@pytest.fixture
def submit(tmp_path):
    made = []

    def make(reference, **options):
        made.append(Submitter(tmp_path, reference, **options))
        return made[-1]

    yield make
    for submitter in made:
        submitter.close()


def test_labels_come_back_under_their_keys(submit):
    submitter = submit(Springs(), processes=2)
    frames = [triangle(0.1 * k) for k in range(4)]
    for k, frame in enumerate(frames):
        submitter.submit(k, frame)
    assert submitter.pending() == (0, 1, 2, 3)
    ended = results(submitter, 4)
    for k, frame in enumerate(frames):
        assert isinstance(ended[k], Label)
        np.testing.assert_array_equal(ended[k].structure.positions, frame.positions)
        np.testing.assert_array_equal(ended[k].forces, Springs().compute(frame).forces)
    assert submitter.pending() == () and submitter.poll() == []


@pytest.mark.parametrize(
    ("reference", "kind", "words"),
    [
        (Unconverged(), "unconverged", "250 cycles"),
        (Buggy(), "crashed", "ZeroDivisionError: inside the program"),
        (Shuffled(), "rejected", "wrong atoms"),
        (Threads(), "unconverged", "11"),
    ],
)
def test_a_label_that_fails_says_why(submit, tmp_path, reference, kind, words):
    submitter = submit(reference)
    submitter.submit("a", triangle())
    failure = results(submitter)["a"]
    assert isinstance(failure, Failure)
    assert failure.kind == kind and words in failure.message
    assert not list(tmp_path.glob("*.npz"))


def test_the_pool_survives_a_label_process_that_dies(submit, tmp_path_factory):
    submitter = submit(Suicidal(str(tmp_path_factory.mktemp("marks"))))
    for _ in range(2):
        submitter.submit("a", triangle())
        first = results(submitter)["a"]
        submitter.submit("a", triangle())
        second = results(submitter)["a"]
    assert first.fingerprint == "springs 1.0"
    assert isinstance(second, Label)


def test_a_dying_process_is_reported_as_crashed(submit, tmp_path_factory):
    submitter = submit(Suicidal(str(tmp_path_factory.mktemp("marks"))))
    submitter.submit("a", triangle())
    failure = results(submitter)["a"]
    assert failure.kind == "crashed" and "-9" in failure.message


def test_an_idle_process_that_is_killed_is_replaced(submit, tmp_path):
    submitter = submit(Springs())
    submitter.submit("a", triangle())
    results(submitter)
    (entry,) = ledger(tmp_path, "finished")
    os.kill(entry["pid"], signal.SIGKILL)
    submitter.submit("b", triangle(0.3))
    assert isinstance(results(submitter)["b"], Label)


@pytest.mark.parametrize("reference", [Slow(), Stuck()])
def test_a_label_over_its_time_is_stopped(submit, reference):
    submitter = submit(reference, time_limit_s=0.5)
    submitter.submit("a", triangle())
    failure = results(submitter)["a"]
    assert failure.kind == "timeout" and "0.5 s" in failure.message
    assert failure.wall_s < 10


def test_a_new_time_limit_holds_for_a_running_label(submit, tmp_path):
    submitter = submit(Slow())
    submitter.submit("a", triangle())
    wait_for(lambda: ledger(tmp_path, "started"))
    submitter.time_limit_s = 0.3
    changed = time.monotonic()
    assert results(submitter)["a"].kind == "timeout"
    assert time.monotonic() - changed < 2


@pytest.mark.parametrize("reference", [Slow(), Stuck()])
def test_cancel_stops_a_running_label_at_once(submit, tmp_path, reference):
    submitter = submit(reference)
    submitter.submit("a", triangle())
    wait_for(lambda: ledger(tmp_path, "started"))
    pid = ledger(tmp_path, "started")[0]["pid"]
    began = time.monotonic()
    assert submitter.cancel("a")
    wait_for(lambda: not psutil.pid_exists(pid))
    assert time.monotonic() - began < 1
    assert submitter.poll()[0][1].kind == "cancelled"
    assert not submitter.cancel("a")


def test_cancel_of_a_waiting_label_lets_the_others_go_on(submit):
    submitter = submit(Springs())
    for k in range(3):
        submitter.submit(k, triangle(0.1 * k))
    assert submitter.cancel(2)
    ended = results(submitter, 3)
    assert ended[2].kind == "cancelled"
    assert isinstance(ended[0], Label) and isinstance(ended[1], Label)


def test_a_stored_label_is_not_computed_again(submit, tmp_path):
    first = submit(Springs())
    first.submit("a", triangle())
    label = results(first)["a"]
    again = submit(Springs())
    again.submit("b", triangle())
    ((key, stored),) = again.poll()
    assert key == "b" and stored.energy == label.energy
    np.testing.assert_array_equal(stored.forces, label.forces)
    assert len(ledger(tmp_path, "started")) == 1


def test_two_workers_that_want_one_label_buy_it_once(submit, tmp_path):
    pair = [submit(Slow(seconds=0.5)) for _ in range(2)]
    for submitter in pair:
        submitter.submit("a", triangle())
    energies = {results(submitter)["a"].energy for submitter in pair}
    assert len(energies) == 1
    assert len(ledger(tmp_path, "started")) == len(ledger(tmp_path, "finished")) == 1


def test_a_killed_worker_loses_no_label_that_was_being_computed(submit, tmp_path):
    reference = Slow(seconds=1.5)
    worker = get_context("spawn").Process(target=work, args=(str(tmp_path), reference))
    worker.start()
    wait_for(lambda: ledger(tmp_path, "started"))
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    pid = ledger(tmp_path, "started")[0]["pid"]
    assert psutil.pid_exists(pid) and not ledger(tmp_path, "finished")
    resumed = submit(reference)
    resumed.submit("a", triangle())
    assert isinstance(results(resumed)["a"], Label)
    assert [e["pid"] for e in ledger(tmp_path, "started")] == [pid]
    assert [e["outcome"] for e in ledger(tmp_path, "finished")] == ["label"]
    wait_for(lambda: not psutil.pid_exists(pid))


def test_a_hung_label_ends_by_itself_after_its_worker_was_killed(submit, tmp_path):
    worker = get_context("spawn").Process(target=work, args=(str(tmp_path), Stuck(), 1.0))
    worker.start()
    wait_for(lambda: ledger(tmp_path, "started"))
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    pid = ledger(tmp_path, "started")[0]["pid"]
    wait_for(lambda: not psutil.pid_exists(pid), timeout=5)


def test_a_process_waiting_for_another_ends_when_its_worker_was_killed(tmp_path):
    lock = label_path(tmp_path, triangle(), "springs 1.0").with_suffix(".lock")
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        worker = get_context("spawn").Process(target=work, args=(str(tmp_path), Springs()))
        worker.start()
        wait_for(lambda: any(lock.samefile(f.path) for f in opened_below(worker.pid)))
        waiting = psutil.Process(worker.pid).children(recursive=True)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        wait_for(lambda: not any(p.is_running() for p in waiting), timeout=5)


def opened_below(pid: int) -> list:
    return [f for p in psutil.Process(pid).children(recursive=True) for f in p.open_files()]


def test_close_may_wait_for_what_is_running(submit):
    submitter = submit(Slow(seconds=0.3))
    submitter.submit("a", triangle())
    submitter.close(wait_s=20)
    assert isinstance(dict(submitter.poll())["a"], Label)
    submitter.close()
    submitter.submit("b", triangle(0.2))
    assert isinstance(results(submitter)["b"], Label)


def test_a_key_can_be_pending_only_once(submit):
    submitter = submit(Slow())
    submitter.submit("a", triangle())
    with pytest.raises(ValueError, match="pending already"):
        submitter.submit("a", triangle(0.1))


def test_after_warming_a_label_comes_without_the_cost_of_starting(submit):
    submitter = submit(Springs())
    submitter.warm()
    time.sleep(2)
    began = time.monotonic()
    submitter.submit("a", triangle())
    results(submitter)
    assert time.monotonic() - began < 0.5
