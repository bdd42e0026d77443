"""The newest-wins channel for frames on the screen: one memory-mapped file, never a queue.

A sequence lock: the counter is odd while the writer is inside, and a reader keeps a copy only if
the counter was even and unchanged around it and the checksum agrees. What must last is in the
store; this file may vanish at any time.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from core.campaign.state import PHASES, Phase

FILE = "live.bin"
RATE_HZ = 30.0
_MAGIC = b"FLYLIVE2"
_HEAD = struct.Struct("<8sIIQ")
_BODY = struct.Struct("<q18dBB6x")


@dataclass(frozen=True)
class LiveFrame:
    """The dynamics at one moment.

    Attributes:
        time: fs. energy: eV, offset included. temperature: K. probability, sigma_energy (eV) and
        force_bound (eV/Å): of the last check. timestamp: seconds since 1970.
        positions: (N, 3) float32, Å. sigma_atoms: (N,) float32, eV/Å, of the last check.
        cell: (3, 3), Å, None where it is always that of the start.
    """

    step: int
    time: float
    energy: float
    temperature: float
    sigma_energy: float
    probability: float
    energy_bound: float
    force_bound: float
    steps_per_s: float
    phase: Phase
    trusted: bool
    positions: np.ndarray
    sigma_atoms: np.ndarray
    timestamp: float = 0.0
    cell: np.ndarray | None = None


class LiveWriter:
    """Writes at most `RATE_HZ` frames a second; the rest are dropped."""

    def __init__(self, directory: Path, n_atoms: int) -> None:
        self._n_atoms = n_atoms
        self._size = _HEAD.size + _BODY.size + 16 * n_atoms + 4
        handle = os.open(directory / FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(handle, self._size)
            self._map = mmap.mmap(handle, self._size)
        finally:
            os.close(handle)
        before = _HEAD.unpack_from(self._map)
        sequence = before[3] if before[0] == _MAGIC else 0
        self._sequence = sequence + sequence % 2
        self._last = 0.0

    def write(self, frame: LiveFrame, *, force: bool = False) -> bool:
        """Publish a frame; False if it came too early after the last. `force` ignores that."""
        now = time.monotonic()
        if not force and now - self._last < 1 / RATE_HZ:
            return False
        self._last = now
        body = _BODY.pack(
            frame.step, frame.time, frame.energy, frame.temperature, frame.sigma_energy,
            frame.probability, frame.energy_bound, frame.force_bound, frame.steps_per_s,
            time.time(), *(np.zeros(9) if frame.cell is None else frame.cell.ravel()),
            PHASES.index(frame.phase), frame.trusted,
        )  # fmt: skip
        arrays = frame.positions.astype("<f4").tobytes() + frame.sigma_atoms.astype("<f4").tobytes()
        payload = body + arrays
        self._put_sequence(self._sequence + 1)
        self._map[_HEAD.size : _HEAD.size + len(payload)] = payload
        self._map[self._size - 4 :] = struct.pack("<I", zlib.crc32(payload))
        self._put_sequence(self._sequence + 1)
        return True

    def _put_sequence(self, sequence: int) -> None:
        self._sequence = sequence
        _HEAD.pack_into(self._map, 0, _MAGIC, 1, self._n_atoms, sequence)

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()


class LiveReader:
    """Reads the newest whole frame."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._map: mmap.mmap | None = None

    def read(self, attempts: int = 20) -> LiveFrame | None:
        """Return the newest frame, or None if there is none yet."""
        if not self._open():
            return None
        assert self._map is not None
        for _ in range(attempts):
            magic, _, n_atoms, before = _HEAD.unpack_from(self._map)
            if magic != _MAGIC or before == 0:
                return None
            copy = self._map[_HEAD.size :]
            after = _HEAD.unpack_from(self._map)[3]
            if before == after and before % 2 == 0:
                payload, (check,) = copy[:-4], struct.unpack("<I", copy[-4:])
                if zlib.crc32(payload) == check:
                    return _parse(payload, n_atoms)
            time.sleep(0)
        return None

    def sequence(self) -> int:
        """Return a number that changes with each frame, for little; 0 before the first."""
        if not self._open():
            return 0
        assert self._map is not None
        return int(_HEAD.unpack_from(self._map)[3])

    def _open(self) -> bool:
        if self._map is None and self._path.exists():
            with open(self._path, "rb") as file:
                if os.fstat(file.fileno()).st_size > _HEAD.size + _BODY.size:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map is not None

    def close(self) -> None:
        """Let go of the file."""
        if self._map is not None:
            self._map.close()
            self._map = None


def _parse(payload: bytes, n_atoms: int) -> LiveFrame:
    step, *values, phase, trusted = _BODY.unpack_from(payload)
    *numbers, timestamp = values[:-9]
    cell = np.array(values[-9:]).reshape(3, 3)
    arrays = np.frombuffer(payload, dtype="<f4", offset=_BODY.size)
    names = [f.name for f in fields(LiveFrame)][1 : 1 + len(numbers)]
    return LiveFrame(
        step=step, **dict(zip(names, numbers, strict=True)), phase=PHASES[phase],
        trusted=bool(trusted), positions=arrays[: 3 * n_atoms].reshape(-1, 3),
        sigma_atoms=arrays[3 * n_atoms :], timestamp=timestamp, cell=cell if cell.any() else None,
    )  # fmt: skip
