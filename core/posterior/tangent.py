"""What posteriors share whose samples are small changes of the weights about a mean.

Predictions are linear in the change: the energy's spread comes from one gradient ∂E/∂θ, at every
step of a simulation, and that of forces and stress from directional derivatives.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from core.contracts import Potential, Spread
from core.posterior.largest import largest_change
from core.structures import Structure

QUICK = 8
"""Samples whose forces a quick answer evaluates; energies always use all."""


class Tangent:
    """Base of such posteriors. Their state has `theta` (P,), and `directions` (M, K + …).

    The first K columns of `directions` are samples of θ - θ* in the K weights that may move.

    Args:
        elements: atomic numbers of all structures to come, by default all the potential knows.
        moving: indices of the weights that may move, by default all that matter to `elements`.
        noise_stress: eV/Å³; without, stress is not learned from.
    """

    def __init__(
        self,
        potential: Potential,
        elements: Sequence[int] | None,
        moving: torch.Tensor | None,
        noise_stress: float | None,
    ) -> None:
        self.potential, self.noise_stress = potential, noise_stress
        self._members = potential.members()
        self._relevant = potential.relevant(np.array(elements or potential.elements))
        self._columns = self._relevant
        if moving is not None:
            self._columns = self._relevant[torch.isin(self._relevant, moving)]
        self._spreading: tuple[torch.Tensor, torch.Tensor] | None = None

    def activate(self, state: Any) -> None:
        """Put the mean weights in force."""
        self.potential.set_theta(state.theta)

    def biases(self, state: Any) -> tuple[float, np.ndarray | float]:
        """Return the constant energy bias and its samples (M,), eV; a posterior may have none."""
        return 0.0, 0.0

    def spread(self, state: Any, structure: Structure, *, quick: bool = False) -> Spread:
        """Mean and standard deviations for one structure; the mean weights must be active.

        Args:
            quick: take the forces' spread from `QUICK` samples, at a fifth to a quarter of the cost
                of all. It scatters by about 10 %, the errors themselves by 30 % about it.
        """
        found = self.potential.derivatives(structure)
        changes = self._along(state) @ found.gradient[self._columns]
        slopes, stress = self._slopes(state, structure, QUICK if quick else len(state.directions))
        known = self.noise_stress is not None and stress is not None
        return Spread(
            energy=found.energy + self.biases(state)[0],
            forces=found.forces,
            sigma_energy=self.energy_sigma(state, changes.numpy()),
            sigma_forces=np.sqrt((slopes**2).sum(-1).mean(0)),
            sigma_force=largest_change(slopes),
            stress=found.stress if known else None,
            sigma_stress=float(np.sqrt((stress**2).mean(0).max())) if known else math.nan,  # type: ignore[operator]
        )

    def watched(self, state: Any) -> torch.Tensor:
        """Directions for `Evaluator.watch`, (M, …) of all weights that matter to the elements."""
        if len(self._columns) == len(self._relevant):
            return self._along(state).contiguous()
        return self._full(self._along(state))[:, self._relevant]

    def energy_sigma(self, state: Any, changes: np.ndarray) -> float:
        """Return σ of the total energy, eV, from its `changes` (M,) along the directions."""
        energy = changes + self.biases(state)[1]
        return float(np.sqrt((energy.astype(float) ** 2).mean()))

    def members(self, state: Any) -> torch.Tensor:
        """Weights of the ensemble members, (M, P)."""
        return state.theta + self._full(self._along(state))

    def _along(self, state: Any) -> torch.Tensor:
        return state.directions[:, : len(self._columns)]

    def _slopes(
        self, state: Any, structure: Structure, n: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the changes of forces (n, N, 3) and stress (n, 3, 3) along the first directions.

        A few at a time: each needs copies of all the weights.
        """
        more = range(QUICK, min(n, len(state.directions)), QUICK)
        rest = (self._full(self._along(state)[k : min(k + QUICK, n)]) for k in more)
        found = [
            self._members.slopes(structure, state.theta, part)
            for part in itertools.chain([self._first(state)[:n]], rest)
        ]
        stress = [s for _, s in found if s is not None]
        return np.concatenate([f for f, _ in found]), np.concatenate(stress) if stress else None

    def _first(self, state: Any) -> torch.Tensor:
        """Return the directions of quick answers, (M', P); kept for the same state."""
        if self._spreading is None or self._spreading[0] is not state.directions:
            self._spreading = state.directions, self._full(self._along(state)[:QUICK])
        return self._spreading[1]

    def _full(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return (M, K) of the weights in use as (M, P)."""
        whole = vectors.new_zeros(len(vectors), self.potential.n_parameters)
        whole[:, self._columns] = vectors
        return whole
