"""The folder of a person's campaigns: what is in it, new ones, copies, names, and the trash.

Reads the journals of campaigns that changed, nothing else, and shows a folder it cannot read as
what it is. Knows no widgets. A deleted campaign is moved to the trash beside the others.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from app import state as state_
from app import wording
from app.state import CampaignState, Glance
from core.campaign import report, store
from core.campaign.loop import advance
from core.campaign.reader import CampaignReader
from core.campaign.state import State
from core.errors import CampaignError, FlywiseError, InputError
from core.settings import Settings
from core.structures import FORMATS, Structure
from core.worker import WorkerHandle, holder, locked

TRASH = ".trash"
AT_REST = ("ready", "paused", "finished", "failed")
"""Phases in which a worker only waits, so that it may be sent away."""
STOP_S = 5.0
NAME = re.compile(r"\w(?:[\w .()+-]{0,58}[\w)+-])?")
PAST = 3
"""Earlier campaigns that an estimate looks at."""

_UNREADABLE = (FlywiseError, sqlite3.Error, OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Campaign:
    """What is known of one folder.

    Attributes:
        problem: why it cannot be opened; then everything after it is missing.
        changed: when something last happened, seconds since 1970.
        alive: a worker holds it. checked: labels bought because a frame was flagged; inside: those
            whose error lay within the interval shown for it.
    """

    name: str
    directory: Path
    problem: str | None = None
    changed: float = 0.0
    structure: Structure | None = None
    state: State | None = None
    alive: bool = False
    checked: int = 0
    inside: int = 0

    @property
    def status(self) -> wording.Status:
        """What it is doing, in words."""
        if self.state is None:
            return wording.Status("Cannot be opened", self.problem or "", "bad")
        return wording.status(Glance(self.state, None, self.alive, time.time()))


@dataclass(frozen=True)
class Past:
    """What an earlier campaign cost: `wall_s` seconds for `steps`, labels at the steps `labels`."""

    name: str
    n_atoms: int
    steps: int
    labels: tuple[int, ...]
    wall_s: float

    def forecast(self, steps: int) -> tuple[int, float]:
        """Return the labels that `steps` like these need, and the most seconds they may take.

        Beyond its own end the labels go on as in its second half.
        """
        done = sum(step <= steps for step in self.labels)
        late = sum(step > self.steps / 2 for step in self.labels)
        labels = done + round(late * 2 * max(0, steps - self.steps) / self.steps)
        share = max(steps / self.steps, labels / max(len(self.labels), 1))
        return labels, self.wall_s * share


@dataclass(frozen=True)
class _Known:
    stamp: tuple[int, ...]
    campaign: Campaign
    last_event: int


class Library:
    """One folder of campaigns. Safe to call from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, _Known] = {}
        self._lock = threading.RLock()

    # What is there

    def campaigns(self) -> list[Campaign]:
        """Return all campaigns, the one that changed last first."""
        with self._lock:
            found = [self._look(path) for path in _folders(self.folder)]
            self._known = {c.name: k for c in found if (k := self._known.get(c.name))}
        return sorted(found, key=lambda c: -c.changed)

    def _look(self, directory: Path) -> Campaign:
        name = directory.name
        try:
            if directory.is_symlink():
                raise CampaignError("This is a link. Open it with: flywise serve DIRECTORY.")
            stamp, known = _stamp(directory), self._known.get(name)
            if known is None or known.stamp != stamp:
                known = _read(directory, stamp, known)
                self._known[name] = known
            return replace(known.campaign, alive=holder(directory) is not None)
        except _UNREADABLE as error:
            return Campaign(name, directory, str(error) or type(error).__name__)

    def past(self, settings: Settings) -> list[Past]:
        """Return what the newest campaigns with this model and reference cost, newest first."""
        wanted = (settings.potential.model, settings.labelling.reference)
        found: list[Past] = []
        for campaign in self.campaigns():
            state = campaign.state
            if state is None or not state.trusted or len(found) == PAST:
                continue
            given = state.settings
            if (given.potential.model, given.labelling.reference) == wanted:
                found.append(_past(campaign))
        return found

    # Names

    def free_name(self, wanted: str) -> str:
        """Return `wanted`, made acceptable, with a number where a campaign has it already."""
        clean = re.sub(r"[^\w .()+-]+", "-", wanted).strip(" .-+(")[:50].rstrip(" .-(")
        clean = clean if NAME.fullmatch(clean) else "campaign"
        for number in range(1, 10_000):
            name = clean if number == 1 else f"{clean}-{number}"
            if not os.path.lexists(self.folder / name):
                return name
        raise InputError(f"{self.folder} holds too many campaigns named {clean}; remove some.")

    def new_directory(self, name: str) -> Path:
        """Return where a campaign of this name goes.

        Raises:
            InputError: not a name, or taken.
        """
        directory = self.directory(name)
        if os.path.lexists(directory):
            raise InputError(f"There is a campaign named {name!r} already; choose another name.")
        return directory

    def directory(self, name: str) -> Path:
        """Return where a campaign of that name is, or would be.

        Raises:
            InputError: not a name.
        """
        if not NAME.fullmatch(name):
            raise InputError(
                f"{name!r} cannot be a name: it begins with a letter or digit and holds up to 60 "
                "letters, digits, spaces, and . - _ + ( )."
            )
        return self.folder / name

    # What can be done

    def create(
        self, name: str, settings: Settings, upload: tuple[str, bytes] | None = None
    ) -> CampaignState:
        """Make a campaign; an uploaded structure file (name, content) is kept in its folder.

        Raises:
            InputError: the name is taken, or the structure cannot be read. Nothing is left behind.
        """
        directory = self.new_directory(name)
        directory.mkdir(parents=True)
        try:
            if upload is not None:
                file = directory / f"structure{_suffix(upload[0])}"
                file.write_bytes(upload[1])
                settings = _with_file(settings, file)
            return state_.create(directory, settings)
        except FlywiseError:
            shutil.rmtree(directory)
            raise

    def duplicate(self, name: str) -> Path:
        """Make a campaign with the settings and the start structure of another, nothing else.

        Raises:
            CampaignError: it cannot be read.
        """
        source = self.directory(name)
        with CampaignReader(source) as reader:
            settings, structure = reader.state().settings, reader.structure
        directory = self.new_directory(self.free_name(_base(name)))
        directory.mkdir(parents=True)
        file = Path(settings.structure.file) if settings.structure.file else None
        if file is not None and file.parent == source and file.is_file():
            shutil.copyfile(file, directory / file.name)
            settings = _with_file(settings, directory / file.name)
        store.create(directory, settings, structure)
        return directory

    def rename(self, name: str, new: str) -> Path:
        """Give a campaign another name.

        Raises:
            InputError: not a name, or taken. CampaignError: a worker is at work on it.
        """
        source, target = self.directory(name), self.new_directory(new)
        with self._held(source):
            source.rename(target)
            _follow_file(source, target)
        return target

    def delete(self, name: str) -> str:
        """Move a campaign to the trash; return what `restore` needs to bring it back.

        Raises:
            CampaignError: there is none of that name, or a worker is at work on it.
        """
        source = self.directory(name)
        if not (source / store.DATABASE).is_file():
            raise CampaignError(f"{name!r} holds no campaign; remove the folder yourself.")
        trash = self.folder / TRASH
        trash.mkdir(exist_ok=True)
        with self._held(source):
            token = f"{name}~{time.time_ns()}"
            source.rename(trash / token)
        return token

    def restore(self, token: str) -> Path:
        """Bring back what `delete` moved away; under another name where its own was taken since.

        Raises:
            InputError: the trash does not hold it.
        """
        trash = self.folder / TRASH
        if token not in (os.listdir(trash) if trash.is_dir() else ()):
            raise InputError("The campaign is no longer in the trash.")
        name = token.rpartition("~")[0]
        target = self.new_directory(self.free_name(name))
        (trash / token).rename(target)
        _follow_file(self.folder / name, target)
        return target

    @contextmanager
    def _held(self, directory: Path) -> Iterator[None]:
        """Hold the lock of a campaign at rest; every page forgets it."""
        found = self._look(directory)
        if found.state is None or found.state.phase in AT_REST:
            WorkerHandle(directory).stop(STOP_S)
        with locked(directory), self._lock:
            yield
            state_.forget(directory)


_libraries: dict[Path, Library] = {}


def library() -> Library:
    """Return the one library of `campaigns_folder`."""
    folder = state_.campaigns_folder().absolute()
    return _libraries.setdefault(folder, Library(folder))


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _stamp(directory: Path) -> tuple[int, ...]:
    """Return numbers that differ as soon as the database does.

    Raises:
        CampaignError: there is none.
    """
    database = directory / store.DATABASE
    if not database.is_file():
        raise CampaignError("This folder holds no campaign.")
    main = database.stat()
    stamp = [main.st_ino, main.st_mtime_ns, main.st_size]
    log = directory / f"{store.DATABASE}-wal"
    if log.exists():
        stamp += [log.stat().st_mtime_ns, log.stat().st_size]
    return tuple(stamp)


def _read(directory: Path, stamp: tuple[int, ...], known: _Known | None) -> _Known:
    """Follow the journal from where it was read last."""
    if known is not None and known.stamp[0] != stamp[0]:
        known = None  # another campaign of the same name
    with closing(store.connect(directory, readonly=True)) as connection:
        if known is None:
            born = float(store.read_meta(connection, "created"))
            structure = store.read_structure(connection)
            begun = store.initial_state(connection)
            known = _Known(stamp, Campaign(directory.name, directory, None, born, structure), 0)
        else:
            assert known.campaign.state is not None
            begun = known.campaign.state
        state, last, changed = begun, known.last_event, known.campaign.changed
        for row, event in store.read_events(connection, last):
            last = row
            state, _ = advance(state, event)
            changed = max(changed, event.at)
        former = known.campaign
        inside, checked = former.inside, former.checked
        if former.state is None or state.counts["trained"] != former.state.counts["trained"]:
            kept = report.within_interval(store.read_labels(connection), state)
            inside, checked = sum(kept), len(kept)
    campaign = replace(former, changed=changed, state=state, checked=checked, inside=inside)
    return _Known(stamp, campaign, last)


def _past(campaign: Campaign) -> Past:
    with CampaignReader(campaign.directory) as reader:
        figures = report.summary(reader)
        state = reader.state()
        labels = tuple(state.query(row.query_id).step for row in reader.labels())
        n_atoms = len(reader.structure)
    return Past(campaign.name, n_atoms, figures["steps_run"], labels, figures["wall_s"])


def _suffix(filename: str) -> str:
    suffix = Path(filename).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"Files ending in {suffix or '(nothing)'} are not accepted.")
    return suffix


def _base(name: str) -> str:
    """Return "ethanol" for "ethanol-2"."""
    return re.sub(r"-\d{1,4}$", "", name)


def _with_file(settings: Settings, file: Path) -> Settings:
    given = settings.structure.model_copy(update={"file": str(file), "smiles": None, "name": None})
    return settings.model_copy(update={"structure": given})


def _follow_file(old: Path, new: Path) -> None:
    """Let the settings name the structure file where it lies after a move of its campaign."""
    try:
        with closing(store.Store(new)) as keeper:
            settings = store.read_settings(keeper.connection)
            file = settings.structure.file
            if file is not None and Path(file).parent == old:
                moved = _with_file(settings, new / Path(file).name)
                keeper.set_meta("settings", moved.to_json())
    except _UNREADABLE:
        return  # a campaign that cannot be read can still be moved
