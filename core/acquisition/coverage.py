"""Whether a structure lies within what the labels cover, by the features of its atoms. Arrays only.

Each atom is compared with the labels' atoms of its element in the potential's invariant features.
What is far from all of them is where neither the posterior nor its calibration has been tested.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Coverage:
    """The atoms of S labelled structures.

    Args:
        numbers: of each structure (N,) atomic numbers. features: of each (N, D).
    """

    def __init__(self, numbers: Sequence[np.ndarray], features: Sequence[np.ndarray]) -> None:
        elements = np.concatenate(numbers)
        atoms = np.concatenate(features)
        label = np.repeat(np.arange(len(numbers)), [len(n) for n in numbers])
        self._scale = np.maximum(atoms.std(axis=0), 1e-12)
        self._known = {
            int(z): (atoms[elements == z] / self._scale, label[elements == z])
            for z in np.unique(elements)
        }
        self._usual = self._largest_apart()

    def _largest_apart(self) -> float:
        """Return the largest distance of an atom from those of its element in other labels."""
        most = 0.0
        for atoms, label in self._known.values():
            squared = _squared(atoms, atoms)
            squared[label[:, None] == label[None]] = np.inf
            nearest = squared.min(axis=1)
            finite = nearest[np.isfinite(nearest)]
            most = max(most, float(np.sqrt(finite.max()))) if len(finite) else most
        return most

    def novelty(self, numbers: np.ndarray, features: np.ndarray) -> float:
        """Return how far the farthest atom of a structure is from the labels' of its element.

        In units of the farthest that any label's atom is from the other labels: up to about 1 for
        more of the same, infinite with an element that no label has; nan with a single label.
        """
        if self._usual == 0:
            return float("nan")
        most = 0.0
        for z in np.unique(numbers):
            if int(z) not in self._known:
                return float("inf")
            atoms = features[numbers == z] / self._scale
            most = max(most, float(_squared(atoms, self._known[int(z)][0]).min(axis=1).max()))
        return float(np.sqrt(most)) / self._usual


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return squared distances (A, B) between the rows of two arrays."""
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.maximum(squared, 0.0)
