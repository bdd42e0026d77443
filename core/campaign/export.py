"""Write a campaign as extended XYZ: every stored frame, with its σ, decision and label.

Text always stands in quotes, so that no reader takes a word for a truth value.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from core.campaign.reader import CampaignReader
from core.campaign.state import Query
from core.campaign.store import Frame, LabelRow
from core.errors import InputError
from core.structures import Structure

SUFFIXES = (".extxyz", ".xyz")


def export(directory: str | Path, path: str | Path) -> int:
    """Write all frames that were run; return how many.

    Per frame: step, time_fs, kind, rewound, snapshot, energy (predicted, offset included), σ,
    probability, bounds; where it was flagged also query, status, reasons, decided_by; where it was
    labelled REF_energy, REF_forces and the fingerprint.

    Raises:
        InputError: the file's suffix is not that of extended XYZ.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path.name}: campaigns are exported as extended XYZ; "
            f"give a name ending in {' or '.join(SUFFIXES)}."
        )
    reader = CampaignReader(directory)
    part = path.with_name(path.name + ".part")
    count = 0
    with open(part, "w", encoding="utf-8") as file:
        for text in _frames(reader):
            file.write(text)
            count += 1
    part.replace(path)
    reader.close()
    return count


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
        "force_bound": frame.force_bound, "charge": structure.charge, "spin": structure.spin,
    }  # fmt: skip
    columns = {"pos": frame.positions, "forces": frame.forces, "sigma_forces": frame.sigma_atoms}
    if query is not None:
        info |= {
            "query": query.id, "status": query.status, "reasons": " ".join(query.reasons),
            "decided_by": query.decided_by or "", "energy_tolerance": query.energy_tolerance,
        }  # fmt: skip
    if label is not None:
        info |= {"REF_energy": label.energy, "fingerprint": label.fingerprint}
        columns["REF_forces"] = label.forces
    return _xyz(structure, info, columns)


def _xyz(structure: Structure, info: dict[str, Any], columns: dict[str, np.ndarray]) -> str:
    tables = [np.reshape(values, (len(structure), -1)) for values in columns.values()]
    kinds = [f"{name}:R:{t.shape[1]}" for name, t in zip(columns, tables, strict=True)]
    head = {"Properties": ":".join(["species:S:1", *kinds])}
    words = [f"{name}={value}" for name, value in head.items()]
    words.append(f'pbc="{" ".join("T" if p else "F" for p in structure.pbc)}"')
    if any(structure.pbc):
        words.insert(0, f'Lattice="{" ".join(f"{x:.10g}" for x in structure.cell.ravel())}"')
    words += [f"{name}={_value(value)}" for name, value in info.items()]
    rows = np.hstack(tables)
    lines = [
        f"{chemical_symbols[z]:2s} " + " ".join(f"{x:.10g}" for x in row)
        for z, row in zip(structure.numbers, rows, strict=True)
    ]
    return "\n".join([str(len(structure)), " ".join(words), *lines]) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, str):
        clean = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
        return f'"{clean}"'
    if isinstance(value, bool):
        return "T" if value else "F"
    return f"{value:.10g}" if isinstance(value, float) else str(value)
