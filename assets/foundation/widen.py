"""More channels for a trained invariant MACE, with no change of what it predicts.

New channels read all channels; the old ones and the readouts do not read them until training
gives them a weight (after Net2Net, Chen, Goodfellow and Shlens, arXiv 1511.05641).
"""

from __future__ import annotations

import math

import torch

from core.potentials.mace import MacePotential


def widened(potential: MacePotential, channels: int, seed: int) -> MacePotential:
    """Return a potential of more channels with the same energies.

    Args:
        potential: float32, with C scalar channels in every layer, as `default_config` makes it.
        channels: its number of channels, at least C.

    Raises:
        ValueError: fewer channels than it has.
    """
    before = int(potential.config["hidden_irreps"].partition("x")[0])
    if channels < before:
        raise ValueError(f"{channels} channels asked for; the model has {before}.")
    torch.manual_seed(seed)
    wide = MacePotential(
        dict(potential.config) | {"hidden_irreps": f"{channels}x0e"}, name=potential.name
    )
    old = dict(potential.module.named_parameters())
    with torch.no_grad():
        for name, weight in wide.module.named_parameters():
            if weight.requires_grad:
                _fill(name, weight, old[name], before, channels)
    return wide


def _fill(name: str, new: torch.Tensor, old: torch.Tensor, before: int, now: int) -> None:
    """Put the old weights into the new tensor, whose other entries are random."""
    if "node_embedding" in name:  # element, channel
        new.view(-1, now)[:, :before] = old.view(-1, before)
    elif ".contractions." in name:  # element, path, channel
        new[..., :before] = old
    elif "conv_tp_weights" in name:
        if new.shape == old.shape:
            new.copy_(old)
        else:  # hidden, path, channel
            hidden = len(new)
            new.view(hidden, -1, now)[..., :before] = old.view(hidden, -1, before)
    else:  # maps from channels, divided by the root of their number: kind, channel in, channel out
        grown = math.sqrt(now / before)
        if "readouts" in name and "linear_2" in name:
            new.copy_(old)
        elif "readouts" in name:
            new.view(now, -1)[:before] = grown * old.view(before, -1)
            new.view(now, -1)[before:] = 0
        elif "skip_tp" in name:  # channel in, element, channel out
            new.view(now, -1, now)[:before, :, :before] = grown * old.view(before, -1, before)
            new.view(now, -1, now)[before:, :, :before] = 0
        else:
            new.view(-1, now, now)[:, :before, :before] = grown * old.view(-1, before, before)
            new.view(-1, now, now)[:, before:, :before] = 0
