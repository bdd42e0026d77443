"""Replay with LoRA.

Published as worse than either alone nearly everywhere.
"""

from core.finetuning.strategies.lora import RANK
from core.finetuning.strategies.strategy import Strategy
from core.training import TrainerSettings

STRATEGY = Strategy(
    name="replay-lora",
    title="Replay with LoRA",
    about="Every matrix moves by a change of low rank, on the labels and on frames of "
    "the pretraining.",
    training=TrainerSettings(learning_rate=1e-2, ema=0.99, clip=10.0, final_rate=1.0),
    rank=RANK,
    rehearsal="labels",
)
