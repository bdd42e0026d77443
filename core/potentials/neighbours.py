"""Neighbour lists, and one with a skin that is reused from step to step. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matscipy.neighbours import neighbour_list as _matscipy_list

from core.structures import Structure

BRUTE_FORCE_ATOMS = 60
"""Isolated molecules up to this size are searched pair by pair, which is faster."""


@dataclass(frozen=True)
class Edges:
    """Directed pairs within a cutoff, sorted by receiver.

    Attributes:
        senders, receivers: (E,) atom indices. shifts: (E, 3), Å, lattice vectors added to the
            receiver: r_ij = r_receiver + shift - r_sender. images: (E, 3), how many of each.
    """

    senders: np.ndarray
    receivers: np.ndarray
    shifts: np.ndarray
    images: np.ndarray

    def in_cell(self, cell: np.ndarray) -> Edges:
        """Return the same pairs in another cell (3, 3)."""
        return Edges(self.senders, self.receivers, self.images @ cell, self.images)


def neighbour_list(structure: Structure, positions: np.ndarray, cutoff: float) -> Edges:
    """Return all directed pairs of `structure` at `positions` (N, 3) nearer than `cutoff` Å."""
    if not any(structure.pbc) and len(positions) <= BRUTE_FORCE_ATOMS:
        return _all_pairs(positions, cutoff)
    cell, periodic = np.array(structure.cell), np.array(structure.pbc)
    across = np.linalg.svd(cell[periodic])[2][periodic.sum() :]
    for axis, direction in zip(np.flatnonzero(~periodic), across, strict=True):
        cell[axis] = (np.ptp(positions @ direction) + 2 * cutoff + 10.0) * direction  # wide enough
    origin = positions.min(axis=0) - cutoff - 5.0 if not any(structure.pbc) else np.zeros(3)
    i, j, counts = _matscipy_list(
        "ijS", cutoff=cutoff, positions=positions - origin, cell=cell, pbc=structure.pbc
    )
    return Edges(j.astype(np.int64), i.astype(np.int64), -(counts @ cell), -counts)


def _all_pairs(positions: np.ndarray, cutoff: float) -> Edges:
    difference = positions[:, None] - positions[None]
    near = (difference**2).sum(-1) < cutoff**2
    np.fill_diagonal(near, False)
    i, j = np.nonzero(near)
    none = np.zeros((len(i), 3))
    return Edges(j, i, none, none)


class SkinList:
    """A neighbour list out to cutoff + skin, rebuilt before a pair can have come in unseen.

    Attributes:
        rebuilt: whether the last call gave other edges or other shifts.
    """

    def __init__(self, structure: Structure, cutoff: float, skin: float) -> None:
        self._structure = structure
        self._cutoff, self._skin = cutoff, skin
        self._positions: np.ndarray | None = None
        self._cell = structure.cell
        self._edges: Edges | None = None
        self.rebuilt = False

    def edges(self, positions: np.ndarray, cell: np.ndarray | None = None) -> Edges:
        """Return pairs that include all those within the cutoff at `positions` (N, 3).

        In the `cell` (3, 3), if it is not the structure's own.
        """
        if self._edges is not None and not self._worn(positions, cell):
            self.rebuilt = cell is not None
            return self._edges if cell is None else self._edges.in_cell(cell)
        self._cell = self._structure.cell if cell is None else np.array(cell)
        at = self._structure.moved(positions, self._cell)
        self._edges = neighbour_list(at, positions, self._cutoff + self._skin)
        self._positions = np.array(positions)
        self.rebuilt = True
        return self._edges

    def _worn(self, positions: np.ndarray, cell: np.ndarray | None) -> bool:
        """Whether two atoms may have come nearer by the skin, by moving or by the cell's strain."""
        assert self._positions is not None
        former, narrowed = self._positions, 0.0
        if cell is not None:
            deformation = np.linalg.solve(self._cell, cell)
            former = former @ deformation
            strain = np.linalg.norm(np.linalg.inv(deformation) - np.eye(3), 2)
            narrowed = self._cutoff * float(strain)
        moved = np.sqrt(((positions - former) ** 2).sum(axis=1).max())
        return bool(2 * moved + narrowed >= self._skin)
