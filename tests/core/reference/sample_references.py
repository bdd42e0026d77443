"""Small real references, importable by label processes: springs between all atoms, and failures."""

import hashlib
import json
import os
import signal
import time
from dataclasses import dataclass

import numpy as np

from core.contracts import Label
from core.errors import LabelError
from core.reference.submitter import Submitter
from core.structures import Structure


def triangle(stretch: float = 0.0) -> Structure:
    positions = np.array([[0.0, 0.0, 0.0], [1.4 + stretch, 0.0, 0.0], [0.3, 1.1, 0.2]])
    return Structure(np.array([8, 1, 1]), positions)


@dataclass(frozen=True)
class Springs:
    """E = ½ Σ_pairs (r - 1)², for pairs of N atoms."""

    fingerprint = "springs 1.0"

    def check(self, structure):
        pass

    def compute(self, structure):
        vectors = structure.positions[None] - structure.positions[:, None]
        r = np.linalg.norm(vectors, axis=-1) + np.eye(len(structure))
        forces = ((r - 1) / r)[..., None] * vectors
        return Label(structure, float(((r - 1) ** 2).sum() / 4), forces.sum(1), self.fingerprint)


@dataclass(frozen=True)
class Slow(Springs):
    seconds: float = 60.0

    def compute(self, structure):
        time.sleep(self.seconds)
        return super().compute(structure)


class Stuck(Springs):
    """Computes inside a library that does not return to Python for minutes."""

    def compute(self, structure):
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)


class Unconverged(Springs):
    def compute(self, structure):
        raise LabelError("not converged in 250 cycles")


class Buggy(Springs):
    def compute(self, structure):
        raise ZeroDivisionError("inside the program")


class Shuffled(Springs):
    def compute(self, structure):
        label = super().compute(structure)
        return Label(structure, label.energy, np.roll(label.forces, 1, axis=0), self.fingerprint)


@dataclass(frozen=True)
class Suicidal(Springs):
    """Dies at the first call for each structure of `folder`, then works."""

    folder: str = ""

    def compute(self, structure):
        mark = os.path.join(self.folder, structure.key)
        if not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute(structure)


class Threads(Springs):
    """Refuses with the numbers of threads that its process was given."""

    def compute(self, structure):
        raise LabelError(os.environ["OMP_NUM_THREADS"] + os.environ["OPENBLAS_NUM_THREADS"])


def results(submitter: Submitter, count: int = 1, timeout: float = 30.0) -> dict:
    """Poll until `count` labels have ended."""
    ended, deadline = {}, time.monotonic() + timeout
    while len(ended) < count and time.monotonic() < deadline:
        ended.update(submitter.poll())
        time.sleep(0.01)
    return ended


def ledger(directory, event: str) -> list[dict]:
    path = directory / "ledger.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


def wait_for(condition, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def work(directory: str, reference, time_limit_s: float = 600.0) -> None:
    """What a worker does until it is killed: ask for one label and wait for it."""
    submitter = Submitter(directory, reference, time_limit_s=time_limit_s)
    submitter.submit("a", triangle())
    results(submitter, timeout=120)
