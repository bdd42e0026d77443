"""The one trainer: loss, batches, EMA, clipping, stopping and resuming.

Used to make the bundled foundation model, by the posteriors and by every fine-tuning strategy.
It knows potentials only through their contract.
"""

from core.training.data import Dataset, Example, batches
from core.training.loss import Loss
from core.training.moves import Blocks, LowRank
from core.training.trainer import Progress, Task, Trainer, TrainerSettings, mean_loss

__all__ = [
    "Blocks",
    "Dataset",
    "Example",
    "Loss",
    "LowRank",
    "Progress",
    "Task",
    "Trainer",
    "TrainerSettings",
    "batches",
    "mean_loss",
]
