"""Naive: all weights move, on the labels alone.

The most accurate on one system, and the first to forget what the foundation knew elsewhere.
"""

from core.finetuning.strategies.strategy import Strategy
from core.training import TrainerSettings

STRATEGY = Strategy(
    name="naive",
    title="Naive",
    about="All weights move, on the labels alone.",
    training=TrainerSettings(learning_rate=1e-3, ema=0.999, clip=1.0, final_rate=1.0),
)
