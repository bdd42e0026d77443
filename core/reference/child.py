"""The inside of a label process: one label at a time, bought once, kept whatever happens.

The result is stored before it is returned, under a lock held while it is computed: if the worker
dies, the label is finished and waits for the next. Imports nothing heavy: `start` sets the number
of threads, which numerical libraries read when they load.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import LabelError

if TYPE_CHECKING:
    from core.contracts import Failure, Label
    from core.structures import Structure

ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    )
}  # fmt: skip
LEDGER = "ledger.jsonl"
WATCH_S = 0.2


class Guard:
    """Ends the process when a calculation is over its time, or when nobody waits for the next.

    The limit is a kernel timer (SIGALRM), so it holds inside a library that never returns to
    Python and outlives the worker; it follows changes of the shared `limit` in seconds.
    """

    def __init__(self, limit: Any) -> None:
        self._limit = limit
        self._parent = os.getppid()
        self._lock = threading.Lock()
        self._began: float | None = None
        self._armed = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Limit the time of the block."""
        with self._lock:
            self._began = time.monotonic()
            self._arm()
        try:
            yield
        finally:
            with self._lock:
                self._began = None
                signal.setitimer(signal.ITIMER_REAL, 0.0)

    def _arm(self) -> None:
        assert self._began is not None
        self._armed = self._limit.value
        left = self._began + self._armed - time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3))

    def _watch(self) -> None:
        while True:
            time.sleep(WATCH_S)
            with self._lock:
                if self._began is None:
                    if os.getppid() != self._parent:
                        os._exit(0)
                elif self._limit.value != self._armed:
                    self._arm()


_guard: Guard | None = None  # one per process, made by `start`


def start(limit: Any) -> None:
    """Prepare this process; `limit` is a shared double, the time limit of a label in seconds."""
    global _guard
    os.environ.update(ONE_THREAD)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a cancel takes effect inside a library too
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _guard = Guard(limit)


def warm(reference: bytes) -> None:
    """Load what the reference needs, so that the first label is not slow."""
    load = getattr(_reference(reference), "warm", None)
    with _running():
        if load is not None:
            load()


def label(directory: str, reference: bytes, structure: Structure) -> Label | Failure:
    """Return the stored label of `structure`, or compute and store it.

    A process that asks for what another one is computing waits for it. A failure is not stored.

    Args:
        reference: a pickled `core.contracts.Reference`.
    """
    from core.contracts import Failure
    from core.reference.base import label_path, load_label

    method = _reference(reference)
    began = time.perf_counter()
    try:
        path = label_path(Path(directory), structure, method.fingerprint)
        with _locked(path.with_suffix(".lock")):
            return load_label(path) if path.exists() else _buy(path, method, structure)
    except LabelError as error:
        return Failure(error.kind, str(error), time.perf_counter() - began)


def _buy(path: Path, method: Any, structure: Structure) -> Label:
    from core.reference.base import save_label, validate

    ledger = path.parent / LEDGER
    entry = {"key": structure.key, "fingerprint": method.fingerprint, "pid": os.getpid()}
    _note(ledger, {"event": "started", **entry})
    outcome = "crashed"
    try:
        with _running():
            bought = method.compute(structure)
        validate(bought)
        save_label(path, bought)
        outcome = "label"
    except LabelError as error:
        outcome = error.kind
        raise
    finally:
        _note(ledger, {"event": "finished", **entry, "outcome": outcome})
    return bought


def _running() -> Any:
    if _guard is None:
        raise RuntimeError("core.reference.child.start was not called in this process")
    return _guard.running()


@lru_cache(maxsize=1)
def _reference(data: bytes) -> Any:
    return pickle.loads(data)  # sent by the worker that started this process


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _note(ledger: Path, entry: dict[str, Any]) -> None:
    line = json.dumps({**entry, "time": round(time.time(), 3)}) + "\n"
    handle = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)
