"""The one trainer: loss, batches, EMA, clipping, stopping and resuming.

Used to make the bundled foundation model, by the posteriors and by every fine-tuning strategy.
It knows potentials only through their contract.
"""

from core.training.data import Dataset, Example, batches
from core.training.loss import Loss
from core.training.trainer import Progress, Trainer, TrainerSettings, evaluate

__all__ = [
    "Dataset",
    "Example",
    "Loss",
    "Progress",
    "Trainer",
    "TrainerSettings",
    "batches",
    "evaluate",
]
