"""The campaign directory's database: settings, journal, commands, frames, labels, snapshots.

SQLite, in WAL mode on a local disk. One writer (the worker, or whoever runs the campaign inline);
the app reads through `core.campaign.reader` and adds rows to `commands`, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.campaign import events as ev
from core.campaign.state import State
from core.contracts import Label
from core.errors import CampaignError
from core.settings import Settings
from core.settings import from_json as settings_from_json
from core.structures import Structure

DATABASE = "campaign.sqlite"
VERSION = 1
NETWORK_FILESYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "lustre", "afs")

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE events (id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL,
    data TEXT NOT NULL);
CREATE TABLE commands (id INTEGER PRIMARY KEY AUTOINCREMENT, posted_at REAL NOT NULL,
    data TEXT NOT NULL, handled_at REAL, outcome TEXT);
CREATE TABLE frames (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, time REAL NOT NULL,
    kind TEXT NOT NULL, rewound INTEGER NOT NULL DEFAULT 0, steered INTEGER NOT NULL DEFAULT 0,
    positions BLOB NOT NULL, velocities BLOB NOT NULL, energy REAL, offset REAL,
    forces BLOB NOT NULL, temperature REAL, sigma_energy REAL, sigma_force REAL,
    sigma_atoms BLOB NOT NULL, probability REAL, energy_bound REAL, force_bound REAL,
    reasons TEXT NOT NULL, snapshot INTEGER NOT NULL);
CREATE INDEX frames_by_step ON frames (step);
CREATE TABLE labels (query_id INTEGER PRIMARY KEY, frame_id INTEGER NOT NULL,
    energy REAL NOT NULL, forces BLOB NOT NULL, fingerprint TEXT NOT NULL, wall_s REAL NOT NULL,
    at REAL NOT NULL, predicted REAL, z REAL, force_ratio REAL, learned INTEGER);
CREATE TABLE snapshots (id INTEGER PRIMARY KEY, at REAL NOT NULL, path TEXT NOT NULL,
    weights TEXT NOT NULL, offset REAL NOT NULL, offset_variance REAL NOT NULL,
    n_labels INTEGER NOT NULL, calibration TEXT NOT NULL, info TEXT NOT NULL);
CREATE TABLE dynamics (one INTEGER PRIMARY KEY CHECK (one = 1), step INTEGER NOT NULL,
    data BLOB NOT NULL);
"""

_ADDED = (
    "CREATE TABLE IF NOT EXISTS scores (query_id INTEGER PRIMARY KEY, sigma_energy REAL, "
    "sigma_force REAL, calibration TEXT)",
    "CREATE TABLE IF NOT EXISTS offered (command_id INTEGER NOT NULL, query_id INTEGER NOT NULL, "
    "energy REAL NOT NULL, forces BLOB NOT NULL, fingerprint TEXT NOT NULL, "
    "PRIMARY KEY (command_id, query_id))",
)
"""Tables that campaigns begun without them are given when they are opened."""

_COLUMNS = {
    "frames": {
        "cell": "BLOB",
        "stress": "BLOB",
        "sigma_stress": "REAL",
        "stress_bound": "REAL",
        "novelty": "REAL",
        "within": "REAL",
        "activation": "BLOB",
    },
    "labels": {"stress": "BLOB"},
    "scores": {"stress_ratio": "REAL"},
    "offered": {"stress": "BLOB"},
}
"""Columns that they are given."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One stored frame.

    Attributes:
        time: fs. kind: "untrusted", "trusted" or "flagged" when it was written.
        positions, velocities, forces: (N, 3), Å, Å/fs, eV/Å.
        cell: (3, 3), Å, None where it is always that of the start.
        energy: predicted total energy, eV, with `offset` (eV) added. nan before the first check.
        sigma_atoms: (N,) eV/Å. sigma_force: of the largest error among them, see
            `core.contracts.Spread`.
        within: see `core.calibration.Assessment`.
        stress: (3, 3), eV/Å³, None where it is not learned from; sigma_stress, stress_bound: of
            its least certain component. novelty: see `core.acquisition.coverage`; nan before
            there are labels. activation: (D,) mean of the foundation's features over the atoms,
            None where it was not kept.
    """

    step: int
    time: float
    kind: str
    positions: np.ndarray
    velocities: np.ndarray
    forces: np.ndarray
    sigma_atoms: np.ndarray
    cell: np.ndarray | None = None
    energy: float = float("nan")
    offset: float = 0.0
    temperature: float = float("nan")
    sigma_energy: float = float("nan")
    sigma_force: float = float("nan")
    probability: float = float("nan")
    energy_bound: float = float("nan")
    force_bound: float = float("nan")
    within: float = float("nan")
    stress: np.ndarray | None = None
    sigma_stress: float = float("nan")
    stress_bound: float = float("nan")
    novelty: float = float("nan")
    activation: np.ndarray | None = None
    reasons: tuple[str, ...] = ()
    snapshot: int = 0
    steered: bool = False
    rewound: bool = False
    id: int = 0

    def of(self, start: Structure) -> Structure:
        """Return this frame's structure, given that of the start."""
        return start.moved(self.positions, self.cell)


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """A label in the store: what was bought, and what the model had said before it knew.

    Attributes:
        energy: reference energy, eV. predicted: the model's, offset included, eV.
        z: (energy - predicted)/σ. force_ratio: max|ΔF| / max σ_F; stress_ratio alike. learned:
            snapshot that used it. stress: (3, 3), eV/Å³, or None.
        sigma_energy, sigma_force: raw σ when it was scored, eV and eV/Å; None if left out to score.
        calibration: in force then, see `core.campaign.learner.calibration_from_dict`.
    """

    query_id: int
    frame_id: int
    energy: float
    forces: np.ndarray
    fingerprint: str
    wall_s: float
    at: float
    predicted: float | None = None
    z: float | None = None
    force_ratio: float | None = None
    learned: int | None = None
    sigma_energy: float | None = None
    sigma_force: float | None = None
    calibration: dict[str, Any] | None = None
    stress: np.ndarray | None = None
    stress_ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Weights that passed the canary. `path` is relative to the campaign directory."""

    id: int
    at: float
    path: str
    weights: str
    offset: float
    offset_variance: float
    n_labels: int
    calibration: dict[str, Any]
    info: dict[str, Any]


def network_filesystem(path: Path, mounts: str | None = None) -> str | None:
    """Return the type of the network file system `path` lies on, None for a local disk."""
    if mounts is None:
        table = Path("/proc/self/mounts")
        mounts = table.read_text() if table.exists() else ""
    target, best, kind = path.resolve(), "", ""
    for line in mounts.splitlines():
        _, point, type_ = line.split()[:3]
        point = point.replace("\\040", " ")
        if target.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, type_
    return kind if kind in NETWORK_FILESYSTEMS else None


def connect(directory: Path, *, readonly: bool = False) -> sqlite3.Connection:
    """Open the database of a campaign; journal mode by file system.

    Raises:
        CampaignError: no campaign there, or one of another version.
    """
    path = directory / DATABASE
    if not path.is_file():
        raise CampaignError(f"{directory} holds no campaign ({DATABASE} is missing).")
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        row = connection.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()
    except sqlite3.DatabaseError as error:
        connection.close()
        raise CampaignError(f"{path} is not a campaign's database: {error}.") from error
    if row is None or int(row["value"]) != VERSION:
        connection.close()
        found = "none" if row is None else row["value"]
        raise CampaignError(
            f"The campaign in {directory} has layout version {found}, this Flywise reads version "
            f"{VERSION}; open it with the version that wrote it."
        )
    _complete(connection)
    if readonly:
        connection.execute("PRAGMA query_only = ON")
    return connection


def create(directory: Path, settings: Settings, structure: Structure) -> None:
    """Make a campaign directory; the start structure becomes frame 1.

    Raises:
        CampaignError: there is a campaign already.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / DATABASE
    if path.exists():
        raise CampaignError(f"{directory} holds a campaign already; choose another directory.")
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    connection = sqlite3.connect(part, isolation_level=None)
    connection.executescript(_SCHEMA)
    _complete(connection)
    for key, value in {
        "version": str(VERSION),
        "settings": settings.to_json(),
        "structure": _structure_to_json(structure),
        "created": str(time.time()),
    }.items():
        connection.execute("INSERT INTO meta VALUES (?, ?)", (key, value))
    still = np.zeros_like(structure.positions)
    _insert_frame(
        connection,
        Frame(
            step=0, time=0.0, kind="untrusted", positions=structure.positions, velocities=still,
            forces=still, sigma_atoms=np.full(len(structure), np.nan), reasons=("start",),
        ),
    )  # fmt: skip
    if network_filesystem(directory) is None:
        connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    part.rename(path)


def _complete(connection: sqlite3.Connection) -> None:
    """Add the tables and columns that the layout has gained."""
    for statement in _ADDED:
        connection.execute(statement)
    for table, columns in _COLUMNS.items():
        known = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        for name, kind in columns.items():
            if name not in known:
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")


def remove(directory: Path) -> None:
    """Remove the database of a campaign; labels that were bought stay."""
    for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
        (directory / name).unlink(missing_ok=True)


def _structure_to_json(structure: Structure) -> str:
    return json.dumps(
        {
            "numbers": structure.numbers.tolist(),
            "positions": structure.positions.tolist(),
            "cell": structure.cell.tolist(),
            "pbc": list(structure.pbc),
            "charge": structure.charge,
            "spin": structure.spin,
            "fixed": list(structure.fixed),
        }
    )


def read_structure(connection: sqlite3.Connection) -> Structure:
    """Return the campaign's start structure."""
    data = json.loads(read_meta(connection, "structure"))
    return Structure(
        np.array(data["numbers"], dtype=int), np.array(data["positions"], dtype=float),
        np.array(data["cell"], dtype=float), tuple(data["pbc"]), data["charge"], data["spin"],
        tuple(data["fixed"]),
    )  # fmt: skip


def read_meta(connection: sqlite3.Connection, key: str) -> str:
    """Return a value of the `meta` table.

    Raises:
        CampaignError: there is none.
    """
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    if row is None:
        raise CampaignError(f"The campaign's database has no {key}; it is damaged.")
    return str(row["value"])


def read_id(connection: sqlite3.Connection) -> str:
    """Return a word that tells this campaign from others; no reader takes it for a number."""
    parts = [read_meta(connection, key) for key in ("created", "settings", "structure")]
    return "c" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:15]


def read_settings(connection: sqlite3.Connection) -> Settings:
    """Return the settings as the campaign was started with."""
    return settings_from_json(read_meta(connection, "settings"))


def initial_state(connection: sqlite3.Connection) -> State:
    """Return the state before any event."""
    return State(read_settings(connection), n_atoms=len(read_structure(connection)))


def _insert_frame(connection: sqlite3.Connection, frame: Frame) -> int:
    cursor = connection.execute(
        "INSERT INTO frames (step, time, kind, steered, positions, velocities, energy, offset, "
        "forces, temperature, sigma_energy, sigma_force, sigma_atoms, probability, energy_bound, "
        "force_bound, reasons, snapshot, stress, sigma_stress, stress_bound, cell, novelty, "
        "activation, within) "
        "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            frame.step, frame.time, frame.kind, int(frame.steered),
            frame.positions.astype("<f8").tobytes(), frame.velocities.astype("<f8").tobytes(),
            frame.energy, frame.offset, frame.forces.astype("<f4").tobytes(), frame.temperature,
            frame.sigma_energy, frame.sigma_force, frame.sigma_atoms.astype("<f4").tobytes(),
            frame.probability, frame.energy_bound, frame.force_bound,
            " ".join(frame.reasons), frame.snapshot, _bytes(frame.stress), frame.sigma_stress,
            frame.stress_bound, _bytes(frame.cell), frame.novelty,
            None if frame.activation is None else frame.activation.astype("<f4").tobytes(),
            frame.within,
        ),
    )  # fmt: skip
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _bytes(matrix: np.ndarray | None) -> bytes | None:
    return None if matrix is None else matrix.astype("<f8").tobytes()


def _matrix_of(data: bytes | None) -> np.ndarray | None:
    return None if data is None else np.frombuffer(data, dtype="<f8").reshape(3, 3).copy()


def _frame_of(row: sqlite3.Row) -> Frame:
    """Return the frame of a row of `frames`."""

    def number(name: str) -> float:  # SQLite stores nan as NULL
        return float("nan") if row[name] is None else float(row[name])

    def array(name: str, kind: str) -> np.ndarray:
        return np.frombuffer(row[name], dtype=kind).astype(float)

    return Frame(
        id=row["id"], step=row["step"], time=row["time"], kind=row["kind"],
        rewound=bool(row["rewound"]), steered=bool(row["steered"]),
        positions=array("positions", "<f8").reshape(-1, 3),
        velocities=array("velocities", "<f8").reshape(-1, 3),
        forces=array("forces", "<f4").reshape(-1, 3), sigma_atoms=array("sigma_atoms", "<f4"),
        energy=number("energy"), offset=number("offset"), temperature=number("temperature"),
        sigma_energy=number("sigma_energy"), sigma_force=number("sigma_force"),
        probability=number("probability"), energy_bound=number("energy_bound"),
        force_bound=number("force_bound"), reasons=tuple(row["reasons"].split()),
        snapshot=row["snapshot"], stress=_matrix_of(row["stress"]),
        cell=_matrix_of(row["cell"]), sigma_stress=number("sigma_stress"),
        stress_bound=number("stress_bound"), novelty=number("novelty"), within=number("within"),
        activation=None if row["activation"] is None else array("activation", "<f4"),
    )  # fmt: skip


def _label_of(row: sqlite3.Row) -> LabelRow:
    """Return the label of a row of `labels`."""
    forces = np.frombuffer(row["forces"], dtype="<f8").reshape(-1, 3).copy()
    calibration = None if row["calibration"] is None else json.loads(row["calibration"])
    decoded = {"forces": forces, "calibration": calibration, "stress": _matrix_of(row["stress"])}
    return LabelRow(**{**dict(row), **decoded})


def _snapshot_of(row: sqlite3.Row) -> Snapshot:
    """Return the snapshot of a row of `snapshots`."""
    decoded = {name: json.loads(row[name]) for name in ("calibration", "info")}
    return Snapshot(**{**dict(row), **decoded})


def read_events(
    connection: sqlite3.Connection, after: int = 0, limit: int = -1
) -> list[tuple[int, ev.Event]]:
    """Return (id, event) of the journal's rows after the id `after`, oldest first."""
    rows = connection.execute(
        "SELECT id, data FROM events WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
    ).fetchall()
    return [(row["id"], ev.from_json(row["data"])) for row in rows]


def read_frame(connection: sqlite3.Connection, frame_id: int) -> Frame:
    """Return one frame.

    Raises:
        CampaignError: there is no such frame.
    """
    row = connection.execute("SELECT * FROM frames WHERE id = ?", (frame_id,)).fetchone()
    if row is None:
        raise CampaignError(f"There is no frame {frame_id}.")
    return _frame_of(row)


def read_last_frame(connection: sqlite3.Connection) -> Frame:
    """Return the newest frame; the start structure if nothing ran yet."""
    return _frame_of(connection.execute("SELECT * FROM frames ORDER BY id DESC LIMIT 1").fetchone())


def read_sigma_forces(connection: sqlite3.Connection, n: int) -> list[float]:
    """Return the largest force σ, eV/Å, of the last n frames of trusted weights, oldest first."""
    rows = connection.execute(
        "SELECT sigma_force FROM frames WHERE kind != 'untrusted' ORDER BY id DESC LIMIT ?", (n,)
    ).fetchall()
    return [float(row[0]) for row in reversed(rows)]


def read_labels(connection: sqlite3.Connection) -> list[LabelRow]:
    """Return all labels in the order of their queries."""
    rows = connection.execute(
        "SELECT labels.*, sigma_energy, sigma_force, stress_ratio, calibration FROM labels "
        "LEFT JOIN scores USING (query_id) ORDER BY query_id"
    ).fetchall()
    return [_label_of(row) for row in rows]


def read_snapshots(connection: sqlite3.Connection) -> list[Snapshot]:
    """Return all snapshots, oldest first."""
    rows = connection.execute("SELECT * FROM snapshots ORDER BY id").fetchall()
    return [_snapshot_of(row) for row in rows]


class Store:
    """The writing side. Every method is one short transaction unless inside `transaction`."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._connection = connect(self.directory)
        self._lock = threading.RLock()
        self._inside = False

    @property
    def connection(self) -> sqlite3.Connection:
        """The open connection, for the readers of this module."""
        return self._connection

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """All of the block or nothing; a `durable` one is on the disk when it returns."""
        if self._inside:
            yield
            return
        with self._lock:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            self._inside = True
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            else:
                self._connection.execute("COMMIT")
            finally:
                self._inside = False

    def add_event(self, event: ev.Event) -> int:
        """Append to the journal; return the row's id."""
        with self.transaction():
            cursor = self._connection.execute(
                "INSERT INTO events (at, kind, data) VALUES (?, ?, ?)",
                (event.at, type(event).__name__, ev.to_json(event)),
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def add_frame(self, frame: Frame) -> int:
        """Store a frame; return its id."""
        with self.transaction(durable=False):
            return _insert_frame(self._connection, frame)

    def next_frame_id(self) -> int:
        """Return the id the next frame will get."""
        row = self._connection.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM frames").fetchone()
        return int(row[0])

    def mark_rewound(self, after_step: int) -> None:
        """Mark the frames of the present trajectory later than `after_step`."""
        with self.transaction():
            self._connection.execute("UPDATE frames SET rewound = 1 WHERE step > ?", (after_step,))

    def save_dynamics(self, step: int, data: bytes) -> None:
        """Keep the state from which the dynamics can go on exactly."""
        with self.transaction(durable=False):
            self._connection.execute(
                "INSERT INTO dynamics VALUES (1, ?, ?) "
                "ON CONFLICT (one) DO UPDATE SET step = excluded.step, data = excluded.data",
                (step, data),
            )

    def load_dynamics(self) -> tuple[int, bytes] | None:
        """Return (step, data) of `save_dynamics`."""
        row = self._connection.execute("SELECT step, data FROM dynamics").fetchone()
        return None if row is None else (row["step"], row["data"])

    def add_label(self, query_id: int, frame_id: int, label: Label) -> None:
        """Store a label that arrived; an earlier one of the same query is replaced."""
        with self.transaction():
            self._connection.execute(
                "INSERT OR REPLACE INTO labels (query_id, frame_id, energy, forces, fingerprint, "
                "wall_s, at, stress) VALUES (?,?,?,?,?,?,?,?)",
                (
                    query_id, frame_id, label.energy, label.forces.astype("<f8").tobytes(),
                    label.fingerprint, label.wall_s, time.time(), _bytes(label.stress),
                ),
            )  # fmt: skip
            self._connection.execute("DELETE FROM scores WHERE query_id = ?", (query_id,))

    def score_label(
        self,
        query_id: int,
        predicted: float,
        z: float,
        force_ratio: float,
        stress_ratio: float = float("nan"),
        sigma_energy: float = float("nan"),
        sigma_force: float = float("nan"),
        calibration: str | None = None,
    ) -> None:
        """Keep what the model said of a label before it learned it, and who judged it (JSON)."""
        with self.transaction():
            self._connection.execute(
                "UPDATE labels SET predicted = ?, z = ?, force_ratio = ? WHERE query_id = ?",
                (predicted, z, force_ratio, query_id),
            )
            self._connection.execute(
                "INSERT OR REPLACE INTO scores (query_id, sigma_energy, sigma_force, calibration, "
                "stress_ratio) VALUES (?, ?, ?, ?, ?)",
                (query_id, sigma_energy, sigma_force, calibration, stress_ratio),
            )

    def take_offered(
        self, command_id: int
    ) -> list[tuple[int, float, np.ndarray, str, np.ndarray | None]]:
        """Remove the labels that came with a command.

        Returns:
            query id, energy (eV), forces (N, 3) (eV/Å), fingerprint and stress of each.
        """
        with self.transaction():
            rows = self._connection.execute(
                "DELETE FROM offered WHERE command_id = ? "
                "RETURNING query_id, energy, forces, fingerprint, stress",
                (command_id,),
            ).fetchall()
        return [
            (
                query,
                energy,
                np.frombuffer(forces, "<f8").reshape(-1, 3).copy(),
                fingerprint,
                _matrix_of(stress),
            )
            for query, energy, forces, fingerprint, stress in rows
        ]

    def add_snapshot(self, snapshot: Snapshot, learned: tuple[int, ...]) -> None:
        """Store a snapshot, and which queries' labels it learned for the first time."""
        with self.transaction():
            self._connection.execute(
                "INSERT INTO snapshots VALUES (?,?,?,?,?,?,?,?,?)",
                (
                    snapshot.id, snapshot.at, snapshot.path, snapshot.weights, snapshot.offset,
                    snapshot.offset_variance, snapshot.n_labels,
                    json.dumps(snapshot.calibration), json.dumps(snapshot.info),
                ),
            )  # fmt: skip
            self._connection.executemany(
                "UPDATE labels SET learned = ? WHERE query_id = ? AND learned IS NULL",
                [(snapshot.id, i) for i in learned],
            )

    def set_meta(self, key: str, value: str) -> None:
        """Set a value of the `meta` table."""
        with self.transaction():
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def new_commands(self) -> list[tuple[int, ev.Command]]:
        """Return (id, command) of the rows nobody has handled yet, oldest first."""
        rows = self._connection.execute(
            "SELECT id, data FROM commands WHERE handled_at IS NULL ORDER BY id"
        ).fetchall()
        return [(row["id"], ev.from_json(row["data"])) for row in rows]  # type: ignore[misc]

    def finish_command(self, command_id: int, outcome: str) -> None:
        """Mark a command as handled: "done", or why it was refused."""
        with self.transaction():
            self._connection.execute(
                "UPDATE commands SET handled_at = ?, outcome = ? WHERE id = ?",
                (time.time(), outcome, command_id),
            )
