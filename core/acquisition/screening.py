"""From a pool of any size to the structures worth a label: numbers of the cascade. Arrays only.

First all candidates are scored by what the labels leave unknown of their activations; the highest
make a shortlist, which is scored by the joint energy and force kernel and chosen from so that each
pick counts what the picks before it would have told (arXiv 2605.13788).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from core.acquisition.selection import standardised
from core.acquisition.variance import ResidualVariance

ACTIVATION_NOISE = 0.1
"""Of an activation, relative to its spread in the pool."""
PRIOR_STD = 0.3
"""Prior spread of every weight, for kernels of derivatives."""
CHUNK = 8192


class Activations:
    """Pooled activations (S, D) of a pool, standardised on it and divided by √D.

    Args:
        train: (T, D), of the structures that are labelled.
    """

    def __init__(self, pool: np.ndarray, train: np.ndarray) -> None:
        self._pool = pool
        self._mean, spread = standardised(pool)
        self._scale = spread * np.sqrt(pool.shape[1])
        self.train = (train - self._mean) / self._scale

    def __len__(self) -> int:
        return len(self._pool)

    def of(self, which: np.ndarray | slice) -> np.ndarray:
        """Return those of some candidates; far from all others, the squared norm is above 1."""
        return (self._pool[which] - self._mean) / self._scale

    def scores(self) -> np.ndarray:
        """Return the variance (S,) left once `train` is known; about 1 where nothing is."""
        variance = ResidualVariance(self._pool.shape[1], ACTIVATION_NOISE)
        variance.observe(self.train)
        parts = [
            variance.of(self.of(slice(start, start + CHUNK)))
            for start in range(0, len(self), CHUNK)
        ]
        return np.concatenate([np.zeros(0), *parts])


@dataclass(frozen=True)
class Scores:
    """Variances left, in units of the noise squared.

    Attributes:
        energy: (S,) of the energy; nan where the kernel has none. force: (S,) mean over components.
    """

    energy: np.ndarray
    force: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """(S,) sum of both."""
        return np.nan_to_num(self.energy) + np.nan_to_num(self.force)


class Shortlist:
    """Candidates with several rows each, chosen from one by one.

    Args:
        rows: of each candidate (R, D), in units of the noise. has_energy: whether the first row
            is the energy's, the others forces'. train: rows (T, D) already observed, in parts.
        prior_std: prior spread of what the rows are multiplied with.
    """

    def __init__(
        self, rows: Sequence[np.ndarray], *, has_energy: bool, train: Iterable[np.ndarray] = (),
        prior_std: float = PRIOR_STD,
    ) -> None:  # fmt: skip
        self._ends = np.cumsum([0, *(len(r) for r in rows)])
        width = rows[0].shape[1] if rows else 0
        self._rows = np.empty((int(self._ends[-1]), width), dtype=np.float32)
        for part, start in zip(rows, self._ends[:-1], strict=True):
            self._rows[start : start + len(part)] = part * np.float32(prior_std)
        self._has_energy = has_energy
        precision = np.eye(width)
        for part in train:
            scaled = np.asarray(part, dtype=float) * prior_std
            precision += scaled.T @ scaled
        self._covariance = linalg.inv(precision) if width else precision
        self._variance = np.concatenate([np.zeros(0), *(self._of(part) for part in self._parts())])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _parts(self) -> list[np.ndarray]:
        return [self._rows[i : i + CHUNK] for i in range(0, len(self._rows), CHUNK)]

    def _of(self, rows: np.ndarray) -> np.ndarray:
        return np.einsum("rd,rd->r", rows @ self._covariance.astype(np.float32), rows).astype(float)

    def scores(self) -> Scores:
        """Return what is left unknown of every candidate now."""
        sums = np.add.reduceat(np.append(self._variance, 0.0), self._ends[:-1])
        sums[np.diff(self._ends) == 0] = 0
        counts = np.diff(self._ends)
        if not self._has_energy:
            return Scores(np.full(len(self), np.nan), sums / np.maximum(counts, 1))
        energy = self._variance[self._ends[:-1]]
        force = (sums - energy) / np.maximum(counts - 1, 1)
        return Scores(energy, np.where(counts > 1, force, np.nan))

    def choose(self, n: int) -> list[int]:
        """Return up to `n` candidates; each has the most left unknown after those before it."""
        open_ = np.ones(len(self), dtype=bool)
        chosen: list[int] = []
        for _ in range(min(n, len(self))):
            pick = int(np.argmax(np.where(open_, self.scores().total, -np.inf)))
            open_[pick] = False
            chosen.append(pick)
            self._observe(pick)
        return chosen

    def _observe(self, pick: int) -> None:
        """Condition on the labels of one candidate, with unit noise."""
        rows = self._rows[self._ends[pick] : self._ends[pick + 1]].astype(float)
        along = self._covariance @ rows.T
        inner = rows @ along + np.eye(len(rows))
        lower = linalg.cholesky(inner, lower=True)
        known = linalg.solve_triangular(lower, along.T, lower=True).T
        self._covariance -= known @ known.T
        small = known.astype(np.float32)
        for start in range(0, len(self._rows), CHUNK):
            part = slice(start, start + CHUNK)
            self._variance[part] -= ((self._rows[part] @ small) ** 2).sum(axis=1)
        np.maximum(self._variance, 0.0, out=self._variance)
