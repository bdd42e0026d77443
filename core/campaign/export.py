"""Write a campaign as extended XYZ: every stored frame, with its σ, decision and label."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from core.campaign import extxyz
from core.campaign.reader import CampaignReader
from core.campaign.state import Query
from core.campaign.store import Frame, LabelRow
from core.structures import Structure


def export(directory: str | Path, path: str | Path) -> int:
    """Write all frames that were run; return how many.

    Per frame: step, time_fs, kind, rewound, snapshot, energy (predicted, offset included), σ,
    probability, bounds; where it was flagged also query, status, reasons, decided_by; where it was
    labelled REF_energy, REF_forces and the fingerprint, and by_hand if the label was imported.

    Raises:
        InputError: the file's suffix is not that of extended XYZ.
    """
    with CampaignReader(directory) as reader:
        return extxyz.save(path, _frames(reader))


def _frames(reader: CampaignReader) -> Iterator[str]:
    queries = {q.frame_id: q for q in reader.state().queue}
    labels = {label.frame_id: label for label in reader.labels()}
    for frame_id in reader.frames_since(1)["id"].tolist():
        yield frame_text(
            reader.structure, reader.frame(frame_id), queries.get(frame_id), labels.get(frame_id)
        )


def frame_text(
    structure: Structure, frame: Frame, query: Query | None, label: LabelRow | None
) -> str:
    """Return one frame in extended XYZ."""
    info: dict[str, Any] = {
        "step": frame.step, "time_fs": frame.time, "kind": frame.kind, "rewound": frame.rewound,
        "steered": frame.steered, "snapshot": frame.snapshot, "energy": frame.energy,
        "offset": frame.offset, "temperature_K": frame.temperature,
        "sigma_energy": frame.sigma_energy, "sigma_force_max": frame.sigma_force,
        "probability": frame.probability, "energy_bound": frame.energy_bound,
        "force_bound": frame.force_bound, "within": frame.within, "novelty": frame.novelty,
        "charge": structure.charge, "spin": structure.spin,
    }  # fmt: skip
    columns = {"pos": frame.positions, "forces": frame.forces, "sigma_forces": frame.sigma_atoms}
    if query is not None:
        info |= {
            "query": query.id, "status": query.status, "reasons": " ".join(query.reasons),
            "decided_by": query.decided_by or "", "energy_tolerance": query.energy_tolerance,
            "by_hand": query.by_hand,
        }  # fmt: skip
    if frame.stress is not None:
        info |= {
            "stress": _nine(frame.stress), "sigma_stress": frame.sigma_stress,
            "stress_bound": frame.stress_bound,
        }  # fmt: skip
    if label is not None:
        info |= {"REF_energy": label.energy, "fingerprint": label.fingerprint}
        if label.stress is not None:
            info["REF_stress"] = _nine(label.stress)
        columns["REF_forces"] = label.forces
    return extxyz.write(frame.of(structure), info, columns)


def _nine(stress: np.ndarray) -> str:
    return " ".join(f"{value:.10g}" for value in stress.ravel())
