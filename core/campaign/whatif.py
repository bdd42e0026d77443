"""What another tolerance would have cost: labels, time and misses, on the recorded frames.

Arrays in, arrays out; loads no torch. `preview` answers the same for the frames that wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from core.campaign import events as ev
from core.campaign.learner import calibration_from_dict
from core.campaign.reader import CampaignReader
from core.campaign.state import Query
from core.campaign.store import LabelRow, Snapshot

CELLS = 4096
"""Values of tolerance over scale that the tail of the Student-t is tabulated at."""
SMALLEST, LARGEST = 0.3, 100.0
"""Ends of that table: below it a frame is flagged at any confidence, beyond it no error occurs."""
PER_FREEDOM = 1000
"""Steps of 1/ν that share one table row, for 1/ν from 0 to 1."""


@dataclass(frozen=True)
class Cost:
    """What a label cost this campaign on average, s: its calculation, and the learning after it."""

    label_s: float
    intervention_s: float

    @property
    def each_s(self) -> float:
        """Time for one label, s."""
        return self.label_s + self.intervention_s


@dataclass(frozen=True)
class Trace:
    """S frames judged by a trusted model, as recorded, rewound ones included.

    Attributes:
        bound: (S,) half-width of the energy interval at the confidence then asked, eV.
        force_bound: (S,) bound on the largest atomic force error, eV/Å.
        scale, freedom: (S,) scale (eV) and degrees of freedom of the energy error's Student-t.
    """

    bound: np.ndarray
    force_bound: np.ndarray
    scale: np.ndarray
    freedom: np.ndarray

    def __len__(self) -> int:
        return len(self.bound)


@dataclass(frozen=True)
class Curve:
    """What each of T energy tolerances (eV) would have come to.

    Attributes:
        labels: (T,) frames flagged. seconds: (T,) time for them; nan before the first label.
        misses: (T,) frames expected to be off by more than the tolerance among those not flagged.
    """

    tolerances: np.ndarray
    labels: np.ndarray
    seconds: np.ndarray
    misses: np.ndarray


@dataclass(frozen=True)
class Preview:
    """What a threshold would take of the waiting frames; `seconds` is nan without a known cost."""

    ids: tuple[int, ...]
    seconds: float

    def __len__(self) -> int:
        return len(self.ids)


def cost(reader: CampaignReader) -> Cost | None:
    """Return what a label cost so far; None before the first one was computed.

    Labels made by hand cost this machine nothing and are left out; so is the first update, which
    begins the trust, once there are others.
    """
    by_hand = {q.id for q in reader.state().queue if q.by_hand}
    computed = [row for row in reader.labels() if row.query_id not in by_hand]
    return cost_of(computed, reader.events_of(ev.Updated))


def cost_of(labels: Sequence[LabelRow], updates: Sequence[ev.Updated]) -> Cost | None:
    """Return the mean cost from labels that were computed and from all updates, in order."""
    if not labels:
        return None
    later = updates[1:] or updates
    before = updates[0].n_labels if len(updates) > 1 else 0
    learned = later[-1].n_labels - before if later else 0
    return Cost(
        label_s=float(np.mean([label.wall_s for label in labels])),
        intervention_s=sum(update.seconds for update in later) / max(learned, 1),
    )


def trace(frames: dict[str, np.ndarray], snapshots: Sequence[Snapshot]) -> Trace:
    """Return the judged frames among columns of `CampaignReader.frames_since`.

    The Student-t of a frame is that of the calibration kept with the weights that judged it.
    """
    known = {s.id: calibration_from_dict(s.calibration).energy for s in snapshots}
    judged = (frames["kind"] != "untrusted") & np.isfinite(frames["energy_bound"])
    judged &= np.isin(frames["snapshot"], list(known))
    ids, position = np.unique(frames["snapshot"][judged], return_inverse=True)
    factor = np.array([known[int(i)].scale for i in ids])
    freedom = np.array([known[int(i)].degrees_of_freedom for i in ids])
    return Trace(
        bound=frames["energy_bound"][judged],
        force_bound=frames["force_bound"][judged],
        scale=frames["sigma_energy"][judged] * factor[position],
        freedom=freedom[position],
    )


def joined(parts: Sequence[Trace]) -> Trace:
    """Return several stretches of one trace as one."""
    return Trace(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in Trace.__dataclass_fields__)
    )


def curve(
    recorded: Trace, tolerances: np.ndarray, force_tolerance: float | None, cost: Cost | None
) -> Curve:
    """Return labels, time and expected misses for energy tolerances (T,), eV.

    A frame is flagged where its energy or its force bound, at the confidence asked when it was
    judged, is above the tolerance. A miss is an energy error above the tolerance in a frame not
    flagged; expected are the sum of the calibrated probabilities, to about 1 %. Every flagged frame
    counts as labelled, one after the other.

    Ignored: that a label changes the model. With more labels than were bought the later frames
    would have been surer and fewer of them flagged; with fewer labels the opposite, and the
    trajectory would have been another. Misses of the force are not counted. Far from the tolerance
    in force the figures are a guide, not a forecast.
    """
    tolerances = np.asarray(tolerances, dtype=float)
    limit = np.inf if force_tolerance is None else force_tolerance
    open_ = np.flatnonzero(recorded.force_bound <= limit)
    order = open_[np.argsort(recorded.bound[open_])]
    kept = np.searchsorted(recorded.bound[order], tolerances, side="right")
    misses = _misses(recorded.scale[order], recorded.freedom[order], tolerances, kept)
    labels = len(recorded) - kept
    each = float("nan") if cost is None else cost.each_s
    return Curve(tolerances, labels, labels * each, misses)


def _misses(
    scale: np.ndarray, freedom: np.ndarray, tolerances: np.ndarray, kept: np.ndarray
) -> np.ndarray:
    """Sum P(|e| > tolerance) over the first `kept` frames (T,) of `scale`, `freedom` (S,).

    The tail is looked up in a table over log(tolerance/scale) and 1/ν.
    """
    per_cell = (CELLS - 1) / np.log(LARGEST / SMALLEST)
    rows, row = np.unique(np.rint(PER_FREEDOM / freedom), return_inverse=True)
    ratio = SMALLEST * np.exp(np.arange(CELLS) / per_cell)
    table = 2 * special.stdtr((PER_FREEDOM / np.maximum(rows, 1))[:, None], -ratio).ravel()
    first = np.rint(np.log(np.maximum(scale, 1e-300) * SMALLEST) * per_cell).astype(np.int64)
    at = np.rint(np.log(np.maximum(tolerances, 1e-300)) * per_cell).astype(np.int64)
    row *= CELLS
    return np.array(
        [
            table[row[:n] + np.clip(cell - first[:n], 0, CELLS - 1)].sum()
            for cell, n in zip(at, kept, strict=True)
        ]
    )


def preview(waiting: Sequence[Query], probability: float, cost: Cost | None) -> Preview:
    """Return the waiting frames less likely than `probability` to be right, and their time.

    Exactly those that `ApplyThreshold` approves.
    """
    ids = tuple(q.id for q in waiting if q.probability < probability)
    return Preview(ids, float("nan") if cost is None else len(ids) * cost.each_s)
