"""Training examples prepared once as graphs, and random batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.contracts import LabelSet, Potential


@dataclass(frozen=True)
class Example:
    """Targets of a batch of S structures.

    Attributes:
        graphs: the potential's own batch. energies: (S,) *interaction* energies, eV.
        forces: (ΣN, 3), eV/Å. n_atoms: (S,).
    """

    graphs: Any
    energies: torch.Tensor
    forces: torch.Tensor
    n_atoms: torch.Tensor


class Dataset:
    """Labels with everything that does not change between epochs already computed.

    Args:
        head: of the potential, whose level of theory the labels are of; by default the one in use.
    """

    def __init__(self, potential: Potential, labels: LabelSet, *, head: str | None = None) -> None:
        self._potential, self._head = potential, head or potential.head
        self._structures = labels.structures
        self._kind: dict[str, Any] = {"dtype": potential.dtype, "device": potential.device}
        self._forces = [torch.as_tensor(f, **self._kind) for f in labels.forces]
        with potential.using(self._head):
            isolated = np.array([potential.isolated_energy(s) for s in labels.structures])
        targets = np.asarray(labels.energies, dtype=np.float64) - isolated
        self._energies = torch.as_tensor(targets, **self._kind)
        self._edges = [potential.edges(s) for s in labels.structures]

    def __len__(self) -> int:
        return len(self._structures)

    def size(self, index: int) -> tuple[int, int]:
        """Return the numbers of atoms and of edges of one example."""
        return len(self._structures[index]), len(self._edges[index].senders)

    def width(self, index: int) -> int:
        """Return the most edges that an atom of one example receives."""
        return int(np.bincount(self._edges[index].receivers, minlength=1).max())

    def example(self, indices: Sequence[int]) -> Example:
        """Collate the examples `indices` into one batch."""
        structures = [self._structures[i] for i in indices]
        with self._potential.using(self._head):
            graphs = self._potential.collate(structures, [self._edges[i] for i in indices])
        return Example(
            graphs=graphs,
            energies=torch.cat([self._energies[i : i + 1] for i in indices]),
            forces=torch.cat([self._forces[i] for i in indices]),
            n_atoms=torch.as_tensor(np.array([len(s) for s in structures]), **self._kind),
        )


def batches(
    n: int, size: int, rng: np.random.Generator, *, weights: np.ndarray | None = None
) -> Iterator[list[int]]:
    """Yield one epoch of random batches; with `weights` (n,), drawn with replacement."""
    if weights is None:
        order = rng.permutation(n)
    else:
        order = rng.choice(n, size=n, p=weights / weights.sum())
    for start in range(0, n, size):
        yield order[start : start + size].tolist()
