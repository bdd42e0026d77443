"""What the model knows, and how a label changes it: offset, posterior, calibration, snapshots.

Holds no dynamics, no queue and no database. Everything learned so far is one frozen `Knowledge`,
replaced as a whole, so that going back to the former weights is putting the former value back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from core.acquisition.coverage import Coverage
from core.acquisition.screening import Activations, Shortlist
from core.calibration import (
    MEMORY,
    NEUTRAL_RATE,
    Assessment,
    Calibration,
    EnergyCalibration,
    LargestCalibration,
)
from core.campaign.state import State
from core.contracts import Info, LabelSet, Potential, Spread
from core.finetuning.e0 import Offset, constant_offset
from core.structures import Structure

MOST_ROWS = 1500
"""Numbers of candidates whose joint covariance a batch is chosen by: 10 to 20 s on one core."""


@dataclass(frozen=True)
class Labelled:
    """A label as the learner sees it: the reference's energy (eV), forces (N, 3), stress (3, 3)."""

    query_id: int
    structure: Structure
    energy: float
    forces: np.ndarray
    stress: np.ndarray | None = None


@dataclass(frozen=True)
class Knowledge:
    """Everything learned so far.

    Attributes:
        posterior: the posterior's own state. labels: in the order they were learned.
        offset: added to the model's energies. snapshot: number of the weights in force.
    """

    posterior: Any
    offset: Offset = Offset()
    calibration: Calibration = Calibration()
    labels: tuple[Labelled, ...] = ()
    snapshot: int = 0


@dataclass(frozen=True)
class Score:
    """What the model said of a label before it learned it; energies in eV, offset included.

    Attributes:
        sigma_energy, sigma_force: raw, eV and eV/Å; nan where a label was scored by leaving it out.
    """

    query_id: int
    predicted: float
    z: float
    force_ratio: float
    sigma_energy: float = math.nan
    sigma_force: float = math.nan
    stress_ratio: float = math.nan


@dataclass(frozen=True)
class Update:
    """Candidate knowledge with the scores of the new labels; nothing is in force yet for good."""

    knowledge: Knowledge
    scores: tuple[Score, ...]
    info: dict[str, Any] = field(default_factory=dict)


class Learner:
    """A potential and a posterior over its weights.

    Args:
        seed: every update draws from a generator of its own, made from `seed` and its number.
        describer: gives the features structures are compared by: a copy of the foundation whose
            weights stay, so that what was compared stays comparable; by default `potential`.
    """

    def __init__(
        self, potential: Potential, posterior: Any, *, seed: int, describer: Potential | None = None
    ) -> None:
        self.potential, self.posterior, self.seed = potential, posterior, seed
        self._describer = describer or potential
        self._described: dict[int, np.ndarray] = {}
        self._coverage: tuple[frozenset[int], Coverage] | None = None

    def _rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 1, number])

    def begin(self) -> Knowledge:
        """Return the knowledge before any label: the foundation model."""
        return Knowledge(self.posterior.init(self._rng(0)))

    def activate(self, knowledge: Knowledge) -> None:
        """Put the mean weights of `knowledge` in force."""
        self.posterior.activate(knowledge.posterior)

    def shift(self, knowledge: Knowledge) -> float:
        """Return what is added to the bare potential's energy: offset and posterior's bias, eV."""
        return knowledge.offset.value + float(getattr(knowledge.posterior, "bias", 0.0))

    def judge(self, knowledge: Knowledge, structure: Structure, *, quick: bool = False) -> Spread:
        """Return the prediction with the offset added.

        The offset's variance joins `sigma_energy`, unless the posterior has a bias that holds it.

        Args:
            quick: see `core.contracts.Posterior.spread`.
        """
        spread: Spread = self.posterior.spread(knowledge.posterior, structure, quick=quick)
        sigma = self._with_offset(knowledge, spread.sigma_energy)
        return replace(spread, energy=spread.energy + knowledge.offset.value, sigma_energy=sigma)

    def energy_sigma(self, knowledge: Knowledge, changes: np.ndarray) -> float:
        """Return σ of the energy as `judge` does, from what the evaluator watched, eV."""
        return self._with_offset(
            knowledge, self.posterior.energy_sigma(knowledge.posterior, changes)
        )

    def _with_offset(self, knowledge: Knowledge, sigma: float) -> float:
        if not knowledge.labels or _has_bias(knowledge.posterior):
            return sigma
        return math.hypot(sigma, math.sqrt(knowledge.offset.variance))

    def assess(self, knowledge: Knowledge, spread: Spread, state: State) -> Assessment:
        """Compare a judged frame with the tolerances in force."""
        return knowledge.calibration.assess(
            spread.sigma_energy,
            spread.sigma_force,
            energy_tolerance=state.energy_tolerance,
            force_tolerance=state.force_tolerance,
            confidence=state.settings.trust.confidence,
            sigma_stress=spread.sigma_stress,
            stress_tolerance=state.stress_tolerance,
            method=state.settings.trust.calibration,
        )

    def first_update(self, knowledge: Knowledge, labels: Sequence[Labelled]) -> Update:
        """Set offset, weights and calibration from the initial labels."""
        new = tuple(labels)
        energies = self.potential.predict([lab.structure for lab in new], forces=False).energies
        offset = constant_offset([lab.energy for lab in new] - energies)
        state, info, data = self._learn(knowledge, new, offset)
        offset = self._refit(state, new, offset)
        left_out = self.posterior.leave_one_out(state, data)
        scores: tuple[Score, ...] = ()
        calibration = Calibration()
        if left_out is not None:
            calibration = Calibration(EnergyCalibration(rate=NEUTRAL_RATE, memory=MEMORY))
            scores = tuple(
                Score(
                    lab.query_id, lab.energy - float(e), float(s), float(r), stress_ratio=float(q)
                )
                for lab, e, s, r, q in zip(new, *left_out, strict=True)
            )
            for score in scores:
                calibration = calibration.update(score.z, score.force_ratio, score.stress_ratio)
        learned = Knowledge(state, offset, calibration, new, knowledge.snapshot + 1)
        return Update(learned, scores, info.values)

    def update(
        self, knowledge: Knowledge, labels: Sequence[Labelled], scored: frozenset[int] = frozenset()
    ) -> Update:
        """Score the new labels with the weights in force, then learn from all labels.

        Args:
            scored: queries whose label was scored before an update that was refused.
        """
        scores = tuple(self._score(knowledge, lab) for lab in labels if lab.query_id not in scored)
        calibration = knowledge.calibration
        for score in scores:
            calibration = calibration.update(score.z, score.force_ratio, score.stress_ratio)
        together = (*knowledge.labels, *labels)
        state, info, _ = self._learn(knowledge, together, knowledge.offset)
        offset = self._refit(state, together, knowledge.offset)
        learned = Knowledge(state, offset, calibration, together, knowledge.snapshot + 1)
        return Update(learned, scores, info.values)

    def _score(self, knowledge: Knowledge, label: Labelled) -> Score:
        spread = self.judge(knowledge, label.structure)
        error = float(np.linalg.norm(label.forces - spread.forces, axis=1).max())
        sigma_force = max(spread.sigma_force, 1e-12)
        return Score(
            label.query_id,
            predicted=spread.energy,
            z=(label.energy - spread.energy) / spread.sigma_energy,
            force_ratio=error / sigma_force,
            sigma_energy=float(spread.sigma_energy),
            sigma_force=sigma_force,
            stress_ratio=_stress_ratio(spread, label),
        )

    def _learn(
        self, knowledge: Knowledge, labels: tuple[Labelled, ...], offset: Offset
    ) -> tuple[Any, Info, LabelSet]:
        data = label_set(labels, offset)
        state, info = self.posterior.update(
            knowledge.posterior, data, self._rng(knowledge.snapshot + 1)
        )
        return state, info, data

    def _refit(self, state: Any, labels: tuple[Labelled, ...], offset: Offset) -> Offset:
        """Refit the constant with the new weights, where the posterior has no bias of its own."""
        if _has_bias(state):
            return offset
        energies = self.potential.predict([lab.structure for lab in labels], forces=False).energies
        return constant_offset([lab.energy for lab in labels] - energies)

    def novelty(self, knowledge: Knowledge, numbers: np.ndarray, features: np.ndarray) -> float:
        """Return how far a structure lies from the labels; see `core.acquisition.coverage`.

        nan before there are labels.

        Args:
            numbers: (N,) atomic numbers. features: (N, D), by `describe`.
        """
        if not knowledge.labels:
            return math.nan
        labelled = frozenset(label.query_id for label in knowledge.labels)
        if self._coverage is None or self._coverage[0] != labelled:
            each = [label.structure.numbers for label in knowledge.labels]
            self._coverage = labelled, Coverage(each, self._labels_described(knowledge))
        return self._coverage[1].novelty(numbers, features)

    def _labels_described(self, knowledge: Knowledge) -> list[np.ndarray]:
        """Return the features (N, D) of every label, each computed once."""
        missing = [la for la in knowledge.labels if la.query_id not in self._described]
        found = self.describe([label.structure for label in missing])
        self._described |= {la.query_id: f for la, f in zip(missing, found, strict=True)}
        return [self._described[label.query_id] for label in knowledge.labels]

    def describe(self, structures: Sequence[Structure]) -> tuple[np.ndarray, ...]:
        """Return the features (N, D) of every atom of each structure, by the foundation."""
        if not structures:
            return ()
        features = self._describer.predict(structures, forces=False, features=True).features
        assert features is not None
        return features

    def choose(self, knowledge: Knowledge, structures: Sequence[Structure], n: int) -> list[int]:
        """Return the indices of up to `n` structures that together tell most about all of them.

        By their activations; of the first of these, as many as the posterior can tell the joint
        covariance of, by that. See `core.acquisition.screening`.
        """
        pool = _pooled(self.describe(structures))
        labels = _pooled(self._labels_described(knowledge))
        found = Activations(pool, labels.reshape(-1, pool.shape[1]))
        fit = MOST_ROWS // (1 + 3 * max(len(s) for s in structures))
        first = found.choose(slice(None), max(n, fit))
        rows = None
        if 0 < n <= fit:
            rows = self.posterior.unknown(knowledge.posterior, [structures[i] for i in first])
        if rows is None:
            return first[:n]
        return [first[i] for i in Shortlist(rows, has_energy=True, prior_std=1.0).choose(n)]

    def save(self, knowledge: Knowledge, path: Path) -> None:
        """Write the posterior's state."""
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        self.posterior.save(knowledge.posterior, part)
        part.replace(path)

    def shrink(self, path: Path) -> None:
        """Make a stored state small that is no longer in force."""
        if path.exists():
            self.posterior.shrink(path)

    def restore(
        self, path: Path, labels: Sequence[Labelled], offset: Offset, snapshot: int
    ) -> Knowledge:
        """Read what `save` wrote; the calibration is left for the caller to put back."""
        state = self.posterior.restore(path, label_set(tuple(labels), offset))
        return Knowledge(state, offset, Calibration(), tuple(labels), snapshot)


def _stress_ratio(spread: Spread, label: Labelled) -> float:
    if spread.stress is None or label.stress is None:
        return math.nan
    return float(np.abs(label.stress - spread.stress).max()) / max(spread.sigma_stress, 1e-12)


def _has_bias(posterior: Any) -> bool:
    return hasattr(posterior, "bias")


def label_set(labels: Sequence[Labelled], offset: Offset) -> LabelSet:
    """Return labels as a posterior takes them, the offset removed."""
    return LabelSet(
        tuple(lab.structure for lab in labels),
        np.array([lab.energy - offset.value for lab in labels], dtype=float),
        tuple(lab.forces for lab in labels),
        tuple(lab.stress for lab in labels if lab.stress is not None),
    )


def _pooled(features: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over the atoms of features (N, D) of each structure, (S, D)."""
    return np.array([atoms.mean(axis=0) for atoms in features])


def calibration_to_dict(calibration: Calibration) -> dict[str, Any]:
    """Return a calibration as JSON values."""
    return asdict(calibration)


def calibration_from_dict(data: dict[str, Any]) -> Calibration:
    """Read what `calibration_to_dict` wrote."""

    def largest(given: dict[str, Any]) -> LargestCalibration:
        return LargestCalibration(**{**given, "log_ratios": tuple(given["log_ratios"])})

    stress = largest(data["stress"]) if "stress" in data else LargestCalibration()
    scores = largest(data["scores"]) if "scores" in data else Calibration().scores
    return Calibration(EnergyCalibration(**data["energy"]), largest(data["force"]), stress, scores)
