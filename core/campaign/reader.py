"""The side of a campaign directory that the app and the command line use: read, and post commands.

Loads no torch. A reader follows the journal: each call applies only what is new.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar, cast

import numpy as np

from core.campaign import events as ev
from core.campaign import store
from core.campaign.live import LiveFrame, LiveReader
from core.campaign.loop import advance
from core.campaign.state import State
from core.contracts import Label
from core.errors import CampaignError
from core.settings import Settings
from core.structures import Structure

E = TypeVar("E", bound=ev.Event)

_SERIES = (
    "id", "step", "time", "kind", "rewound", "steered", "energy", "offset", "temperature",
    "sigma_energy", "sigma_force", "probability", "energy_bound", "force_bound", "snapshot",
    "sigma_stress", "stress_bound", "within",
)  # fmt: skip
_TEXT = ("kind",)
_WHOLE = ("id", "step", "rewound", "steered", "snapshot")


@dataclass(frozen=True)
class CommandRow:
    """A posted command and what became of it; `outcome` is None until a worker handled it."""

    id: int
    posted_at: float
    command: ev.Command
    handled_at: float | None
    outcome: str | None


class CampaignReader:
    """Read a campaign while a worker writes it. Safe to call from several threads."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._connection = store.connect(self.directory, readonly=True)
        self._lock = threading.RLock()
        self.settings: Settings = store.read_settings(self._connection)
        self.structure: Structure = store.read_structure(self._connection)
        self.id: str = store.read_id(self._connection)
        self.network_filesystem: str | None = store.network_filesystem(self.directory)
        self._state = store.initial_state(self._connection)
        self._last_event = 0
        self._live = LiveReader(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._connection.close()
            self._live.close()

    @property
    def fingerprint(self) -> str | None:
        """Level of theory of the campaign's labels, None before its worker first ran."""
        rows = self._rows(
            "SELECT value FROM meta WHERE key = 'fingerprint' "
            "UNION ALL SELECT fingerprint FROM labels LIMIT 1"
        )
        return str(rows[0]["value"]) if rows else None

    def state(self) -> State:
        """Return the state after all events journalled so far."""
        with self._lock:
            for row_id, event in self.events_since(self._last_event):
                self._state, _ = advance(self._state, event)
                self._last_event = row_id
            return self._state

    def events_since(self, event_id: int, limit: int = -1) -> list[tuple[int, ev.Event]]:
        """Return (id, event) of the journal's rows after `event_id`, oldest first."""
        with self._lock:
            return store.read_events(self._connection, event_id, limit)

    def events_of(self, kind: type[E]) -> list[E]:
        """Return the journal's events of one kind, oldest first."""
        rows = self._rows("SELECT data FROM events WHERE kind = ? ORDER BY id", kind.__name__)
        return [cast(E, ev.from_json(row["data"])) for row in rows]

    def frames_since(self, frame_id: int, limit: int = -1) -> dict[str, np.ndarray]:
        """Return per-frame numbers of the frames after `frame_id`, one array per column.

        Columns: id, step, time (fs), kind, rewound, steered, energy (eV, offset included),
        offset, temperature (K), sigma_energy (eV), sigma_force (eV/Å), probability,
        energy_bound, force_bound, snapshot, sigma_stress, stress_bound (eV/Å³), within (P(all
        errors within tolerance)). Positions: see `frame`.
        """
        rows = self._rows(
            f"SELECT {', '.join(_SERIES)} FROM frames WHERE id > ? ORDER BY id LIMIT ?",
            frame_id, limit,
        )  # fmt: skip
        return {name: _column(name, [row[name] for row in rows]) for name in _SERIES}

    def activations_since(self, frame_id: int, limit: int = -1) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (F,) and activations (F, D) of the frames after `frame_id` that have one."""
        rows = self._rows(
            "SELECT id, activation FROM frames WHERE id > ? AND activation IS NOT NULL "
            "ORDER BY id LIMIT ?", frame_id, limit,
        )  # fmt: skip
        ids = np.array([row["id"] for row in rows], dtype=np.int64)
        if not len(ids):
            return ids, np.zeros((0, 0), dtype=np.float32)
        return ids, np.stack([np.frombuffer(row["activation"], dtype="<f4") for row in rows])

    def rewound_frames(self, after_step: int) -> np.ndarray:
        """Return the ids of frames later than `after_step` that the dynamics went back on."""
        rows = self._rows(
            "SELECT id FROM frames WHERE step > ? AND rewound = 1 ORDER BY id", after_step
        )
        return np.array([row["id"] for row in rows], dtype=np.int64)

    def positions_since(
        self, frame_id: int, atoms: Sequence[int], limit: int = -1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (F,) and positions (F, A, 3), Å, of A atoms in the frames after `frame_id`."""
        parts = ", ".join(f"substr(positions, {24 * int(atom) + 1}, 24)" for atom in atoms)
        rows = self._rows(
            f"SELECT id, {parts} FROM frames WHERE id > ? ORDER BY id LIMIT ?", frame_id, limit
        )
        data = b"".join(part for row in rows for part in tuple(row)[1:])
        positions = np.frombuffer(data, dtype="<f8").reshape(len(rows), len(atoms), 3)
        return np.array([row["id"] for row in rows], dtype=np.int64), positions

    def scales_since(self, frame_id: int, limit: int = -1) -> np.ndarray:
        """Return by what lengths have grown with the cell in the frames after `frame_id`, (F,)."""
        start = self.structure.volume
        rows = self._rows(
            "SELECT cell FROM frames WHERE id > ? ORDER BY id LIMIT ?", frame_id, limit
        )
        cells = [row["cell"] for row in rows]
        volumes = [
            start if cell is None else np.linalg.det(np.frombuffer(cell, "<f8").reshape(3, 3))
            for cell in cells
        ]
        return np.cbrt(np.abs(volumes) / start) if self.structure.is_bulk else np.ones(len(rows))

    def frame(self, frame_id: int) -> store.Frame:
        """Return one frame with its arrays.

        Raises:
            CampaignError: there is no such frame.
        """
        with self._lock:
            return store.read_frame(self._connection, frame_id)

    def last_frame(self) -> store.Frame:
        """Return the newest stored frame; the start structure if nothing ran yet."""
        with self._lock:
            return store.read_last_frame(self._connection)

    def structure_at(self, frame_id: int) -> Structure:
        """Return the structure of a frame."""
        return self.frame(frame_id).of(self.structure)

    def labels(self) -> list[store.LabelRow]:
        """Return all labels, in the order of their queries."""
        with self._lock:
            return store.read_labels(self._connection)

    def snapshots(self) -> list[store.Snapshot]:
        """Return all snapshots, oldest first."""
        with self._lock:
            return store.read_snapshots(self._connection)

    def command(self, command_id: int) -> CommandRow:
        """Return a posted command and its outcome."""
        rows = self._rows("SELECT * FROM commands WHERE id = ?", command_id)
        if not rows:
            raise CampaignError(f"There is no command {command_id}.")
        return _command(rows[0])

    def commands_since(self, command_id: int) -> list[CommandRow]:
        """Return the commands posted after `command_id`, oldest first."""
        rows = self._rows("SELECT * FROM commands WHERE id > ? ORDER BY id", command_id)
        return [_command(row) for row in rows]

    def live(self) -> LiveFrame | None:
        """Return the newest live frame, None before the first."""
        return self._live.read()

    def live_sequence(self) -> int:
        """Return a number that changes with each live frame."""
        return self._live.sequence()

    def _rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()


class Commander:
    """Post commands; they are on the disk when `post` returns, worker or no worker."""

    def __init__(self, directory: str | Path) -> None:
        self._connection = store.connect(Path(directory))
        self._connection.execute("PRAGMA synchronous = FULL")
        self._lock = threading.Lock()

    def post(self, command: ev.Command) -> int:
        """Store a command for the worker; return its id for `CampaignReader.command`."""
        with self._lock:
            return self._insert(command)

    def _insert(self, command: ev.Command) -> int:
        cursor = self._connection.execute(
            "INSERT INTO commands (posted_at, data) VALUES (?, ?)",
            (time.time(), ev.to_json(command)),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def offer(self, command: ev.ImportLabels, labels: Sequence[Label]) -> int:
        """Store a command with the labels of its `ids`, in their order; return its id."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                number = self._insert(command)
                self._connection.executemany(
                    "INSERT INTO offered (command_id, query_id, energy, forces, fingerprint, "
                    "stress) VALUES (?, ?, ?, ?, ?, ?)",
                    [
                        (
                            number, query_id, label.energy,
                            label.forces.astype("<f8").tobytes(), label.fingerprint,
                            None if label.stress is None else label.stress.astype("<f8").tobytes(),
                        )
                        for query_id, label in zip(command.ids, labels, strict=True)
                    ],
                )  # fmt: skip
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        return number

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._connection.close()


def _column(name: str, values: list[object]) -> np.ndarray:
    if name in _TEXT:
        return np.array(values, dtype=object)
    if name in _WHOLE:
        return np.array(values, dtype=np.int64)
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def _command(row: sqlite3.Row) -> CommandRow:
    command = ev.from_json(row["data"])
    assert isinstance(command, ev.Command)
    return CommandRow(row["id"], row["posted_at"], command, row["handled_at"], row["outcome"])
