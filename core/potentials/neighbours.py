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
            receiver: r_ij = r_receiver + shift - r_sender.
    """

    senders: np.ndarray
    receivers: np.ndarray
    shifts: np.ndarray


def neighbour_list(structure: Structure, positions: np.ndarray, cutoff: float) -> Edges:
    """Return all directed pairs of `structure` at `positions` (N, 3) nearer than `cutoff` Å."""
    if not any(structure.pbc) and len(positions) <= BRUTE_FORCE_ATOMS:
        return _all_pairs(positions, cutoff)
    cell = np.array(structure.cell)
    for axis in range(3):  # a box wide enough along directions that are not periodic
        if not structure.pbc[axis]:
            cell[axis] = 0.0
            cell[axis, axis] = np.ptp(positions[:, axis]) + 2 * cutoff + 10.0
    origin = positions.min(axis=0) - cutoff - 5.0 if not any(structure.pbc) else np.zeros(3)
    i, j, counts = _matscipy_list(
        "ijS", cutoff=cutoff, positions=positions - origin, cell=cell, pbc=structure.pbc
    )
    return Edges(j.astype(np.int64), i.astype(np.int64), -(counts @ cell))


def _all_pairs(positions: np.ndarray, cutoff: float) -> Edges:
    difference = positions[:, None] - positions[None]
    near = (difference**2).sum(-1) < cutoff**2
    np.fill_diagonal(near, False)
    i, j = np.nonzero(near)
    return Edges(j, i, np.zeros((len(i), 3)))


class SkinList:
    """A neighbour list out to cutoff + skin, rebuilt when an atom has moved by skin/2.

    Attributes:
        rebuilt: whether the last call made a new list.
    """

    def __init__(self, structure: Structure, cutoff: float, skin: float) -> None:
        self._structure = structure
        self._reach = cutoff + skin
        self._limit = (skin / 2) ** 2
        self._positions: np.ndarray | None = None
        self._edges: Edges | None = None
        self.rebuilt = False

    def edges(self, positions: np.ndarray) -> Edges:
        """Return pairs that include all those within the cutoff at `positions` (N, 3)."""
        if self._positions is not None and self._edges is not None:
            moved = ((positions - self._positions) ** 2).sum(axis=1).max()
            if moved < self._limit:
                self.rebuilt = False
                return self._edges
        self._edges = neighbour_list(self._structure, positions, self._reach)
        self._positions = np.array(positions)
        self.rebuilt = True
        return self._edges
