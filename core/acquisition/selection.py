"""Choose a diverse batch from a kernel matrix: arrays in, indices out."""

from __future__ import annotations

import numpy as np


def max_determinant(kernel: np.ndarray, n: int, *, noise: float = 1e-6) -> list[int]:
    """Greedily choose `n` of S candidates so that the determinant of their kernel is largest.

    Each pick has the largest variance given those already chosen (a pivoted Cholesky
    factorisation), so near-duplicates are passed over. Civril and Magdon-Ismail,
    10.1016/j.tcs.2009.06.018.

    Args:
        kernel: (S, S), symmetric, positive semi-definite; rows already chosen for earlier labels
            can be conditioned out by the caller.
        noise: variance added to each candidate, relative to the largest.

    Returns:
        indices in the order they were chosen; ties go to the smaller index.
    """
    size = len(kernel)
    if not 0 <= n <= size:
        raise ValueError(f"{n} of {size} candidates were asked for; give 0 to {size}.")
    largest = float(np.diag(kernel).max()) if size else 0.0
    jitter = noise * (largest if largest > 0 else 1.0)
    variance = np.diag(kernel).astype(float) + jitter
    factor = np.zeros((size, n))
    chosen: list[int] = []
    for k in range(n):
        variance[chosen] = -np.inf
        pick = int(np.argmax(variance))
        row = kernel[pick] - factor[:, :k] @ factor[pick, :k]
        factor[:, k] = row / np.sqrt(variance[pick])
        variance = variance - factor[:, k] ** 2
        chosen.append(pick)
    return chosen
