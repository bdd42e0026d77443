"""Internal coordinates of chosen atoms along a trajectory: distance, angle, dihedral."""

from __future__ import annotations

import numpy as np
from ase.geometry import find_mic

NAMES = {2: "distance", 3: "angle", 4: "dihedral"}
UNITS = {2: "Å", 3: "°", 4: "°"}
"""What two, three or four atoms span, and its unit."""


def coordinate(positions: np.ndarray, cell: np.ndarray, pbc: tuple[bool, bool, bool]) -> np.ndarray:
    """Return the distance (Å), angle (0 to 180°) or dihedral (-180 to 180°) of A = 2, 3, 4 atoms.

    positions (F, A, 3), Å, of F frames; cell (3, 3), Å. Each step from atom to atom is the
    shortest among periodic images. Values without meaning (atoms in a line) are nan. (F,).

    Raises:
        ValueError: neither two, three nor four atoms.
    """
    n_atoms = positions.shape[1]
    if n_atoms not in NAMES:
        raise ValueError(f"{n_atoms} atoms span no coordinate; give two, three or four.")
    steps = _shortest(np.diff(positions, axis=1), cell, pbc)
    if n_atoms == 2:
        return np.linalg.norm(steps[:, 0], axis=-1)
    if n_atoms == 3:
        return _angle(-steps[:, 0], steps[:, 1])
    return _dihedral(*np.moveaxis(steps, 1, 0))


def _shortest(vectors: np.ndarray, cell: np.ndarray, pbc: tuple[bool, bool, bool]) -> np.ndarray:
    if not any(pbc) or not len(vectors):
        return vectors
    return find_mic(vectors.reshape(-1, 3), cell, pbc)[0].reshape(vectors.shape)


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    across = np.linalg.norm(np.cross(a, b), axis=-1)
    along = np.sum(a * b, axis=-1)
    return np.degrees(np.arctan2(across, along))


def _dihedral(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return the IUPAC dihedral of three successive bonds, each (F, 3)."""
    left, right = np.cross(a, b), np.cross(b, c)
    sine = np.sum(a * right, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = np.sum(left * right, axis=-1)
    flat = (np.abs(sine) < 1e-12) & (np.abs(cosine) < 1e-12)
    return np.where(flat, np.nan, np.degrees(np.arctan2(sine, cosine)))
