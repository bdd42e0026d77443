"""Whether chains have mixed: split R-hat and effective sample size (Gelman et al., BDA3, 11.4-5).

Arrays only.
"""

from __future__ import annotations

import numpy as np


def split_r_hat(draws: np.ndarray) -> float:
    """Return R-hat of draws (chains, T), each chain cut in two; near 1 once they have mixed.

    nan with fewer than four draws of a chain, infinite where the halves do not vary in themselves.
    """
    halves = _halves(draws)
    n = halves.shape[1]
    if n < 2:
        return float("nan")
    within = float(halves.var(axis=1, ddof=1).mean())
    between = n * float(halves.mean(axis=1).var(ddof=1))
    if within == 0:
        return 1.0 if between == 0 else float("inf")
    return float(np.sqrt(((n - 1) / n * within + between / n) / within))


def effective_size(draws: np.ndarray) -> float:
    """Return how many independent draws the draws (chains, T) are worth in all.

    By the autocorrelations of the halves of the chains, summed in pairs until a pair is negative.
    """
    halves = _halves(draws)
    m, n = halves.shape
    if n < 2:
        return float("nan")
    centred = halves - halves.mean(axis=1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(centred, 2 * n, axis=1)) ** 2
    covariance = np.fft.irfft(spectrum, axis=1)[:, :n].mean(axis=0) / n
    within = covariance[0] * n / (n - 1)
    total = within * (n - 1) / n + float(halves.mean(axis=1).var(ddof=1))
    if total == 0:
        return float(m * n)
    correlation = 1 - (within - covariance) / total
    correlation[0] = 1.0
    pairs = correlation[: n // 2 * 2].reshape(-1, 2).sum(axis=1)
    negative = np.nonzero(pairs < 0)[0]
    used = pairs[: negative[0]] if len(negative) else pairs
    time = max(2 * float(used.sum()) - 1, 1 / np.log10(m * n)) if m * n > 1 else 1.0
    return float(min(m * n / time, m * n * np.log10(m * n)))


def _halves(draws: np.ndarray) -> np.ndarray:
    """Return the draws (chains, T) as (2 chains, T // 2)."""
    n = draws.shape[1] // 2
    return np.concatenate([draws[:, :n], draws[:, draws.shape[1] - n :]])
