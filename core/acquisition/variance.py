"""What is left unknown of a structure once others are labelled: residual variance, streamed.

With features φ whose inner products are a kernel and labels of noise s, the variance left is
k(x,x) - k(x,T) (K_TT + s²)⁻¹ k(T,x) = s² φᵀ C⁻¹ φ, where C = Φ_TᵀΦ_T + s². C is added up over the
training set and factorised once; a pool passes by in chunks of any size. Time is linear in both,
memory that of C and of one chunk (arXiv 2605.13788). Arrays only.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg


class ResidualVariance:
    """Variance left at new rows, after rows (T, D) were observed.

    Args:
        width: D. noise: s, of every observed row, in the unit of the features.
    """

    def __init__(self, width: int, noise: float) -> None:
        self._gram = np.zeros((width, width))
        self._noise = noise
        self._factor: np.ndarray | None = None

    def observe(self, rows: np.ndarray) -> None:
        """Take in rows (R, D); in chunks, in any order."""
        rows = np.asarray(rows, dtype=float)
        self._gram += rows.T @ rows
        self._factor = None

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Return the variance (R,) left at rows (R, D)."""
        if self._factor is None:
            width = len(self._gram)
            self._factor = linalg.cholesky(
                self._gram + self._noise**2 * np.eye(width), lower=True, check_finite=False
            )
        white = linalg.solve_triangular(
            self._factor, np.asarray(rows, dtype=float).T, lower=True, check_finite=False
        )
        return self._noise**2 * (white**2).sum(axis=0)
