"""From a pool of any size to the structures worth a label: numbers of the cascade. Arrays only.

A structure is worth the more, the more its label would take off what is left unknown of the whole
pool: the mean variance of its energies and forces (Cohn, Ghahramani and Jordan, arXiv cs/9603104).
What is only strange by itself is worth little. First all candidates are ranked by that with their
activations; the best make a shortlist, from which is chosen by the joint energy and force kernel,
each pick counting what those before it would have told (arXiv 2605.13788).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
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
        return np.concatenate([np.zeros(0), *(variance.of(part) for part in self._parts())])

    def worth(self) -> np.ndarray:
        """Return how much of the pool's variance the label of each alone would take off, (S,)."""
        covariance, moment = self._covariance(), self.moment()
        found = (_alone(part, covariance, moment, ACTIVATION_NOISE) for part in self._parts())
        return np.concatenate([np.zeros(0), *found])

    def moment(self) -> np.ndarray:
        """Return the sum (D, D) of the outer products of all candidates' activations."""
        width = self._pool.shape[1]
        return sum((part.T @ part for part in self._parts()), start=np.zeros((width, width)))

    def choose(self, which: np.ndarray | slice, n: int) -> list[int]:
        """Return places in `which` of up to `n` that together take most off the pool's variance."""
        rows = [row[None] / ACTIVATION_NOISE for row in self.of(which)]
        train = self.train / ACTIVATION_NOISE
        moment = self.moment() / ACTIVATION_NOISE**2
        listed = Shortlist(rows, has_energy=False, train=[train], prior_std=1.0, moment=moment)
        return listed.choose(n)

    def _covariance(self) -> np.ndarray:
        precision = np.eye(self._pool.shape[1]) + self.train.T @ self.train / ACTIVATION_NOISE**2
        return linalg.inv(precision)

    def _parts(self) -> Iterator[np.ndarray]:
        return (self.of(slice(i, i + CHUNK)) for i in range(0, len(self), CHUNK))


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
        population: places of the candidates that stand for the pool, by default all.
        moment: (D, D), instead of `population`: the sum of the outer products of the pool's rows.
    """

    def __init__(
        self, rows: Sequence[np.ndarray], *, has_energy: bool, train: Iterable[np.ndarray] = (),
        prior_std: float = PRIOR_STD, population: Sequence[int] | None = None,
        moment: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self._ends = np.cumsum([0, *(len(r) for r in rows)])
        width = rows[0].shape[1] if rows else 0
        self._rows = np.empty((int(self._ends[-1]), width), dtype=np.float32)
        for part, start in zip(rows, self._ends[:-1], strict=True):
            self._rows[start : start + len(part)] = part * np.float32(prior_std)
        self._has_energy = has_energy
        precision = np.eye(width)
        for part in train if rows else ():
            scaled = np.asarray(part, dtype=float) * prior_std
            precision += scaled.T @ scaled
        self._covariance = linalg.inv(precision) if width else precision
        self._population = range(len(self)) if population is None else population
        self._given = None if moment is None else np.asarray(moment) * prior_std**2
        self._variance: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._ends) - 1

    def scores(self) -> Scores:
        """Return what is left unknown of every candidate now."""
        variance = self._left()
        sums = np.add.reduceat(np.append(variance, 0.0), self._ends[:-1])
        sums[np.diff(self._ends) == 0] = 0
        counts = np.diff(self._ends)
        if not self._has_energy:
            return Scores(np.full(len(self), np.nan), sums / np.maximum(counts, 1))
        energy = variance[self._ends[:-1]]
        force = (sums - energy) / np.maximum(counts - 1, 1)
        return Scores(energy, np.where(counts > 1, force, np.nan))

    def choose(self, n: int) -> list[int]:
        """Return up to `n` candidates; each takes most off what those before it leave unknown.

        That is the mean variance of the population, in the units of `Scores.total`. What a
        candidate takes off becomes less by what is chosen before it, so one whose worth, computed
        anew, is still the highest of all former ones is the best (lazy greedy; Minoux 1978).
        """
        moment = self._moment()
        worth = [(-w, i) for i, w in enumerate(self._worths(moment))]
        heapq.heapify(worth)
        known = np.zeros(len(self), dtype=int)
        chosen: list[int] = []
        while worth and len(chosen) < n:
            _, pick = heapq.heappop(worth)
            if known[pick] == len(chosen):
                chosen.append(pick)
                self._condition(pick)
            else:
                known[pick] = len(chosen)
                heapq.heappush(worth, (-self._worth(self._of(pick), moment), pick))
        return chosen

    def most_unknown(self, n: int) -> list[int]:
        """Return up to `n` candidates; each has the most left unknown after those before it."""
        open_ = np.ones(len(self), dtype=bool)
        chosen: list[int] = []
        for _ in range(min(n, len(self))):
            pick = int(np.argmax(np.where(open_, self.scores().total, -np.inf)))
            open_[pick] = False
            chosen.append(pick)
            left = self._left()
            small = self._condition(pick).astype(np.float32)
            for start in range(0, len(self._rows), CHUNK):
                part = slice(start, start + CHUNK)
                left[part] -= ((self._rows[part] @ small) ** 2).sum(axis=1)
            self._variance = np.maximum(left, 0.0)
        return chosen

    def _of(self, candidate: int) -> np.ndarray:
        return self._rows[self._ends[candidate] : self._ends[candidate + 1]].astype(float)

    def _left(self) -> np.ndarray:
        """Return the variance left of every row."""
        if self._variance is None:
            covariance = self._covariance.astype(np.float32)
            parts = (self._rows[i : i + CHUNK] for i in range(0, len(self._rows), CHUNK))
            found = (np.einsum("rd,rd->r", part @ covariance, part).astype(float) for part in parts)
            self._variance = np.concatenate([np.zeros(0), *found])
        return self._variance

    def _moment(self) -> np.ndarray:
        """Return the sum (D, D) of the outer products of the population's rows, weighted."""
        if self._given is not None:
            return self._given
        width = self._rows.shape[1]
        out = np.zeros((width, width))
        for i in self._population:
            rows = self._of(i)
            first = 1 if self._has_energy else 0
            out += rows[:first].T @ rows[:first]
            out += rows[first:].T @ rows[first:] / max(len(rows) - first, 1)
        return out

    def _worths(self, moment: np.ndarray) -> np.ndarray:
        """Return what each candidate alone would take off, (S,)."""
        if (np.diff(self._ends) == 1).all():
            parts = (self._rows[i : i + CHUNK].astype(float) for i in range(0, len(self), CHUNK))
            found = (_alone(part, self._covariance, moment, 1.0) for part in parts)
            return np.concatenate([np.zeros(0), *found])
        return np.array([self._worth(self._of(i), moment) for i in range(len(self))])

    def _worth(self, rows: np.ndarray, moment: np.ndarray) -> float:
        along = rows @ self._covariance
        inner = along @ rows.T + np.eye(len(rows))
        return float(np.trace(linalg.solve(inner, along @ moment @ along.T, assume_a="pos")))

    def _condition(self, pick: int) -> np.ndarray:
        """Condition on the labels of one candidate, with unit noise.

        Returns:
            (D, R) whose outer product the covariance has lost.
        """
        rows = self._of(pick)
        along = self._covariance @ rows.T
        inner = rows @ along + np.eye(len(rows))
        lower = linalg.cholesky(inner, lower=True)
        known: np.ndarray = linalg.solve_triangular(lower, along.T, lower=True).T
        self._covariance -= known @ known.T
        self._variance = None
        return known


def _alone(
    rows: np.ndarray, covariance: np.ndarray, moment: np.ndarray, noise: float
) -> np.ndarray:
    """Return what observing each row (R, D) alone would take off, (R,); see `Shortlist.choose`."""
    along = rows @ covariance
    total = np.einsum("rd,rd->r", along @ moment, along)
    return total / (noise**2 + np.einsum("rd,rd->r", along, rows))
