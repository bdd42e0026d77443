"""One object per campaign directory, shared by every open page: reads the journal, posts commands.

Knows no widgets. It lives in this imported module, so that it survives the end of a session.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.lease import Lease
from app.pulse import Pulse
from app.series import Series
from core import settings as settings_
from core.assets import asset
from core.campaign import events as ev
from core.campaign import exchange, store
from core.campaign.live import LiveFrame
from core.campaign.reader import CampaignReader, Commander
from core.campaign.state import Query, State
from core.errors import CampaignError, InputError
from core.settings import Settings
from core.structures import Structure
from core.worker import LOG, WorkerHandle

FRESH_S = 0.02
"""Pages that ask again within this time are given the same glance."""

ALIVE_S = 0.5
"""Time between two looks whether the worker lives."""

MAX_STARTS = 3
"""Workers started for one command; after that the log of the worker has the reason."""


@dataclass(frozen=True)
class Glance:
    """What a page needs of a campaign at one moment.

    Attributes:
        live: the newest frame of the dynamics, None before the first.
        alive: a worker holds the campaign. at: when this was read, seconds since 1970.
        label_s: mean cost of the labels so far; last_label: the newest. None before the first.
        stuck: the worker's log, where no worker will start.
    """

    state: State
    live: LiveFrame | None
    alive: bool
    at: float
    label_s: float | None = None
    last_label: store.LabelRow | None = None
    stuck: Path | None = None

    @property
    def step(self) -> int:
        """Steps done, as new as it is known."""
        if self.live is None or not self.moving:
            return self.state.step
        return self.live.step

    @property
    def moving(self) -> bool:
        """True while the dynamics advance."""
        return self.alive and self.state.phase == "running"

    @property
    def orphaned(self) -> bool:
        """True where work is under way by the journal, but no worker is there to do it."""
        idle = ("ready", "paused", "finished", "failed")
        return not self.alive and self.state.phase not in idle

    @property
    def age(self) -> float | None:
        """Seconds since the last frame arrived."""
        return None if self.live is None else max(0.0, self.at - self.live.timestamp)

    @property
    def seconds_left(self) -> float | None:
        """Time to the last step at the present speed, None where there is none."""
        if not self.moving or self.live is None or not self.live.steps_per_s > 0:
            return None
        return (self.state.steps_total - self.step) / self.live.steps_per_s

    def queries(self, *statuses: str) -> list[Query]:
        """Return the queries with any of `statuses`, oldest first."""
        return [q for q in self.state.queue if q.status in statuses]


class CampaignState:
    """A campaign as the pages see it. Safe to call from several threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.reader = CampaignReader(directory)
        self.series = Series(self.reader)
        self.worker = WorkerHandle(directory)
        self.lease = Lease()
        self.pulse = Pulse(self.reader.live_sequence)
        self._commander = Commander(directory)
        self._lock = threading.Lock()
        self._glance: Glance | None = None
        self._labels: tuple[int, float | None, store.LabelRow | None] = (0, None, None)
        self._alive = (0.0, False)
        self._awaited: list[int] = []
        self._posted: list[int] = []
        self._starts = 0

    @property
    def structure(self) -> Structure:
        """The atoms at the start."""
        return self.reader.structure

    @property
    def title(self) -> str:
        """Name of the campaign, for people."""
        return self.directory.name

    def glance(self) -> Glance:
        """Return the present state; read at most once within `FRESH_S`."""
        with self._lock:
            if self._glance is None or time.time() - self._glance.at > FRESH_S:
                self._glance = self._look()
            return self._glance

    def _look(self) -> Glance:
        state = self.reader.state()
        self._tend(state)
        learned = state.counts["trained"]
        if learned != self._labels[0]:
            rows = self.reader.labels()
            bought = [row.wall_s for row in rows if not state.query(row.query_id).by_hand]
            cost = float(np.mean(bought)) if bought else None
            scored = [row for row in rows if row.predicted is not None]
            newest = max(scored, key=lambda row: row.at, default=None)
            self._labels = (learned, cost, newest)
        log = self.directory / LOG if self._starts > MAX_STARTS else None
        return Glance(
            state, self.reader.live(), self._is_alive(), time.time(), *self._labels[1:], stuck=log
        )

    def _tend(self, state: State) -> None:
        """Start another worker if the one a command was meant for left before it looked."""
        self._posted = [c for c in self._posted if self.outcome(c) is None]
        if self._posted and state.phase in ("finished", "failed") and not self._awaited:
            self._starts = 0
            self._awaited, self._posted = self._posted, []
        self._awaited = [c for c in self._awaited if self.outcome(c) is None]
        if self._awaited and not self._is_alive() and self._starts <= MAX_STARTS:
            self._starts += 1
            if self._starts <= MAX_STARTS:
                self.wake()

    def _is_alive(self) -> bool:
        if time.monotonic() - self._alive[0] > ALIVE_S:
            self._alive = (time.monotonic(), self.worker.alive)
        return self._alive[1]

    def post(self, command: ev.Command) -> int:
        """Store a command; return its id for `outcome`. At its end a campaign is taken up again."""
        number = self._commander.post(command)
        self._posted.append(number)
        return number

    def offer(self, labels: exchange.Offer, who: str) -> int:
        """Hand labels computed elsewhere to the worker; return the command's id for `outcome`."""
        return self._awaiting(exchange.hand_over(self._commander, labels, who))

    def outcome(self, command_id: int) -> str | None:
        """Return what became of a command, None while no worker has looked at it."""
        return self.reader.command(command_id).outcome

    def wake(self) -> None:
        """Start a worker if none is there; it loads the model and waits for commands."""
        self.worker.start()
        self._alive = (time.monotonic(), True)

    def warm(self) -> None:
        """Start a worker where it would wait for a command, so that the first click is quick."""
        if self.glance().state.phase in ("ready", "paused"):
            self.wake()

    def go(self) -> int:
        """Begin, or go on, with a worker to do it."""
        state = self.glance().state
        return self._await(ev.Start() if state.phase == "ready" else ev.Resume())

    def worker_log(self, lines: int) -> str:
        """Return the last lines the worker wrote, "" where there are none."""
        path = self.directory / LOG
        if not path.is_file():
            return ""
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 200 * lines))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])

    def _await(self, command: ev.Command) -> int:
        return self._awaiting(self._commander.post(command))

    def _awaiting(self, number: int) -> int:
        """See to it that a worker looks at a command."""
        self._awaited.append(number)
        self._starts = 0
        self.wake()
        return number

    def step_by(self, steps: int) -> int:
        """Run a few steps, then pause."""
        return self._await(ev.StepBy(steps=steps))


_open: dict[Path, CampaignState] = {}
_open_lock = threading.Lock()


def campaign(directory: str | Path) -> CampaignState:
    """Return the one state object of a campaign directory.

    Raises:
        CampaignError: there is no campaign, or one of another version.
    """
    path = Path(directory).resolve()
    with _open_lock:
        if path not in _open:
            _open[path] = CampaignState(path)
        return _open[path]


def forget(directory: Path) -> None:
    """Let go of a campaign whose directory was moved; pages that show it see its last state."""
    with _open_lock:
        _open.pop(directory.resolve(), None)


def create(directory: Path, settings: Settings) -> CampaignState:
    """Make a campaign from settings and open it.

    Raises:
        CampaignError: there is one already. InputError: the structure cannot be read.
    """
    store.create(directory, settings, settings_.structure_of(settings))
    return campaign(directory)


def campaigns_folder() -> Path:
    """Return the folder of a person's campaigns; FLYWISE_HOME moves it."""
    if home := os.environ.get("FLYWISE_HOME"):
        return Path(home) / "campaigns"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "flywise" / "campaigns"


def demo(name: str = "ethanol") -> CampaignState:
    """Open a demo campaign: the last one that can still go on, else a new one.

    Raises:
        InputError: there is no example of that name.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise InputError(f"{name!r} is no name of a demo; names look like 'ethanol'.")
    settings = settings_.load(asset(f"examples/{name}.toml"))
    folder = campaigns_folder()
    for number in range(1, 10_000):
        directory = folder / (name if number == 1 else f"{name}-{number}")
        if not (directory / store.DATABASE).is_file():
            return create(directory, settings)
        try:
            found = campaign(directory)
        except CampaignError:  # written by another version: left alone
            continue
        if found.glance().state.phase != "finished":
            return found
    raise InputError(f"{folder} holds too many campaigns named {name}; remove some.")
