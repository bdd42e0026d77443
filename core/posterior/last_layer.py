"""The last-layer posterior: weights found by descent, closed-form uncertainty of the readouts.

After a short fine-tuning of all weights, the model is linearised in those of the readouts only
(LLPR, Bigi et al., arXiv 2403.02251), with force rows beside the energies'. With Φ the rows over
the noise, the precision is C = ΦᵀΦ + 1/s²: a matrix of the readouts' size, however many labels
there are. Cheap, and it cannot see what the layers below have not learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from core.contracts import Info, LabelSet, Potential
from core.parallel import side_by_side
from core.posterior.descent import Descent
from core.posterior.tangent import Tangent
from core.structures import Structure

PART = "readout"


@dataclass(frozen=True)
class State:
    """Mean weights (P,); samples of θ - θ* in the readouts (M, K); labels taken in."""

    theta: torch.Tensor
    directions: torch.Tensor
    n_labels: int = 0


class LastLayer(Tangent):
    """Algorithm object; see `core.contracts.Posterior`. A model without readouts is one itself.

    Args:
        elements, moving: as of `Tangent`; `moving` is what the descent moves.
        prior_std: s of every readout weight. descent: finds the mean.
    """

    def __init__(
        self, potential: Potential, *, prior_std: float, descent: Descent,
        elements: Sequence[int] | None = None, moving: torch.Tensor | None = None,
        members: int = 32,
    ) -> None:  # fmt: skip
        parts = potential.parts()
        self._names = [n for n, part in parts.items() if part == PART] or list(parts)
        blocks = potential.blocks()
        indices = [torch.arange(blocks[n].start, blocks[n].stop) for n in self._names]
        super().__init__(potential, elements, torch.cat(indices), None)
        self.prior_std, self.descent, self.members_count = prior_std, descent, members
        self._moving = moving
        self.prior_theta = potential.get_theta()

    def init(self, rng: np.random.Generator) -> State:
        """Return the prior, at the foundation's weights."""
        return State(self.prior_theta.clone(), self._drawn(LabelSet((), np.zeros(0), ()), rng))

    def update(
        self, state: State, labels: LabelSet, rng: np.random.Generator
    ) -> tuple[State, Info]:
        """Fine-tune on all of `labels`, then take all rows anew at the weights reached."""
        theta, loss = self.descent(self.potential, state.theta, labels, rng, self._moving)
        return State(theta, self._drawn(labels, rng), len(labels)), Info({"loss": loss})

    def _drawn(self, labels: LabelSet, rng: np.random.Generator) -> torch.Tensor:
        """Return samples of N(0, C⁻¹), (M, K), at the weights in force."""
        width = len(self._columns)
        precision = torch.eye(width, dtype=torch.float64) / self.prior_std**2

        def taken(structure: Structure) -> torch.Tensor:
            return self.potential.rows(structure, blocks=self._names).double()

        for rows in side_by_side(taken, labels.structures):
            rows[0] /= self.descent.noise_energy
            rows[1:] /= self.descent.noise_force
            precision.addmm_(rows.T, rows)
        factor = torch.linalg.cholesky(precision)
        white = torch.as_tensor(rng.standard_normal((width, self.members_count)))
        drawn = torch.linalg.solve_triangular(factor.T, white, upper=True)
        return drawn.T.to(self.potential.dtype).contiguous()

    def unknown(self, state: State, structures: Sequence[Structure]) -> None:
        """Not available: the readouts alone do not tell structures apart."""

    def leave_one_out(self, state: State, labels: LabelSet) -> None:
        """Not available: the mean is found by descent on all labels."""

    def save(self, state: State, path: Path) -> None:
        """Write mean and samples."""
        safetensors.torch.save_file({"theta": state.theta, "directions": state.directions}, path)

    def shrink(self, path: Path) -> None:
        """Keep all: it is small."""

    def restore(self, path: Path, labels: LabelSet) -> State:
        """Read what `save` wrote."""
        tensors = safetensors.torch.load_file(path)
        state = State(tensors["theta"], tensors["directions"], len(labels))
        self.activate(state)
        return state
