"""The energy zero between a reference and a model: a constant for one composition.

Two levels of theory put their zero elsewhere (2.3 eV an atom between GFN1 and GFN2 for ethanol);
only what is left after the constant can be learned or trusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Offset:
    """A constant to add to the model's energies: `value` (eV) and its `variance` (eV²)."""

    value: float = 0.0
    variance: float = math.inf


def constant_offset(residuals: Sequence[float] | np.ndarray) -> Offset:
    """Return the mean of E_ref - E_model (S,) in eV and the variance of that mean.

    One residual fixes the constant but says nothing of its variance, which is then infinite.

    Raises:
        ValueError: no residual.
    """
    values = np.asarray(residuals, dtype=float)
    if values.size == 0:
        raise ValueError("An offset needs at least one label.")
    variance = float(values.var(ddof=1) / values.size) if values.size > 1 else math.inf
    return Offset(float(values.mean()), variance)
