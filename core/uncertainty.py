"""How good an uncertainty is: errors beside the standard deviations given for them. Arrays only.

Accuracy, likelihood, calibration, and the rank correlation that decides how many labels a campaign
needs: a wrong scale can be calibrated, a wrong ranking cannot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import uncertainty_toolbox as toolbox
from scipy import stats

LEVELS = (0.68, 0.90, 0.95)


@dataclass(frozen=True)
class Metrics:
    """Figures of n errors with standard deviations; units are those of the errors.

    Attributes:
        rmse: root mean square error. sharpness: root mean square standard deviation.
        nll: mean negative log likelihood under N(0, σ²), nats.
        crps: mean continuous ranked probability score of N(0, σ²).
        miscalibration: area between observed and expected coverage, 0 to 0.5.
        z: root mean square of error/σ; 1 is honest.
        spearman: rank correlation of |error| and σ; nan where all σ are equal.
        coverage: fraction within the Gaussian intervals at 68, 90 and 95 %.
    """

    rmse: float
    sharpness: float
    nll: float
    crps: float
    miscalibration: float
    z: float
    spearman: float
    coverage: tuple[float, ...]


def metrics(errors: np.ndarray, sigmas: np.ndarray) -> Metrics:
    """Return the figures of errors (n,) with standard deviations (n,), both finite, σ > 0."""
    predicted = np.zeros(len(errors))
    inside = np.abs(errors)[:, None] <= stats.norm.ppf(0.5 + np.array(LEVELS) / 2) * sigmas[:, None]
    return Metrics(
        rmse=float(np.sqrt((errors**2).mean())),
        sharpness=float(np.sqrt((sigmas**2).mean())),
        nll=float(toolbox.nll_gaussian(predicted, sigmas, errors)),
        crps=float(toolbox.crps_gaussian(predicted, sigmas, errors)),
        miscalibration=float(toolbox.miscalibration_area(predicted, sigmas, errors)),
        z=float(np.sqrt(((errors / sigmas) ** 2).mean())),
        spearman=rank_correlation(np.abs(errors), sigmas),
        coverage=tuple(float(share) for share in inside.mean(axis=0)),
    )


def rank_correlation(sizes: np.ndarray, sigmas: np.ndarray) -> float:
    """Return Spearman's correlation of sizes of errors and σ; nan where either does not vary."""
    if np.ptp(sizes) == 0 or np.ptp(sigmas) == 0:
        return float("nan")
    return float(stats.spearmanr(sizes, sigmas).statistic)
