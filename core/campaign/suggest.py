"""Which frames of a trajectory would tell most if they were labelled. Loads no torch.

By what the labels leave unknown of their stored activations, as `core.acquisition.screening` does.
"""

from __future__ import annotations

import numpy as np

from core.acquisition.screening import Activations


def suggest(frames: np.ndarray, labelled: np.ndarray, n: int) -> list[int]:
    """Return the indices of up to `n` frames, the one that tells most first.

    Each takes most off what the labels, and the frames before it, leave unknown of all of them.

    Args:
        frames: (F, D) activations of the candidates. labelled: (L, D) those of the labels.
    """
    return Activations(frames, labelled).choose(slice(None), n)
