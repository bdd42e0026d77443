"""What a fine-tuning strategy says: which weights move, how fast, and what is rehearsed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.contracts import Potential
from core.errors import ModelError
from core.training import Blocks, LowRank, TrainerSettings

Rehearsal = Literal["", "labels", "pseudolabels"]


@dataclass(frozen=True)
class Strategy:
    """One of the strategies compared in arXiv 2606.12704.

    Attributes:
        name: in settings and on the command line. title, about: for people.
        training: published hyperparameters; epochs and batches are the caller's.
        parts: of the network, that move; none for all. rank: of the change of every matrix; 0 for
            unrestricted. rehearsal: what else every step learns from, in a head of its own: frames
            of the pretraining with their labels, or with the foundation's own predictions.
    """

    name: str
    title: str
    about: str
    training: TrainerSettings
    parts: tuple[str, ...] = ()
    rank: int = 0
    rehearsal: Rehearsal = ""

    def names(self, potential: Potential) -> list[str]:
        """Return the names of the parameters that move.

        Raises:
            ModelError: the potential has none of the parts.
        """
        parts = potential.parts()
        found = [name for name, part in parts.items() if not self.parts or part in self.parts]
        if self.rank:
            matrices = potential.matrices()
            found = [name for name in found if matrices[name]]
        if not found:
            raise ModelError(
                f"{self.title} moves nothing of the model '{potential.name}', whose weights are "
                f"all {', '.join(sorted(set(parts.values())))}; choose another strategy."
            )
        return found

    def moves(self, potential: Potential, rng: np.random.Generator) -> Blocks:
        """Return what moves in `potential`."""
        names = self.names(potential)
        if self.rank:
            return LowRank(potential, names, rank=self.rank, rng=rng)
        return Blocks(potential, names)
