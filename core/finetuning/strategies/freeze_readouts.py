"""Readouts only.

Too restrictive for most tasks (mace: `--freeze 6`), and the least that can move.
"""

from core.finetuning.strategies.strategy import Strategy
from core.training import TrainerSettings

STRATEGY = Strategy(
    name="freeze-readouts",
    title="Readouts only",
    about="Readouts move; the rest of the network stays.",
    training=TrainerSettings(learning_rate=1e-3, ema=0.999, clip=1.0, final_rate=1.0),
    parts=("readout",),
)
