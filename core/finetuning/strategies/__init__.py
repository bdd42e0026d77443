"""The seven strategies compared in arXiv 2606.12704, one module each."""

from core.errors import SettingsError
from core.finetuning.strategies import (
    freeze_products,
    freeze_readouts,
    lora,
    naive,
    pseudolabel_replay,
    replay,
    replay_lora,
)
from core.finetuning.strategies.strategy import Strategy

__all__ = ["STRATEGIES", "Strategy", "strategy"]

STRATEGIES = {
    module.STRATEGY.name: module.STRATEGY
    for module in (
        naive, freeze_products, freeze_readouts, lora, replay, pseudolabel_replay, replay_lora,
    )
}  # fmt: skip


def strategy(name: str) -> Strategy:
    """Return a strategy by name.

    Raises:
        SettingsError: there is none of that name.
    """
    if name not in STRATEGIES:
        raise SettingsError(f"There is no strategy {name!r}; accepted: {', '.join(STRATEGIES)}.")
    return STRATEGIES[name]
