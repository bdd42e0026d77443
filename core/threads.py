"""How many threads numerical libraries take, and how they wait; said before they are loaded."""

from __future__ import annotations

import os

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SPINS = "GOMP_SPINCOUNT"
TURNS = "10000"
"""Turns in which a thread asks for work before it gives its core away.

GNU OpenMP's own 300,000 keep a core from the very thread that is waited for, where other processes
want the cores too: rows of the Jacobian then took three times as long.
"""


def waiting() -> dict[str, str]:
    """Return the environment in which threads that wait soon give way; what is set stays."""
    return {SPINS: os.environ.get(SPINS, TURNS)}


def environment(threads: int) -> dict[str, str]:
    """Return the same for a process of its own with so many threads."""
    return waiting() | dict.fromkeys(THREADS, str(threads))
