"""Was the promise kept? Recompute trajectory frames with the reference and compare.

Error = reference minus the prediction stored when the frame was written, by the weights and the
offset in use then. Labelled, rewound, steered, untrusted and flagged frames are left out and
counted. Audit labels are cached in the campaign directory, apart from those that were learned.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from core.campaign import events as ev
from core.campaign import store as st
from core.campaign.loop import advance
from core.campaign.reader import CampaignReader
from core.campaign.state import LABELLED
from core.contracts import Label, Potential
from core.errors import InputError
from core.potentials import load as load_potential
from core.reference import make as make_reference
from core.reference.submitter import Submitter
from core.structures import Structure

FOLDER = "audit"
RESAMPLES = 2000
EXCLUDED = ("labelled", "rewound", "steered", "untrusted", "flagged")


@dataclass(frozen=True)
class Tolerances:
    """In force when a frame was judged: eV, eV/Å, eV/Å³."""

    energy: float
    force: float | None
    stress: float | None = None


@dataclass(frozen=True)
class Errors:
    """Errors of S frames in order of their steps.

    Attributes:
        energy: (S,) reference minus prediction, eV. force: (S,) largest atomic force error, eV/Å.
        tolerances: of each frame. bounds: (S,) half-width of the energy interval shown, eV.
        stress: (S,) largest error of a stress component, eV/Å³; nan where it was not learned.
    """

    energy: np.ndarray
    force: np.ndarray
    tolerances: tuple[Tolerances, ...]
    bounds: np.ndarray
    stress: np.ndarray


@dataclass(frozen=True)
class Audit:
    """What `flywise audit` reports. Energies in eV, forces in eV/Å.

    Attributes:
        within_tolerance: fraction of `frames` with |energy error| below the tolerance then in
            force. interval: its 95 % block-bootstrap interval.
        within_bound: fraction inside the interval that was shown beside the frame.
        rmse_untuned_eV: of the foundation model with its own best constant on the same frames.
        force_within_tolerance, force_mean_max_error: of the largest atomic force error.
        both_within_tolerance: fraction with energy and force within tolerance.
        stress_within_tolerance, stress_mean_max_error (eV/Å³): of the largest component's error;
            None without a tolerance on it.
        failed: frames the reference could not compute.
        errors_eV: of the energy of each frame, in order of their steps.
    """

    frames: int
    within_tolerance: float
    interval: tuple[float, float]
    rmse_eV: float
    excluded: dict[str, int]
    failed: int
    tolerance_eV: float
    within_bound: float
    rmse_untuned_eV: float
    force_within_tolerance: float | None
    force_mean_max_error: float
    both_within_tolerance: float
    mean_error_eV: float
    largest_error_eV: float
    block_length: int
    labels: int
    steps: int
    labels_per_step: float
    errors_eV: tuple[float, ...] = ()
    stress_within_tolerance: float | None = None
    stress_mean_max_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def correlation_time(values: np.ndarray) -> float:
    """Return 1 + 2 Σ ρ_k of a series (n,), summed until ρ first falls below zero (Geyer)."""
    n = len(values)
    if n < 3 or np.ptp(values) == 0:
        return 1.0
    centred = np.asarray(values, dtype=float) - np.mean(values)
    variance = float((centred**2).mean())
    time_ = 1.0
    for k in range(1, n // 2):
        rho = float((centred[:-k] * centred[k:]).sum() / (n * variance))
        if rho <= 0:
            break
        time_ += 2 * rho
    return time_


def block_bootstrap(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], float] = np.mean,
    *,
    block: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic of a correlated series (n,).

    Circular block bootstrap (Politis and Romano 1992): whole blocks of `block` neighbours are
    drawn, so that the correlation inside a block is kept.
    """
    n = len(values)
    if n == 0:
        return (float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    pieces = -(-n // block)
    starts = rng.integers(n, size=(resamples, pieces))
    index = (starts[:, :, None] + np.arange(block)) % n
    drawn = np.asarray(values)[index.reshape(resamples, -1)[:, :n]]
    results = np.array([statistic(row) for row in drawn])
    tail = 50 * (1 - confidence)
    low, high = np.percentile(results, [tail, 100 - tail])
    return float(low), float(high)


def block_length(errors: np.ndarray) -> int:
    """Return a block length of twice the correlation time of the errors (n,), at most n/4."""
    n = len(errors)
    return max(1, min(int(np.ceil(2 * correlation_time(errors))), n // 4 or 1))


def audit(
    directory: str | Path,
    every: int,
    *,
    processes: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Recompute the trajectory's frames at multiples of `every` steps.

    Args:
        progress: called with (frames done, frames in all).

    Raises:
        InputError: `every` fits no stored frame.
    """
    reader = CampaignReader(directory)
    stride = reader.settings.dynamics.check_every
    if every < 1 or every % stride:
        raise InputError(
            f"Frames are stored every {stride} steps, so that --every {every} has none at its "
            f"multiples; give {stride}, {2 * stride}, ..."
        )
    chosen, excluded = _choose(reader, every)
    labels = _recompute(reader, chosen, processes, progress)
    pairs = [(f, label) for f, label in zip(chosen, labels, strict=True) if label is not None]
    tolerances = _tolerances(reader)
    errors = Errors(
        energy=np.array([label.energy - f.energy for f, label in pairs]),
        force=np.array([_largest(label.forces - f.forces) for f, label in pairs]),
        tolerances=tuple(tolerances[f.id] for f, _ in pairs),
        bounds=np.array([f.energy_bound for f, _ in pairs]),
        stress=np.array([_stress_error(f, label) for f, label in pairs]),
    )
    untuned = _untuned(reader, pairs)
    report = summarise(errors, excluded, len(labels) - len(pairs), untuned, reader)
    reader.close()
    return report


def _largest(vectors: np.ndarray) -> float:
    return float(np.linalg.norm(vectors, axis=1).max())


def _stress_error(frame: st.Frame, label: Label) -> float:
    if frame.stress is None or label.stress is None:
        return float("nan")
    return float(np.abs(label.stress - frame.stress).max())


def _choose(reader: CampaignReader, every: int) -> tuple[list[st.Frame], dict[str, int]]:
    state = reader.state()
    labelled = {q.frame_id for q in state.queue if q.status in LABELLED}
    columns = reader.frames_since(1)
    excluded = dict.fromkeys(EXCLUDED, 0)
    chosen = []
    for i in np.flatnonzero(columns["step"] % every == 0):
        frame_id = int(columns["id"][i])
        why = (
            "labelled" if frame_id in labelled
            else "rewound" if columns["rewound"][i]
            else "steered" if columns["steered"][i]
            else str(columns["kind"][i])
        )  # fmt: skip
        if why == "trusted":
            chosen.append(reader.frame(frame_id))
        else:
            excluded[why] += 1
    return chosen, excluded


def _tolerances(reader: CampaignReader) -> dict[int, Tolerances]:
    """Return frame id -> tolerances in force when it was judged."""
    found = {}
    state = st.State(reader.settings, n_atoms=len(reader.structure))
    for _, event in reader.events_since(0):
        if isinstance(event, ev.FrameChecked):
            found[event.frame_id] = Tolerances(
                state.energy_tolerance, state.force_tolerance, state.stress_tolerance
            )
        state, _ = advance(state, event)
    return found


def _recompute(
    reader: CampaignReader,
    frames: list[st.Frame],
    processes: int,
    progress: Callable[[int, int], None] | None,
) -> list[Label | None]:
    structure, settings = reader.structure, reader.settings.labelling
    reference = make_reference(settings.reference, charge=structure.charge, spin=structure.spin)
    pool = Submitter(
        reader.directory / FOLDER,
        reference,
        processes=processes,
        time_limit_s=settings.time_limit_s,
    )
    results: list[Label | None] = [None] * len(frames)
    try:
        for i, frame in enumerate(frames):
            pool.submit(i, frame.of(structure))
        done = 0
        while done < len(frames):
            for key, result in pool.poll():
                results[cast(int, key)] = result if isinstance(result, Label) else None
                done += 1
            if progress is not None:
                progress(done, len(frames))
            time.sleep(0.02)
    finally:
        pool.close()
    return results


def _untuned(reader: CampaignReader, pairs: list[tuple[st.Frame, Label]]) -> float:
    if not pairs:
        return float("nan")
    settings = reader.settings.potential
    potential = cast(Potential, load_potential(settings.model, dtype=settings.dtype))
    structures: list[Structure] = [label.structure for _, label in pairs]
    predicted = potential.predict(structures, forces=False).energies
    return float(np.std(np.array([label.energy for _, label in pairs]) - predicted))


def summarise(
    errors: Errors, excluded: dict[str, int], failed: int, untuned: float, reader: CampaignReader
) -> Audit:
    """Return the figures of the audit; nan where no frame is left."""
    n = len(errors.energy)
    state = reader.state()
    size = np.abs(errors.energy)
    good = size < np.array([t.energy for t in errors.tolerances])
    limits = np.array([np.inf if t.force is None else t.force for t in errors.tolerances])
    good_force = errors.force < limits
    block = block_length(errors.energy)
    with_stress = state.stress_tolerance is not None
    stress_limits = np.array([np.inf if t.stress is None else t.stress for t in errors.tolerances])

    def mean(values: np.ndarray) -> float:
        return float(np.mean(values)) if n else float("nan")

    return Audit(
        frames=n,
        within_tolerance=mean(good),
        interval=block_bootstrap(good, block=block),
        rmse_eV=float(np.sqrt(mean(errors.energy**2))),
        excluded=excluded,
        failed=failed,
        tolerance_eV=state.energy_tolerance,
        within_bound=mean(size < errors.bounds),
        rmse_untuned_eV=untuned,
        force_within_tolerance=mean(good_force) if state.force_tolerance is not None else None,
        force_mean_max_error=mean(errors.force),
        both_within_tolerance=mean(good & good_force),
        mean_error_eV=mean(errors.energy),
        largest_error_eV=float(size.max()) if n else float("nan"),
        block_length=block,
        labels=state.n_labels,
        steps=state.step,
        labels_per_step=state.n_labels / state.step if state.step else float("nan"),
        errors_eV=tuple(float(e) for e in errors.energy),
        stress_within_tolerance=mean(errors.stress < stress_limits) if with_stress else None,
        stress_mean_max_error=mean(errors.stress) if with_stress else None,
    )
