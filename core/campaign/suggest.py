"""Which frames of a trajectory would tell most if they were labelled. Loads no torch.

By what the labels leave unknown of their stored activations, as `core.acquisition.screening` does.
"""

from __future__ import annotations

import numpy as np

from core.acquisition.screening import ACTIVATION_NOISE, Activations
from core.acquisition.selection import greedy_determinant


def suggest(frames: np.ndarray, labelled: np.ndarray, n: int) -> list[int]:
    """Return the indices of up to `n` frames, the one that tells most first.

    Each is the one most unknown after the labels and the frames before it.

    Args:
        frames: (F, D) activations of the candidates. labelled: (L, D) those of the labels.
    """
    found = Activations(frames, labelled)
    return greedy_determinant(found.of(slice(None)), n, noise=ACTIVATION_NOISE, train=found.train)
