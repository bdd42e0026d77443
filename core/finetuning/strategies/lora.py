"""LoRA: every matrix moves by a change of low rank.

Better than freezing. Linear maps of scalars and of equivariant features, and the symmetric
contractions; mace leaves the contractions and `skip_tp` out, and starts its two kinds of factors
differently.
"""

from core.finetuning.strategies.strategy import Strategy
from core.training import TrainerSettings

RANK = 16

STRATEGY = Strategy(
    name="lora",
    title="LoRA",
    about="Every matrix of the network moves by a change of low rank.",
    training=TrainerSettings(learning_rate=1e-2, ema=0.99, clip=10.0, final_rate=1.0),
    rank=RANK,
)
