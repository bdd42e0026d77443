"""A short fine-tuning from given weights, where a posterior has no closed form for its mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from core.contracts import LabelSet, Potential
from core.training import Blocks, Dataset, Loss, Trainer, TrainerSettings

BATCH = 5


@dataclass(frozen=True)
class Descent:
    """Adam on the Gaussian likelihood of the labels, for a number of steps at each update.

    Attributes:
        rate: learning rate at first; it falls to a hundredth by a cosine.
        noise_energy, noise_force: of a label, eV and eV/Å.
    """

    steps: int
    rate: float
    noise_energy: float
    noise_force: float

    def __call__(
        self, potential: Potential, theta: torch.Tensor, labels: LabelSet,
        rng: np.random.Generator, moving: torch.Tensor | None,
    ) -> tuple[torch.Tensor, float]:  # fmt: skip
        """Return the weights (P,) reached from `theta`, and the last epoch's loss.

        Args:
            moving: indices of the weights that may move, whole blocks of them; all by default.
        """
        potential.set_theta(theta)
        atoms = float(np.mean([len(s) for s in labels.structures]))
        loss = Loss(  # relative to the energy's, whose scale Adam does not see
            energy=1.0, force=3 * atoms * (self.noise_energy / self.noise_force) ** 2, per_atom=0.0
        )
        batch = min(BATCH, len(labels))
        settings = TrainerSettings(
            epochs=-(-self.steps * batch // len(labels)), batch_size=batch,
            learning_rate=self.rate, ema=0.99, clip=float("inf"),
        )  # fmt: skip
        blocks = potential.blocks()
        still = set() if moving is None else set(blocks) - _moved(blocks, moving)
        trainer = Trainer(
            potential, Dataset(potential, labels), settings, loss=loss, rng=rng,
            moves=Blocks(potential, [name for name in blocks if name not in still]),
        )  # fmt: skip
        last = [progress.loss for progress in trainer.epochs()][-1]
        reached = trainer.result()
        potential.set_theta(reached)
        return reached, last


def _moved(blocks: dict[str, slice], moving: torch.Tensor) -> set[str]:
    indices = set(moving.tolist())
    return {name for name, where in blocks.items() if where.start in indices}
