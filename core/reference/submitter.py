"""Runs references in local processes: submit, poll, cancel; a time limit that may change.

Nothing here blocks. Labels are stored by the label processes themselves (see `child`), so that
none is ever bought twice, however worker and label process end.
"""

from __future__ import annotations

import pickle
import signal
import time
from collections import deque
from collections.abc import Hashable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from core.contracts import Failure, Label, Reference
from core.errors import LabelError
from core.reference import child
from core.reference.base import label_path, load_label
from core.structures import Structure

ATTEMPTS = 3
"""Times a label is started again when the pool, not the label, broke."""


@dataclass
class _Task:
    structure: Structure
    future: ProcessFuture | None = None
    attempts: int = 0
    began: float = 0.0

    def failure(self, kind: str, message: str) -> Failure:
        return Failure(kind, message, time.monotonic() - self.began if self.began else 0.0)


class Submitter:
    """A pool of label processes for one reference.

    Every key submitted is reported by `poll` exactly once, as a label or a failure. `poll` also
    starts the next label, so call it often.
    """

    def __init__(
        self,
        directory: str | Path,
        reference: Reference,
        *,
        processes: int = 1,
        time_limit_s: float = 600.0,
    ) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._fingerprint = reference.fingerprint
        self._reference = pickle.dumps(reference)
        self._processes = processes
        self._context = get_context("spawn")
        self._limit = self._context.RawValue("d", time_limit_s)
        self._pool: ProcessPool | None = None
        self._waiting: deque[Hashable] = deque()
        self._tasks: dict[Hashable, _Task] = {}
        self._done: list[tuple[Hashable, Label | Failure]] = []

    @property
    def time_limit_s(self) -> float:
        """Seconds after which a label is given up; a change also holds for those running."""
        return float(self._limit.value)

    @time_limit_s.setter
    def time_limit_s(self, seconds: float) -> None:
        self._limit.value = seconds

    def warm(self) -> None:
        """Start the processes and load the reference, so that the first label is not slow."""
        pool = self._ready_pool()
        for _ in range(self._processes):
            pool.schedule(child.warm, args=(self._reference,))

    def submit(self, key: Hashable, structure: Structure) -> None:
        """Ask for the label of `structure`, to be reported under `key`.

        Raises:
            ValueError: `key` is pending already.
        """
        if key in self._tasks:
            raise ValueError(f"The label {key!r} is pending already.")
        path = label_path(self._directory, structure, self._fingerprint)
        if path.exists():
            self._done.append((key, _stored(path)))
            return
        self._tasks[key] = _Task(structure)
        self._waiting.append(key)
        self._start_waiting()

    def poll(self) -> list[tuple[Hashable, Label | Failure]]:
        """Return what has ended since the last call, and start what waits."""
        self._collect_done()
        self._start_waiting()
        done, self._done = self._done, []
        return done

    def cancel(self, key: Hashable) -> bool:
        """Give up a label, stopping its process; False if `key` is not pending or has ended."""
        task = self._tasks.get(key)
        if task is None or (task.future is not None and not task.future.cancel()):
            return False
        if task.future is None:
            self._waiting.remove(key)
        self._finish(key, task.failure("cancelled", "The label was cancelled."))
        return True

    def pending(self) -> tuple[Hashable, ...]:
        """Return the keys submitted and not yet ended, in the order of submission."""
        return tuple(self._tasks)

    def close(self, wait_s: float = 0.0) -> None:
        """End the processes, after waiting up to `wait_s` for the labels being computed.

        A last `poll` reports what ended in time; the other keys are forgotten. Safe to call twice.
        """
        running = [t.future for t in self._tasks.values() if t.future is not None]
        deadline = time.monotonic() + wait_s
        while any(not f.done() for f in running) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._collect_done()
        self._waiting.clear()
        self._tasks.clear()
        self._stop_pool()

    def _start_waiting(self) -> None:
        running = len(self._tasks) - len(self._waiting)
        while self._waiting and running < self._processes:
            task = self._tasks[self._waiting.popleft()]
            task.attempts += 1
            task.began = time.monotonic()
            task.future = self._ready_pool().schedule(
                child.label, args=(str(self._directory), self._reference, task.structure)
            )
            running += 1

    def _collect_done(self) -> None:
        for key, task in list(self._tasks.items()):
            if task.future is not None and task.future.done():
                self._collect(key, task)

    def _collect(self, key: Hashable, task: _Task) -> None:
        assert task.future is not None
        error = task.future.exception()
        if isinstance(error, BrokenProcessPool) and task.attempts < ATTEMPTS:
            task.future = None
            self._waiting.appendleft(key)
            return
        self._finish(key, task.future.result() if error is None else self._why(task, error))

    def _why(self, task: _Task, error: BaseException) -> Failure:
        if isinstance(error, ProcessExpired):
            if error.exitcode == -signal.SIGALRM:
                return task.failure(
                    "timeout",
                    f"The label took longer than {self.time_limit_s:g} s and was stopped; raise "
                    "labelling.time_limit_s, or skip the frame.",
                )
            return task.failure(
                "crashed",
                f"The process computing the label died (exit code {error.exitcode}; -9 often "
                "means that memory ran out); label the frame again, or skip it.",
            )
        return task.failure("crashed", f"{type(error).__name__}: {error}")

    def _finish(self, key: Hashable, result: Label | Failure) -> None:
        del self._tasks[key]
        self._done.append((key, result))

    def _ready_pool(self) -> ProcessPool:
        if self._pool is not None and not self._pool.active:  # pebble gives up a pool for good
            self._stop_pool()
        if self._pool is None:
            self._pool = ProcessPool(
                max_workers=self._processes,
                context=self._context,
                initializer=child.start,
                initargs=(self._limit,),
            )
        return self._pool

    def _stop_pool(self) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None


def _stored(path: Path) -> Label | Failure:
    try:
        return load_label(path)
    except LabelError as error:
        return Failure(error.kind, str(error))
