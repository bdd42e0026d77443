"""A Lennard-Jones potential with trainable ε and σ per element: the small backend of the tests.

E = Σ_pairs 4ε[(σ/r)¹² - (σ/r)⁶]·f(r), ε and σ by Lorentz-Berthelot mixing, f a smooth cutoff.
"""

from __future__ import annotations

import numpy as np
import torch

from core.potentials.base import GraphBatch, TorchPotential


class _Parameters(torch.nn.Module):
    def __init__(self, n_elements: int, epsilon: float, sigma: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.log_epsilon = torch.nn.Parameter(
            torch.full((n_elements,), np.log(epsilon), dtype=dtype)
        )
        self.log_sigma = torch.nn.Parameter(torch.full((n_elements,), np.log(sigma), dtype=dtype))


class LennardJones(TorchPotential):
    """Lennard-Jones atoms with P = 2 × number of elements parameters."""

    def __init__(
        self,
        elements: tuple[int, ...] = (18,),
        *,
        epsilon: float = 0.0104,
        sigma: float = 3.4,
        cutoff: float = 8.5,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.name = "lennard-jones"
        self.elements = tuple(sorted(elements))
        self.cutoff = cutoff
        super().__init__(_Parameters(len(elements), epsilon, sigma, dtype), np.zeros(len(elements)))

    def geometry(self, graphs: GraphBatch) -> tuple[torch.Tensor, ...]:
        """Return the distances (E,)."""
        return (graphs.vectors.pow(2).sum(-1).sqrt(),)

    def atomic(
        self, graphs: GraphBatch, *geometry: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return half of each pair's energy at its sender (ΣN,), and itself as feature (ΣN, 1)."""
        i, j = graphs.senders, graphs.receivers
        (r,) = geometry
        x = (r / self.cutoff).clamp(max=1.0)
        smooth = (1 - x**2) ** 3
        log_epsilon, log_sigma = self.module.parameters()
        first, second = graphs.species[i], graphs.species[j]
        half = 0.5 * log_epsilon
        epsilon = (half.index_select(0, first) + half.index_select(0, second)).exp()
        radius = 0.5 * log_sigma.exp()
        sigma = radius.index_select(0, first) + radius.index_select(0, second)
        s6 = (sigma / r) ** 6
        pair = 0.5 * 4 * epsilon * (s6 * s6 - s6) * smooth
        nodes = pair.new_zeros(len(graphs.species)).index_add(0, i, pair)
        return nodes, nodes[:, None]
