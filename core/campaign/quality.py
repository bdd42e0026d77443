"""Is the uncertainty honest? Predictions made before each update, against the labels that came.

Every label is judged by the calibration in force when its frame was scored, so only by what was
known then. Arrays in, figures out; loads no torch. Labels are bought where the model is unsure, so
this is the quality where it matters, not the average along the trajectory (see `audit` for that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from core.calibration import Calibration
from core.campaign.learner import calibration_from_dict
from core.campaign.reader import CampaignReader
from core.campaign.state import State
from core.campaign.store import LabelRow
from core.units import KCAL_PER_MOL

ENOUGH = 20
"""Judged labels below which coverage says nothing: its interval is wider than ± 20 % at 68 %."""
LEVELS = (0.68, 0.90, 0.95)
GRID = np.linspace(0.05, 0.95, 19)
"""Expected coverages of the reliability curve."""
CONFIDENCE = 0.95
"""Of the intervals given for coverages."""


@dataclass(frozen=True)
class Judged:
    """S labels that were scored before they were learned, in the order of their queries.

    Attributes:
        query_id, step: (S,). by_hand: (S,) the label was imported.
        initial: (S,) one of the first labels, scored by leaving it out: no calibration stood then.
        predicted, actual, error: (S,) eV; error is actual - predicted.
        sigma: (S,) raw standard deviation of the energy, eV. z: (S,) error/sigma.
        scale, freedom: (S,) scale (eV) and degrees of freedom of the Student-t; nan if initial.
        bound: (S,) half-width of the energy interval at `confidence`, eV; nan if initial.
        shown: (S,) the one shown beside the frame when it was flagged, eV.
        force_error: (S,) largest atomic force error, eV/Å; nan where it was not kept.
        force_bound: (S,) bound on it at `confidence`, eV/Å; nan if initial.
        factors: (S, 3) by which σ is multiplied for a conformal bound at 68, 90 and 95 %; nan if
            initial, infinite while there were too few labels.
        confidence: probability asked for.
    """

    query_id: np.ndarray
    step: np.ndarray
    by_hand: np.ndarray
    initial: np.ndarray
    predicted: np.ndarray
    actual: np.ndarray
    sigma: np.ndarray
    z: np.ndarray
    scale: np.ndarray
    freedom: np.ndarray
    bound: np.ndarray
    shown: np.ndarray
    force_error: np.ndarray
    force_bound: np.ndarray
    factors: np.ndarray
    confidence: float

    def __len__(self) -> int:
        return len(self.query_id)

    @property
    def error(self) -> np.ndarray:
        """(S,) label minus prediction, eV."""
        return self.actual - self.predicted

    @property
    def tested(self) -> np.ndarray:
        """(S,) true where a calibration stood when the frame was scored."""
        return np.isfinite(self.scale)


@dataclass(frozen=True)
class Coverage:
    """How many of `n` errors lay `inside` an interval meant to hold the fraction `level`.

    `low` and `high` end the exact (Clopper-Pearson) interval of the fraction, at 95 %.
    """

    level: float
    n: int
    inside: int
    low: float
    high: float

    @property
    def fraction(self) -> float:
        """Observed coverage; nan without labels."""
        return self.inside / self.n if self.n else float("nan")

    @property
    def fits(self) -> bool:
        """True where the level lies within the interval."""
        return self.low <= self.level <= self.high


@dataclass(frozen=True)
class Reliability:
    """Observed against expected coverage of the energy, G levels, with exact 95 % intervals."""

    expected: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Scores:
    """Mean and standard deviation of z-scores; both are nan below two labels."""

    n: int
    mean: float
    std: float


@dataclass(frozen=True)
class Quality:
    """How honest the uncertainty was. Only labels with a calibration standing count in the figures.

    Attributes:
        labels: all scored labels. initial: those among them that began the calibration.
        energy: coverage at 68, 90 and 95 % by the Student-t. conformal: by the ranks of earlier
            errors, of the labels that had such a bound. force: of the largest force error at the
            asked confidence.
        z: of the raw σ. calibrated_z: after calibration, as normal scores; honest is mean 0, std 1.
        nll: mean negative log likelihood of a label under its Student-t, nats, energies in
            kcal/mol.
        rmse: of the energy before each update, eV.
    """

    labels: int
    initial: int
    energy: tuple[Coverage, ...]
    conformal: tuple[Coverage, ...]
    force: Coverage
    reliability: Reliability
    z: Scores
    calibrated_z: Scores
    nll: float
    rmse: float

    @property
    def tested(self) -> int:
        """Labels the figures rest on."""
        return self.z.n

    @property
    def enough(self) -> bool:
        """True where coverage says something."""
        return self.tested >= ENOUGH

    @property
    def verdict(self) -> str:
        """Say in a sentence whether there are labels enough."""
        if self.enough:
            return f"{self.tested} labels were predicted before they were learned."
        more = ENOUGH - self.tested
        have = f"{self.tested} of {ENOUGH}" if self.tested else f"none of {ENOUGH}"
        first = f"; the first {self.initial} began the calibration" if self.initial else ""
        return (
            f"Too few labels: {have} predicted before they were learned{first}. "
            f"{more} more {'is' if more == 1 else 'are'} needed."
        )


def collect(reader: CampaignReader) -> Judged:
    """Return the scored labels of a campaign at the confidence it asks for now."""
    return judged(reader.labels(), reader.state())


def judged(labels: Sequence[LabelRow], state: State) -> Judged:
    """Return what is known of `labels`; those without a score are left out."""
    scored = [row for row in labels if row.predicted is not None and row.z is not None]
    confidence = state.settings.trust.confidence
    queries = [state.query(row.query_id) for row in scored]
    stood = [_calibration(row) for row in scored]
    sigma = _column(_sigma(row) for row in scored)
    force_sigma = _column(row.sigma_force for row in scored)
    scale = _column(None if c is None else c.energy.scale for c in stood) * sigma
    freedom = _column(None if c is None else c.energy.degrees_of_freedom for c in stood)
    method = state.settings.trust.calibration
    factor = _column(None if c is None else c.force.factor(confidence, method) for c in stood)
    return Judged(
        query_id=np.array([q.id for q in queries], dtype=np.int64),
        step=np.array([q.step for q in queries], dtype=np.int64),
        by_hand=np.array([q.by_hand for q in queries], dtype=bool),
        initial=np.array(["initial" in q.reasons for q in queries], dtype=bool),
        predicted=_column(row.predicted for row in scored),
        actual=_column(row.energy for row in scored),
        sigma=sigma,
        z=_column(row.z for row in scored),
        scale=scale,
        freedom=freedom,
        bound=stats.t.ppf(0.5 + confidence / 2, freedom) * scale,
        shown=_column(q.energy_bound for q in queries),
        force_error=_column(row.force_ratio for row in scored) * force_sigma,
        force_bound=factor * force_sigma,
        factors=np.array(
            [
                [np.nan if c is None else c.scores.factor(level, "conformal") for level in LEVELS]
                for c in stood
            ],
            dtype=float,
        ).reshape(len(scored), len(LEVELS)),
        confidence=confidence,
    )


def _calibration(row: LabelRow) -> Calibration | None:
    return None if row.calibration is None else calibration_from_dict(row.calibration)


def _sigma(row: LabelRow) -> float | None:
    if row.sigma_energy is not None or not row.z or row.predicted is None:
        return row.sigma_energy
    return (row.energy - row.predicted) / row.z


def _column(values: object) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], dtype=float)  # type: ignore[attr-defined]


def assess(given: Judged) -> Quality:
    """Return coverage, reliability, z-scores and likelihood of judged labels.

    Intervals take the labels as independent, which neighbours in a trajectory are not quite.
    """
    at = given.tested
    error, scale, freedom = given.error[at], given.scale[at], given.freedom[at]
    t = error / scale
    needed = 2 * stats.t.cdf(np.abs(t), freedom) - 1
    held = at & np.isfinite(given.force_bound) & np.isfinite(given.force_error)
    inside = given.force_error[held] <= given.force_bound[held]
    ranked = np.abs(given.z)[:, None] / given.factors
    bounded = np.isfinite(given.factors)
    normal = stats.norm.ppf(np.clip(stats.t.cdf(t, freedom), 1e-9, 1 - 1e-9))
    density = stats.t.logpdf(t, freedom) - np.log(scale / KCAL_PER_MOL)
    return Quality(
        labels=len(given),
        initial=int((given.initial & ~at).sum()),
        energy=tuple(coverage(level, needed <= level) for level in LEVELS),
        conformal=tuple(
            coverage(level, ranked[bounded[:, k], k] <= 1) for k, level in enumerate(LEVELS)
        ),
        force=coverage(given.confidence, inside),
        reliability=_reliability(needed),
        z=_scores(given.z[at]),
        calibrated_z=_scores(normal),
        nll=float(-density.mean()) if len(t) else float("nan"),
        rmse=float(np.sqrt((error**2).mean())) if len(t) else float("nan"),
    )


def coverage(level: float, inside: np.ndarray) -> Coverage:
    """Count the errors (n,) that lay inside an interval meant to hold the fraction `level`."""
    n, k = len(inside), int(np.sum(inside))
    return Coverage(level, n, k, *clopper_pearson(k, n))


def clopper_pearson(k: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the exact interval of a fraction of which `k` of `n` were seen.

    Source: Clopper and Pearson 1934 (doi:10.1093/biomet/26.4.404).
    """
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, k, n - k + 1)) if k else 0.0
    high = float(stats.beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return low, high


def _reliability(needed: np.ndarray) -> Reliability:
    rows = [coverage(level, needed <= level) for level in GRID]
    return Reliability(
        GRID,
        np.array([row.fraction for row in rows]),
        np.array([row.low for row in rows]),
        np.array([row.high for row in rows]),
    )


def _scores(z: np.ndarray) -> Scores:
    if len(z) < 2:
        return Scores(len(z), float("nan"), float("nan"))
    return Scores(len(z), float(z.mean()), float(z.std(ddof=1)))
