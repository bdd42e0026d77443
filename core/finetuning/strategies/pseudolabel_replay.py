"""Replay of pseudolabels: the foundation's own predictions are rehearsed.

As good as replay of labels on the target, and possible where the pretraining data are not.
"""

from core.finetuning.strategies.strategy import Strategy
from core.training import TrainerSettings

STRATEGY = Strategy(
    name="pseudolabel-replay",
    title="Replay of pseudolabels",
    about="As replay, with the foundation's own predictions in place of labels.",
    training=TrainerSettings(learning_rate=1e-4, ema=0.9999, clip=1.0, final_rate=1.0),
    rehearsal="pseudolabels",
)
