"""The numbers of all stored frames of a campaign, in memory once for all pages that draw them.

Grows with the journal, a little at each look, so that no page waits for a long run to be read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

from core import geometry
from core.campaign.reader import CampaignReader

NUMBERS = ("energy", "offset", "temperature", "energy_bound", "force_bound", "stress_bound")
"""Columns of numbers: eV, eV, K, eV, eV/Å, eV/Å³."""
KINDS = ("untrusted", "trusted", "flagged")
"""What a frame was when it was written; `kind` is an index into this."""

CHUNK = 2000
BUDGET_S = 0.03
"""Frames read at once, and the time one look may take."""
COORDINATES = 16
"""Internal coordinates kept; the one asked for longest ago goes first."""
FRESH_S = 0.1
"""Looks within this time read nothing."""


class Series:
    """Columns over the F stored frames, in the order they were written.

    Attributes:
        version: changes when frames already read turn out to be rewound.
        trusted_from: index of the first trusted frame, None before there is one.
    """

    def __init__(self, reader: CampaignReader) -> None:
        self._reader = reader
        dynamics, trust = reader.settings.dynamics, reader.settings.trust
        self._stride = max(dynamics.check_every, trust.initial_stride)
        self._lock = threading.Lock()
        self._looked = 0.0
        self._size = 0
        whole = ("id", "step", "kind", "rewound")
        self._ints: dict[str, np.ndarray] = {name: np.zeros(1024, np.int64) for name in whole}
        self._floats: dict[str, np.ndarray] = {name: np.zeros(1024) for name in NUMBERS}
        self._coordinates: dict[tuple[int, ...], np.ndarray] = {}
        self._last_step = -1
        self.version = 0
        self.trusted_from: int | None = None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the column `name`, (F,): id, step, kind, rewound or one of `NUMBERS`."""
        column = self._ints.get(name)
        return (self._floats[name] if column is None else column)[: self._size]

    def index(self, frame_id: int) -> int | None:
        """Return the index of a frame, None where it is not read yet."""
        at = int(np.searchsorted(self["id"], frame_id))
        return at if at < self._size and self["id"][at] == frame_id else None

    @property
    def relative_energy(self) -> np.ndarray:
        """Potential energy relative to the first trusted frame, (F,) eV.

        Before trust no offset was known: those frames are given the one of the first trusted frame.
        """
        energy = self["energy"]
        if self.trusted_from is None:
            finite = np.isfinite(energy)
            return energy - (energy[np.argmax(finite)] if finite.any() else 0.0)
        first = self.trusted_from
        shift = np.where(self["kind"] == 0, self["offset"][first] - self["offset"], 0.0)
        return energy + shift - energy[first]

    def follow(self) -> None:
        """Read what is new, within `BUDGET_S`; nothing if the last look was a moment ago."""
        with self._lock:
            start = time.monotonic()
            if start - self._looked < FRESH_S:
                return
            while True:
                rows = self._reader.frames_since(self._last_id, CHUNK)
                self._add(rows)
                if len(rows["id"]) < CHUNK or time.monotonic() - start > BUDGET_S:
                    break
            self._looked = time.monotonic()

    @property
    def _last_id(self) -> int:
        return int(self._ints["id"][self._size - 1]) if self._size else 0

    def _add(self, rows: dict[str, np.ndarray]) -> None:
        count, size = len(rows["id"]), self._size
        if not count:
            return
        for columns in (self._ints, self._floats):
            for name, column in columns.items():
                if size + count > len(column):
                    columns[name] = column = np.resize(column, 2 * (size + count))
                values = _kinds(rows["kind"]) if name == "kind" else rows[name]
                column[size : size + count] = values
        self._size += count
        self._note_rewinds(rows["step"])
        if self.trusted_from is None:
            trusted = np.flatnonzero(self["kind"][size:])
            self.trusted_from = size + int(trusted[0]) if len(trusted) else None

    def _note_rewinds(self, steps: np.ndarray) -> None:
        before = np.concatenate([[self._last_step], steps[:-1]])
        self._last_step = int(steps[-1])
        back = steps[steps <= before]
        if not len(back):
            return
        gone = self._reader.rewound_frames(int(back.min()) - self._stride - 1)
        self["rewound"][np.isin(self["id"], gone)] = 1
        self.version += 1

    def coordinate(self, atoms: Sequence[int]) -> np.ndarray:
        """Return the internal coordinate of `atoms` in the first G ≤ F frames, (G,) Å or degrees.

        Each call computes more of it from the stored positions, until G = F.
        """
        key = tuple(atoms)
        with self._lock:
            known = self._coordinates.get(key, np.zeros(0))
            start = time.monotonic()
            while len(known) < self._size and time.monotonic() - start < BUDGET_S:
                known = np.concatenate([known, self._values_after(len(known), key)])
            self._coordinates.pop(key, None)
            self._coordinates[key] = known
            for oldest in list(self._coordinates)[:-COORDINATES]:
                del self._coordinates[oldest]
            return known

    def _values_after(self, start: int, atoms: tuple[int, ...]) -> np.ndarray:
        last = int(self._ints["id"][start - 1]) if start else 0
        limit = min(CHUNK, self._size - start)
        _, positions = self._reader.positions_since(last, atoms, limit)
        structure = self._reader.structure
        if self._reader.settings.dynamics.ensemble != "npt":
            return geometry.coordinate(positions, structure.cell, structure.pbc)
        scales = self._reader.scales_since(last, limit)
        shrunk = positions / scales[:, None, None]
        values = geometry.coordinate(shrunk, structure.cell, structure.pbc)
        return values * scales if len(atoms) == 2 else values


def _kinds(names: np.ndarray) -> np.ndarray:
    return np.array([KINDS.index(name) for name in names], np.int64)


def extremes(columns: Sequence[np.ndarray], bins: int) -> np.ndarray:
    """Return the indices of R rows that keep the extremes of every column (R,) in each bin.

    The rows are cut into `bins` runs of equal length, of which the first and last row and, per
    column, the lowest and the highest finite value are kept, in order.
    """
    size = len(columns[0]) if columns else 0
    if size <= 2 * bins * max(len(columns), 1):
        return np.arange(size)
    width = -(-size // bins)
    padded = -(-size // width) * width
    first = np.arange(0, padded, width)
    kept = [[0, size - 1]]
    for column in columns:
        values = np.full(padded, np.nan)
        values[:size] = column
        cells = values.reshape(-1, width)
        finite = np.isfinite(cells)
        some = finite.any(axis=1)
        kept.append((first + np.where(finite, cells, np.inf).argmin(axis=1))[some])
        kept.append((first + np.where(finite, cells, -np.inf).argmax(axis=1))[some])
    return np.unique(np.concatenate(kept))
