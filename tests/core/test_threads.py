"""Threads that wait give way soon, and a process has as many as it is given."""

import subprocess
import sys

import pytest

from core.threads import SPINS, THREADS, TURNS, environment, waiting


def test_a_process_has_the_threads_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SPINS, raising=False)
    assert environment(3) == dict.fromkeys(THREADS, "3") | {SPINS: TURNS}


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SPINS, "7")
    assert waiting() == {SPINS: "7"}


def test_the_command_line_says_it_before_anything_numerical_is_loaded() -> None:
    script = (
        "import os, sys, app.__main__ as m\n"
        f"os.environ.pop({SPINS!r}, None)\n"
        "m.cli = lambda **_: print('torch' in sys.modules, os.environ[" + repr(SPINS) + "])\n"
        "m.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["False", TURNS]
