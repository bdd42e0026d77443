"""Frozen interactions: products and readouts move.

The better of the two ways to freeze (mace: `--freeze 5`).
"""

from core.finetuning.strategies.strategy import Strategy
from core.training import TrainerSettings

STRATEGY = Strategy(
    name="freeze-products",
    title="Frozen interactions",
    about="Products and readouts move; embeddings and interactions stay.",
    training=TrainerSettings(learning_rate=1e-3, ema=0.999, clip=1.0, final_rate=1.0),
    parts=("product", "readout"),
)
