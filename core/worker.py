"""The worker: one spawned process per campaign, and the handle the app holds on it.

The only module that knows processes; the logic it drives lives in core.campaign.
`python -m core.worker DIRECTORY [LOCK]` is what `WorkerHandle.start` runs; only that loads torch.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING

from core.campaign import events as ev
from core.campaign import store
from core.campaign.loop import CommandRefusedError
from core.campaign.reader import CampaignReader
from core.campaign.state import State
from core.errors import CampaignError, FlywiseError, SettingsError
from core.settings import Settings, live_paths, structure_of
from core.threads import environment

if TYPE_CHECKING:  # loads torch
    from core.campaign.runner import Runner

LOCK = "worker.lock"
LOG = "worker.log"
LOCK_WAIT_S = 0.5
"""A look at the lock (`holder`) takes it for a moment."""

KEYBOARD = "Ctrl-C"
NICENESS = 10
"""Of a worker in the background, as of the command nice."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the campaign's lock; the kernel lets go of it however the process ends.

    Raises:
        CampaignError: another worker holds it.
    """
    with open(directory / LOCK, "a+") as handle:
        end = time.monotonic() + LOCK_WAIT_S
        while not _take(handle):
            if time.monotonic() > end:
                raise CampaignError(
                    f"A worker (process {_pid_in(handle)}) already runs the campaign in "
                    f"{directory}; stop it first, or watch it with: flywise serve."
                )
            time.sleep(0.02)
        _sign(handle, os.getpid())
        yield


def _sign(handle: IO[str], pid: int) -> None:
    handle.truncate(0)
    handle.write(str(pid))
    handle.flush()


def _take(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _pid_in(handle: IO[str]) -> int | None:
    handle.seek(0)
    text = handle.read().strip()
    return int(text) if text.isdigit() else None


def holder(directory: str | Path) -> int | None:
    """Return the process id of the campaign's worker, None if none runs."""
    path = Path(directory) / LOCK
    if not path.exists():
        return None
    with open(path, "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _pid_in(handle)
    return None


class WorkerHandle:
    """Starts, watches and ends the worker of one campaign; survives a restart of its owner."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the worker, whoever started it."""
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        return holder(self.directory)

    @property
    def alive(self) -> bool:
        """True while a worker runs this campaign."""
        return self.pid is not None

    def start(self) -> None:
        """Start the worker unless one runs; it opens the campaign in the background.

        Raises:
            CampaignError: there is no campaign in the directory.
        """
        connection = store.connect(self.directory, readonly=True)
        threads = store.read_settings(connection).potential.threads
        connection.close()
        if self.alive:
            return
        root = str(Path(__file__).resolve().parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {
            **os.environ,
            **environment(threads),
            "PYTHONPATH": os.pathsep.join(paths),
        }
        with open(self.directory / LOCK, "a+") as lock, open(self.directory / LOG, "ab") as log:
            if not _take(lock):
                return
            # The lock goes to the child with the open file: no moment in which nobody holds it.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "core.worker", str(self.directory), str(lock.fileno())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables,
                start_new_session=True, pass_fds=(lock.fileno(),),
            )  # fmt: skip
            _sign(lock, self._process.pid)

    def stop(self, timeout: float = 10.0) -> bool:
        """Ask the worker to keep its point and end; kill it after `timeout` seconds.

        Returns False if it had to be killed.
        """
        self._signal(signal.SIGTERM)
        end = time.monotonic() + timeout
        while self.alive and time.monotonic() < end:
            time.sleep(0.02)
        if not self.alive:
            return True
        self.kill()
        return False

    def kill(self) -> None:
        """End the worker at once; the campaign goes on from its journal at the next start."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is not None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return


def supervise(runner: Runner, work: Callable[[], None], *, tell: bool) -> None:
    """Do the work; the one place where an unknown error is caught, and becomes an event.

    Args:
        tell: raise Flywise's own errors again, for a person who waits for the answer.
    """
    try:
        work()
    except FlywiseError as error:
        runner.fail(str(error))
        if tell:
            raise
    except Exception:
        runner.fail(traceback.format_exc())
    finally:
        runner.close()


@contextmanager
def _signals(handler: Callable[[], None], *numbers: signal.Signals) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        handler()

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def is_over(state: State) -> bool:
    """True when a worker has nothing left to do."""
    return state.phase == "finished"


def main(directory: str | Path, lock: int | None = None) -> None:
    """Run the campaign in this process until it is finished, stopped or fails.

    Args:
        lock: descriptor of the open lock file, if whoever started this process took the lock.

    Raises:
        CampaignError: no campaign there, or another worker runs it.
    """
    from core.campaign.runner import Runner

    if lock is not None:
        os.set_inheritable(lock, False)  # a label process must not keep it
        _give_way()
    with locked(Path(directory)) if lock is None else os.fdopen(lock, "a+"):
        runner = Runner(directory)
        with _signals(runner.leave, signal.SIGTERM, signal.SIGINT):
            supervise(runner, lambda: _work(runner), tell=False)


def _give_way() -> None:
    """Let a page that shows the campaign have a core whenever it needs one."""
    os.nice(NICENESS)
    with suppress(OSError):  # Linux on desks shares the cores among sessions before processes
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def _work(runner: Runner) -> None:
    runner.open()
    runner.run(is_over)


def prepare(directory: str | Path, settings: Settings) -> list[ev.ChangeSetting]:
    """Make the campaign, or return the live changes that bring a stored one to `settings`.

    A campaign that was never started is made anew with the settings given.

    Raises:
        SettingsError: the stored campaign differs in a field that is not live.
        InputError: the structure cannot be read or simulated.
    """
    directory = Path(directory)
    if not (directory / store.DATABASE).exists():
        store.create(directory, settings, structure_of(settings))
        return []
    with CampaignReader(directory) as reader:
        changed = differences(reader.settings, settings)
        started = reader.state().started
    fixed = {path: pair for path, pair in changed.items() if path not in live_paths()}
    if fixed and started:
        listed = "; ".join(f"{path} is {old!r}, not {new!r}" for path, (old, new) in fixed.items())
        raise SettingsError(
            f"The campaign in {directory} was started with other settings: {listed}. Give the "
            "former settings to resume it, or another directory to start a new one."
        )
    if fixed:
        structure = structure_of(settings)
        with locked(directory):
            store.remove(directory)
            store.create(directory, settings, structure)
        return []
    return [
        ev.ChangeSetting(path=path, value=new, who="settings file")
        for path, (_, new) in changed.items()
    ]


def differences(stored: Settings, given: Settings) -> dict[str, tuple[object, object]]:
    """Return path -> (stored, given) of the fields that differ."""
    old, new = stored.model_dump(), given.model_dump()
    return {
        f"{section}.{name}": (value, new[section][name])
        for section, values in old.items()
        for name, value in values.items()
        if value != new[section][name]
    }


def interrupted(state: State) -> bool:
    """True if Ctrl-C paused the campaign."""
    return state.paused == f"Paused by {KEYBOARD}."


def run_inline(
    directory: str | Path,
    changes: list[ev.ChangeSetting] | None = None,
    listener: Callable[[State, ev.Event], None] | None = None,
    until: Callable[[State], bool] | None = None,
) -> State:
    """Run a prepared campaign in this process; return its state when nothing moves any more.

    Starts or resumes it, and stops when it is finished, pauses, fails or waits for a person.
    Ctrl-C pauses it; a second one ends it at once.

    Args:
        until: stop earlier, when this is true of the state.
    """
    from core.campaign.runner import Runner

    with locked(Path(directory)):
        runner = Runner(directory, listener)
        signals: list[bool] = []

        def interrupt() -> None:
            if signals:
                raise KeyboardInterrupt
            signals.append(True)
            runner.leave()

        def done(state: State) -> bool:
            still = state.phase in ("finished", "paused", "failed", "deciding", "ready")
            return still or (until is not None and until(state))

        def work() -> None:
            runner.open()
            for command in [*(changes or []), ev.Resume(who="command line")]:
                with suppress(CommandRefusedError):  # runs already, or is at its end
                    runner.apply(command)
            runner.run(done)
            if signals and runner.state.phase not in ("paused", "finished"):
                runner.apply(ev.Pause(who=KEYBOARD))

        with _signals(interrupt, signal.SIGINT, signal.SIGTERM):
            supervise(runner, work, tell=True)
        return runner.state


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
