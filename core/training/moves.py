"""Which weights a training moves, and how: all, some blocks, or matrices by a change of low rank.

The gradient is taken in the potential's own weights and pulled back to the free parameters by the
chain rule, so whatever moves, the potential holds complete (merged) weights at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from core.contracts import Potential


class Blocks:
    """Whole blocks of weights move; all of them unless `names` are given.

    Attributes:
        names: of the blocks that move. needed: the potential's tensors whose gradient is needed.
        free: the tensors an optimiser moves, here the same.
    """

    def __init__(self, potential: Potential, names: Sequence[str] | None = None) -> None:
        every = dict(zip(potential.blocks(), potential.parameters(), strict=True))
        self.names = tuple(every if names is None else names)
        self.needed = [every[name] for name in self.names]
        self.free: list[torch.Tensor] = list(self.needed)

    def pull(self, gradients: Sequence[torch.Tensor]) -> None:
        """Set the gradients of `free` from those of `needed`."""
        for p, gradient in zip(self.free, gradients, strict=True):
            p.grad = gradient

    def write(self) -> None:
        """Put what `free` stands for into the potential."""

    def state(self) -> list[torch.Tensor]:
        """Return copies of `free`."""
        return [p.detach().clone() for p in self.free]

    def restore(self, state: Sequence[torch.Tensor]) -> None:
        """Go back to what `state` returned."""
        with torch.no_grad():
            for p, value in zip(self.free, state, strict=True):
                p.copy_(value)
        self.write()


@dataclass(frozen=True)
class _Change:
    """B A of one matrix, which is `where` in its flattened block."""

    where: slice
    b: torch.Tensor
    a: torch.Tensor


class LowRank(Blocks):
    """Every matrix W of some blocks becomes W + B A of low rank (LoRA, arXiv 2106.09685).

    A (r, columns) starts at random with the same spread everywhere, B (rows, r) at zero. Matrices
    mix channels, elements or paths, never the components of one equivariant feature: whatever A
    and B are, the potential stays equivariant. What of a block is no matrix stays as it is.
    """

    def __init__(
        self, potential: Potential, names: Sequence[str], *, rank: int, rng: np.random.Generator
    ) -> None:
        super().__init__(potential, names)
        matrices = potential.matrices()
        self._base = [p.detach().clone() for p in self.needed]
        self._changes = [
            [_start(matrix, rank, p, rng) for matrix in matrices[name]]
            for name, p in zip(self.names, self.needed, strict=True)
        ]
        self.free = [p for changes in self._changes for c in changes for p in (c.b, c.a)]

    def pull(self, gradients: Sequence[torch.Tensor]) -> None:
        """Set the gradients of all A and B."""
        for gradient, changes in zip(gradients, self._changes, strict=True):
            flat = gradient.reshape(-1)
            for c in changes:
                g = flat[c.where].view(len(c.b), -1)
                c.b.grad, c.a.grad = g @ c.a.T, c.b.T @ g

    def write(self) -> None:
        """Put W + B A into the potential."""
        for p, base, changes in zip(self.needed, self._base, self._changes, strict=True):
            with torch.no_grad():
                p.copy_(base)
                flat = p.view(-1)
                for c in changes:
                    flat[c.where] += (c.b @ c.a).reshape(-1)


def _start(
    matrix: tuple[int, int, int], rank: int, like: torch.Tensor, rng: np.random.Generator
) -> _Change:
    start, rows, columns = matrix
    r = min(rank, rows, columns)
    a = torch.as_tensor(rng.standard_normal((r, columns)) / np.sqrt(r)).to(like)
    where = slice(start, start + rows * columns)
    return _Change(where, a.new_zeros(rows, r), a)
