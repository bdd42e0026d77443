"""A deep ensemble: members fine-tuned by descent, each from weights and a data order of its own.

Members that start at the same weights agree about their errors; here each but the first, which
drives the simulation, starts at a draw from a prior around the foundation, whose width is relative
to each block of weights. A baseline: neither the starts nor the descent sample a posterior
(Lakshminarayanan et al., arXiv 1612.01474).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from core.contracts import Info, LabelSet, Potential, Spread
from core.posterior.descent import Descent
from core.posterior.largest import largest_change
from core.structures import Structure


@dataclass(frozen=True)
class State:
    """Members' weights (M, P); labels taken in."""

    theta: torch.Tensor
    n_labels: int = 0


class DeepEnsemble:
    """Algorithm object; see `core.contracts.Posterior`.

    Args:
        noise: standard deviation of the members' first weights about the foundation's, relative
            to the root mean square of each block. moving: as of `Descent`.
    """

    def __init__(
        self, potential: Potential, *, descent: Descent, members: int, noise: float,
        moving: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        self.potential, self.descent, self.moving = potential, descent, moving
        self.members_count, self.noise = members, noise
        self.prior_theta = potential.get_theta()
        self._evaluated = potential.members()

    def init(self, rng: np.random.Generator) -> State:
        """Draw the members' first weights; the first has the foundation's."""
        widths = torch.zeros_like(self.prior_theta)
        for where in self.potential.blocks().values():
            widths[where] = self.noise * self.prior_theta[where].pow(2).mean().sqrt()
        if self.moving is not None:
            still = torch.ones(len(widths), dtype=torch.bool)
            still[self.moving] = False
            widths[still] = 0
        drawn = rng.standard_normal((self.members_count, len(widths)), dtype=np.float32)
        drawn[0] = 0
        return State(self.prior_theta + torch.as_tensor(drawn).to(widths.dtype) * widths)

    def update(
        self, state: State, labels: LabelSet, rng: np.random.Generator
    ) -> tuple[State, Info]:
        """Fine-tune every member on all of `labels`."""
        found = [
            self.descent(self.potential, theta, labels, one, self.moving)
            for theta, one in zip(state.theta, rng.spawn(len(state.theta)), strict=True)
        ]
        new = State(torch.stack([theta for theta, _ in found]), len(labels))
        self.activate(new)
        return new, Info({"loss": [loss for _, loss in found]})

    def activate(self, state: State) -> None:
        """Put the first member's weights in force: the mean of several is no trained model."""
        self.potential.set_theta(state.theta[0])

    def spread(self, state: State, structure: Structure, *, quick: bool = False) -> Spread:
        """Mean over the members, standard deviation between them (ddof 1)."""
        energies, forces, _ = self._evaluated(structure, state.theta)
        return Spread(
            energy=float(energies.mean()) + self.potential.isolated_energy(structure),
            forces=forces.mean(0),
            sigma_energy=float(energies.std(ddof=1)),
            sigma_forces=np.sqrt(forces.var(0, ddof=1).sum(-1)),
            sigma_force=largest_change(forces - forces.mean(0), ddof=1),
        )

    def members(self, state: State) -> torch.Tensor:
        """Weights of the members, (M, P)."""
        return state.theta

    def watched(self, state: State) -> None:
        """Not available: the members' energies are not linear in their weights."""

    def energy_sigma(self, state: State, changes: np.ndarray) -> float:
        """Nothing is watched, so there is nothing to judge by."""
        return math.nan

    def unknown(self, state: State, structures: Sequence[Structure]) -> None:
        """Not available: members are samples, too few for so many numbers."""

    def leave_one_out(self, state: State, labels: LabelSet) -> None:
        """Not available without another ensemble for each label."""

    def save(self, state: State, path: Path) -> None:
        """Write the members."""
        safetensors.torch.save_file({"theta": state.theta.contiguous()}, path)

    def shrink(self, path: Path) -> None:
        """Keep all: the members are the state."""

    def restore(self, path: Path, labels: LabelSet) -> State:
        """Read what `save` wrote."""
        state = State(safetensors.torch.load_file(path)["theta"], len(labels))
        self.activate(state)
        return state
