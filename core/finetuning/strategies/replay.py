"""Replay (multihead): frames of the pretraining are rehearsed in a head of their own.

Keeps what the foundation knew, short-range repulsion too, for more steps and time.
"""

from core.finetuning.strategies.strategy import Strategy
from core.training import TrainerSettings

STRATEGY = Strategy(
    name="replay",
    title="Replay",
    about="All weights move, on the labels and on frames of the pretraining in a head "
    "of their own.",
    training=TrainerSettings(learning_rate=1e-4, ema=0.9999, clip=1.0, final_rate=1.0),
    rehearsal="labels",
)
