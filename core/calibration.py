"""Online calibration: from a posterior's raw σ to probabilities of staying within a tolerance.

Total energy: Student-t predictive with a Gamma prior on the error's precision (arXiv 2507.13805),
or an online conformal quantile of |z|; both are kept, one decides. Forces and stress: the largest
error is a positive maximum, not a signed Gaussian; the ratio of it to its σ is bounded by the
Student-t predictive of its logarithm or, again, by an online conformal quantile. Arrays and floats
only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

Method = Literal["student-t", "conformal"]
"""Which of the two decides."""
SCORES = 60
"""Energy scores that the conformal quantile is taken of."""
PRIOR_SHAPE = 1.5
PRIOR_RATE = 10.0
"""λ ~ Gamma(shape, rate), e = λ^(-1/2) σ z: as published (arXiv 2507.13805)."""
MEMORY = 30.0
"""Labels after which an energy score counts 1/e, where the weights keep changing."""
RECENT = 10.0
"""Labels after which the ratio of a largest error counts 1/e: σ shrinks faster than errors do."""
NEUTRAL_RATE = PRIOR_SHAPE
"""Rate of a prior that expects σ to be right, for posteriors tested by leaving labels out."""


@dataclass(frozen=True)
class EnergyCalibration:
    """Posterior over the scale of energy errors, from z = (E_ref - Ê)/σ of earlier labels.

    Attributes:
        weight: (decayed) number of labels. sum_z2: (decayed) sum of z².
        memory: labels after which the past counts 1/e; infinite to forget nothing.
    """

    weight: float = 0.0
    sum_z2: float = 0.0
    shape: float = PRIOR_SHAPE
    rate: float = PRIOR_RATE
    memory: float = math.inf

    def update(self, z: float) -> EnergyCalibration:
        """Take in one z-score measured *before* the model saw the label."""
        keep = math.exp(-1.0 / self.memory) if math.isfinite(self.memory) else 1.0
        return replace(self, weight=keep * self.weight + 1, sum_z2=keep * self.sum_z2 + z * z)

    @property
    def degrees_of_freedom(self) -> float:
        """ν = 2·shape + n."""
        return 2 * self.shape + self.weight

    @property
    def scale(self) -> float:
        """Factor by which σ is multiplied to give the scale of the Student-t."""
        return math.sqrt((self.rate + self.sum_z2 / 2) / (self.shape + self.weight / 2))

    def probability_within(self, sigma: float, tolerance: float) -> float:
        """Return P(|e| < tolerance) for a raw standard deviation `sigma` (both eV)."""
        t = tolerance / max(sigma * self.scale, 1e-300)
        return float(2 * stats.t.cdf(t, self.degrees_of_freedom) - 1)

    def interval(self, sigma: float, confidence: float) -> float:
        """Return b (eV) with P(|e| < b) = `confidence`."""
        t = stats.t.ppf(0.5 + confidence / 2, self.degrees_of_freedom)
        return float(t * sigma * self.scale)


@dataclass(frozen=True)
class LargestCalibration:
    """Bound on the largest error among a frame's atoms, or stress components.

    `log_ratios` are log(max|Δ| / σ) of earlier labels, oldest first, at most `window`. The
    Student-t is that of their weighted mean and variance, a ratio counting 1/e after `RECENT`
    labels. Its bound scatters less than the conformal one, which is the largest or second largest
    ratio with 20 to 40 of them. Both are infinite below two labels.
    """

    log_ratios: tuple[float, ...] = ()
    window: int = 30

    def update(self, ratio: float) -> LargestCalibration:
        """Take in one ratio measured *before* the model saw the label."""
        kept = (*self.log_ratios, math.log(max(ratio, 1e-12)))[-self.window :]
        return replace(self, log_ratios=kept)

    def factor(self, confidence: float, method: Method = "student-t") -> float:
        """Return the factor q with max|Δ| < q·σ at `confidence`.

        Conformal: the quantile ⌈(n+1)c⌉/n of the ratios, or the Student-t's with too few for it.
        """
        n = len(self.log_ratios)
        if n < 2:
            return math.inf
        rank = math.ceil((n + 1) * confidence)
        if method == "conformal" and rank <= n:
            return float(math.exp(np.sort(self.log_ratios)[rank - 1]))
        mean, spread, freedom = self._predictive()
        return float(math.exp(mean + stats.t.ppf(confidence, freedom) * spread))

    def bound(self, sigma: float, confidence: float, method: Method = "student-t") -> float:
        """Return the bound on the largest error, in the unit of σ."""
        return self.factor(confidence, method) * sigma

    def probability_within(
        self, sigma: float, tolerance: float, method: Method = "student-t"
    ) -> float:
        """Return the largest confidence at which the bound is within `tolerance`, 0 for none.

        Conformal: by the ranks of the ratios where these reach beyond tolerance/σ.
        """
        n = len(self.log_ratios)
        if n < 2:
            return 0.0
        limit = math.log(tolerance / max(sigma, 1e-300))
        rank = int((np.array(self.log_ratios) <= limit).sum())
        if method == "conformal" and rank < n:
            return rank / (n + 1)
        mean, spread, freedom = self._predictive()
        if spread == 0:
            return float(rank == n)
        within = float(stats.t.cdf((limit - mean) / spread, freedom))
        return max(rank / (n + 1), within) if method == "conformal" else within

    def _predictive(self) -> tuple[float, float, float]:
        """Return centre, scale and degrees of freedom of the next logarithm's Student-t."""
        logs = np.array(self.log_ratios)
        weights = np.exp(np.arange(1 - len(logs), 1) / RECENT)
        total, squares = float(weights.sum()), float((weights**2).sum())
        mean = float(weights @ logs) / total
        variance = float(weights @ (logs - mean) ** 2) / (total - squares / total)
        n = total**2 / squares
        return mean, math.sqrt(variance * (1 + 1 / n)), n - 1


@dataclass(frozen=True)
class Assessment:
    """Whether one frame may be trusted, and why not.

    Attributes:
        probability: P(|energy error| < tolerance).
        energy_bound: half-width of the energy's confidence interval, eV.
        force_bound: bound on the largest atomic force error, eV/Å.
        stress_bound: bound on the largest error of a stress component, eV/Å³.
        reasons: empty if trusted; else any of "energy", "force", "stress".
        within: P(all errors within their tolerances), at least: no more than all chances of
            breaking one together are taken off 1.
    """

    probability: float
    energy_bound: float
    force_bound: float
    reasons: tuple[str, ...]
    stress_bound: float = math.nan
    within: float = math.nan

    @property
    def trusted(self) -> bool:
        """True where no tolerance is likely to be broken."""
        return not self.reasons


@dataclass(frozen=True)
class Calibration:
    """The calibrations of one campaign; immutable, rebuilt from the journal on resume."""

    energy: EnergyCalibration = EnergyCalibration()
    force: LargestCalibration = LargestCalibration()
    stress: LargestCalibration = LargestCalibration()
    scores: LargestCalibration = LargestCalibration(window=SCORES)
    """|z| of the energy."""

    def update(self, z: float, force_ratio: float, stress_ratio: float = math.nan) -> Calibration:
        """Take in one label measured before the update that used it; nan for no stress."""
        stress = self.stress if math.isnan(stress_ratio) else self.stress.update(stress_ratio)
        return Calibration(
            self.energy.update(z), self.force.update(force_ratio), stress,
            self.scores.update(abs(z)),
        )  # fmt: skip

    def energy_within(
        self, sigma: float, *, tolerance: float, confidence: float, method: Method = "student-t"
    ) -> tuple[float, float]:
        """Return P(|e| < tolerance) and b with P(|e| < b) = `confidence`, for σ in eV; b in eV."""
        if method == "conformal":
            within = self.scores.probability_within(sigma, tolerance, method)
            return within, self.scores.bound(sigma, confidence, method)
        within = self.energy.probability_within(sigma, tolerance)
        return within, self.energy.interval(sigma, confidence)

    def assess(
        self,
        sigma_energy: float,
        sigma_force_max: float,
        *,
        energy_tolerance: float,
        force_tolerance: float | None,
        confidence: float,
        sigma_stress: float = math.nan,
        stress_tolerance: float | None = None,
        method: Method = "student-t",
    ) -> Assessment:
        """Compare a frame's raw σ with the tolerances (eV, eV/Å, eV/Å³)."""
        probability, energy_bound = self.energy_within(
            sigma_energy, tolerance=energy_tolerance, confidence=confidence, method=method
        )
        force_bound = self.force.bound(sigma_force_max, confidence, method)
        misses = 1 - probability
        if force_tolerance is not None:
            misses += 1 - self.force.probability_within(sigma_force_max, force_tolerance, method)
        stress_bound = math.nan
        if not math.isnan(sigma_stress):
            stress_bound = self.stress.bound(sigma_stress, confidence, method)
        if stress_tolerance is not None and math.isnan(sigma_stress):
            misses = 1.0
        elif stress_tolerance is not None:
            misses += 1 - self.stress.probability_within(sigma_stress, stress_tolerance, method)
        broken = {
            "energy": probability < confidence,
            "force": force_tolerance is not None and force_bound > force_tolerance,
            "stress": stress_tolerance is not None and not stress_bound <= stress_tolerance,
        }
        return Assessment(
            probability=probability,
            energy_bound=energy_bound,
            force_bound=force_bound,
            stress_bound=stress_bound,
            reasons=tuple(name for name, bad in broken.items() if bad),
            within=max(0.0, 1 - misses),
        )
