"""Structures on which two evaluations of one model are compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.data import covalent_radii

from core.structures import Structure

ATOMS = 8
CLUSTERS = 6
PAIRS = 12
"""Pairs of elements tried at most, besides each element with itself."""


def structures(elements: Sequence[int], cutoff: float, seed: int = 1) -> list[Structure]:
    """Return pairs, clusters and a crystal cell of a model's elements; the same every time.

    Args:
        cutoff: of the model, Å; the cell is smaller, so that atoms meet their own images.
    """
    rng = np.random.default_rng(seed)
    pairs = [(z, z) for z in elements]
    pairs += [tuple(rng.choice(elements, 2)) for _ in range(PAIRS if len(elements) > 1 else 0)]
    found = [_pair(int(a), int(b), rng) for a, b in pairs]
    found += [_cluster(rng.choice(elements, ATOMS), rng) for _ in range(CLUSTERS)]
    found.append(_crystal(rng.choice(elements, 4), cutoff, rng))
    return found


def _pair(a: int, b: int, rng: np.random.Generator) -> Structure:
    length = covalent_radii[[a, b]].sum() * rng.uniform(0.9, 1.6)
    return Structure(np.array([a, b]), np.array([[0.0, 0.0, 0.0], [length, 0.0, 0.0]]))


def _cluster(numbers: np.ndarray, rng: np.random.Generator) -> Structure:
    """Atoms one after the other at a bond's length from one before, none too near another."""
    positions = np.zeros((1, 3))
    radii = covalent_radii[numbers]
    while len(positions) < len(numbers):
        new, host = len(positions), int(rng.integers(len(positions)))
        step = rng.normal(size=3)
        length = (radii[new] + radii[host]) * rng.uniform(0.95, 1.25)
        place = positions[host] + step * (length / np.linalg.norm(step))
        apart = np.linalg.norm(positions - place, axis=1)
        if (apart > 0.85 * (radii[:new] + radii[new])).all():
            positions = np.vstack([positions, place])
    return Structure(np.array(numbers, dtype=int), positions)


def _crystal(numbers: np.ndarray, cutoff: float, rng: np.random.Generator) -> Structure:
    """A face-centred cell, shaken, shorter than the cutoff where the atoms' size allows it."""
    edge = max(0.9 * cutoff, 2.9 * float(covalent_radii[numbers].max()))
    sites = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    shaken = edge * (sites + rng.uniform(-0.03, 0.03, size=(4, 3)))
    return Structure(np.array(numbers, dtype=int), shaken, edge * np.eye(3), (True, True, True))
