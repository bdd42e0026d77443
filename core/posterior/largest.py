"""How large a frame's largest force error is, by samples of every atom's force. Arrays only."""

from __future__ import annotations

import numpy as np


def largest_change(changes: np.ndarray, ddof: int = 0) -> float:
    """Return how large the largest force error of a frame is by samples' changes (M, N, 3).

    The root mean square over the samples of the largest change of an atom's force. It scatters less
    with few samples than the largest of the atoms' own σ, and ranks errors better: that one is high
    where chance has made one of many σ too large.
    """
    largest = (changes**2).sum(-1).max(1)
    return float(np.sqrt(largest.sum() / (len(changes) - ddof)))
