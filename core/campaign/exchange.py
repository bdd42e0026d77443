"""Frames out to be labelled elsewhere, and their labels back in, as extended XYZ.

A file that comes in is foreign: it is parsed as text, and each label is held against the frame it
claims to belong to before it is offered to the worker. All of a file is taken, or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase.data import chemical_symbols
from ase.geometry import find_mic
from scipy.optimize import linear_sum_assignment

from core.campaign import events as ev
from core.campaign import extxyz, labels
from core.campaign.extxyz import XyzFrame
from core.campaign.labels import Declared
from core.campaign.reader import CampaignReader, Commander
from core.campaign.state import IN_FLIGHT, WITHOUT_LABEL, Query
from core.campaign.store import Frame
from core.contracts import Label
from core.errors import InputError, LabelError
from core.reference.base import validate
from core.structures import Structure

GEOMETRY_TOLERANCE = 1e-4
"""Å that an atom may lie off its stored place: coordinates written with four decimals pass."""
LARGEST_ENERGY_ERROR = 1.0
"""eV per atom that a label may differ from a trusted model; another unit differs by far more."""
SAME_FORCES = 1e-5
"""eV/Å below which forces are the model's own prediction, as far as files keep digits."""
MOST_EXCHANGED = 2000
"""Atoms of one element up to which an exchange of their forces is looked for."""
LISTED = 5
"""Frames whose trouble a refusal spells out."""

Chosen = Literal["waiting", "flagged"]


@dataclass(frozen=True)
class Offer:
    """Labels that passed every check, for `hand_over`: one for each of the queries `ids`."""

    ids: tuple[int, ...]
    labels: tuple[Label, ...]
    source: str


# Out


def export_frames(reader: CampaignReader, path: str | Path, chosen: Chosen = "waiting") -> int:
    """Write frames to be labelled elsewhere; return how many.

    "flagged" writes every flagged frame that has no label and is not at the reference. Add the
    labels as energy and forces (and stress, where it has a tolerance), or all with REF_ before;
    keep the other fields and the atoms' order and places.

    Raises:
        InputError: no such frame, or the file's suffix is not that of extended XYZ.
    """
    statuses = ("waiting",) if chosen == "waiting" else WITHOUT_LABEL
    queries = [q for q in reader.state().queue if q.status in statuses]
    if not queries:
        raise InputError(f"No frame is {' or '.join(statuses)}; there is nothing to label.")
    return extxyz.save(path, (frame_text(reader, query) for query in queries))


def frame_text(reader: CampaignReader, query: Query) -> str:
    """Return a frame with all that is needed to recognise it again."""
    structure = reader.structure_at(query.frame_id)
    info: dict[str, Any] = {
        "campaign": reader.id, "query": query.id, "structure": query.key, "step": query.step,
        "reasons": " ".join(query.reasons), "charge": structure.charge, "spin": structure.spin,
        "fingerprint": reader.fingerprint or "", "energy_unit": "eV", "force_unit": "eV/A",
    }  # fmt: skip
    return extxyz.write(structure, info, {"pos": structure.positions})


# In


def hand_over(commander: Commander, offer: Offer, who: str) -> int:
    """Post labels for the worker, which takes them all or refuses; return the command's id."""
    command = ev.ImportLabels(ids=offer.ids, source=offer.source, who=who)
    return commander.offer(command, offer.labels)


def read_labels(
    reader: CampaignReader, data: bytes, filename: str, declared: Declared | None = None
) -> Offer:
    """Check a file of labels against the campaign.

    Energies in eV and forces in eV/Å, or as the file (energy_unit, force_unit) or `declared` says.
    A frame is known by its `query`; without one, by its geometry.

    Raises:
        InputError: the file cannot be read, or any label in it cannot be accepted; the message
            says why for each of the first frames.
    """
    declared = declared or Declared()
    frames = labels.parse(data, filename)
    desk = _Desk(reader, declared)
    accepted: dict[int, Label] = {}
    troubles = []
    for number, frame in enumerate(frames, 1):
        try:
            query, label = desk.take(frame)
            if query.id in accepted:
                raise InputError(f"frame {query.id} is labelled a second time; keep one of them")
            accepted[query.id] = label
        except (InputError, LabelError) as error:
            troubles.append(f"Label {number} (line {frame.line}): {str(error).rstrip('.')}.")
    if troubles:
        raise InputError(_refusal(filename, troubles, len(frames)))
    return Offer(tuple(accepted), tuple(accepted.values()), Path(filename).name[:200])


def _refusal(filename: str, troubles: list[str], n: int) -> str:
    more = f" And {len(troubles) - LISTED} more." if len(troubles) > LISTED else ""
    return (
        f"{filename}: nothing was imported, {len(troubles)} of {n} labels cannot be accepted. "
        + " ".join(troubles[:LISTED])
        + more
    )


class _Desk:
    """Turns frames of a file into labels of one campaign, or says why not."""

    def __init__(self, reader: CampaignReader, declared: Declared) -> None:
        self._reader, self._declared = reader, declared
        self._queue = reader.state().queue
        self._fingerprint = reader.fingerprint
        self._places: np.ndarray | None = None

    def take(self, given: XyzFrame) -> tuple[Query, Label]:
        """Return the query and its label.

        Raises:
            InputError, LabelError: why it cannot be accepted.
        """
        _check_origin(given, self._reader)
        query, frame = self._recognise(given)
        _check_status(query)
        structure = frame.of(self._reader.structure)
        energy, forces = labels.energy_and_forces(given, self._declared)
        fingerprint = self._level(given)
        stress = self._stress(given)
        label = validate(Label(structure, energy, forces, fingerprint, stress=stress))
        _check_against_model(label, frame, query)
        return query, label

    def _recognise(self, given: XyzFrame) -> tuple[Query, Frame]:
        structure, named = self._reader.structure, given.info.get("query")
        query = self._nearest(given) if named is None else self._named(named)
        frame = self._reader.frame(query.frame_id)
        why = difference(given, frame.of(structure))
        if why is None:
            return query, frame
        if named is None:
            raise InputError(
                "it names no query, and no flagged frame has its geometry; the nearest is "
                f"{query.id}, but {why}. Keep the field query=... of the exported frame"
            )
        raise InputError(f"it is not the geometry of frame {query.id}: {why}")

    def _nearest(self, given: XyzFrame) -> Query:
        """Return the query whose stored atoms lie nearest."""
        if not self._queue:
            raise InputError("no frame of this campaign has been flagged yet")
        positions = given.columns.get("pos")
        if self._places is None:
            self._places = np.array([self._reader.frame(q.frame_id).positions for q in self._queue])
        if positions is None or positions.shape != self._places.shape[1:]:
            return self._queue[-1]
        shifts = (positions - self._places).reshape(-1, 3)
        apart = _apart(shifts, self._reader.structure).reshape(len(self._queue), -1)
        return self._queue[int(np.argmin(np.nan_to_num(apart, nan=np.inf).max(axis=1)))]

    def _named(self, text: str) -> Query:
        if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:12]) <= len(self._queue):
            raise InputError(
                f"query={text[:20]} names none of the {len(self._queue)} flagged frames"
            )
        return self._queue[int(text[:12]) - 1]

    def _stress(self, given: XyzFrame) -> np.ndarray | None:
        """Return the stress (3, 3), eV/Å³, of a campaign that has a tolerance on it."""
        if self._reader.settings.trust.stress_tolerance is None:
            return None
        found = labels.stress(given)
        if found is None:
            raise InputError(
                f"this campaign has a tolerance on stress; add {labels.prefix(given)}stress with "
                "its nine components (eV/Å³, tension positive), as ASE writes them"
            )
        return found

    def _level(self, given: XyzFrame) -> str:
        found = labels.said(given, self._declared, "fingerprint")
        wanted = self._fingerprint
        if wanted is None:
            raise InputError(
                "this campaign's level of theory is not known before its worker first ran; "
                "start it once"
            )
        if found is None:
            raise InputError(
                f"it does not say its level of theory; this campaign's labels are {wanted!r}. If "
                "the label was computed so, add fingerprint=... to its comment line, or declare it"
            )
        if found != wanted:
            raise InputError(
                f"it was computed with {found[:120]!r}, this campaign's labels with {wanted!r}; "
                "they must not be mixed"
            )
        return found


def _check_origin(given: XyzFrame, reader: CampaignReader) -> None:
    found = given.info.get("campaign")
    if found is not None and found != reader.id:
        raise InputError(
            f"it belongs to the campaign {found[:20]}, this is {reader.id}; import it there"
        )
    for name in ("charge", "spin"):
        text, here = given.info.get(name), getattr(reader.structure, name)
        if text is not None and text != str(here):
            raise InputError(f"it has {name} {text[:20]}, this campaign has {here}")


def _check_status(query: Query) -> None:
    if query.status in IN_FLIGHT:
        raise InputError(
            f"frame {query.id} is at the reference already; wait for its label, or stop the "
            "campaign first"
        )
    if query.status not in WITHOUT_LABEL:
        raise InputError(f"frame {query.id} has a label already; a label is never replaced")


def difference(given: XyzFrame, stored: Structure) -> str | None:
    """Say how a geometry differs from a stored one; None where it is the same, atom by atom."""
    if len(given) != len(stored):
        return f"it has {len(given)} atoms, not {len(stored)}"
    if (given.numbers != stored.numbers).any():
        return _other_atoms(given.numbers, stored.numbers)
    positions = given.columns.get("pos")
    if positions is None or positions.shape[1] != 3 or not np.isfinite(positions).all():
        return "it has no column pos:R:3 of finite numbers"
    if (why := _other_cell(given, stored)) is not None:
        return why
    apart = _apart(positions - stored.positions, stored)
    worst = int(np.argmax(apart))
    if apart[worst] <= GEOMETRY_TOLERANCE:
        return None
    name = f"{chemical_symbols[stored.numbers[worst]]}{worst + 1}"
    return (
        f"atom {name} lies {apart[worst]:.2g} Å from its place (at most {GEOMETRY_TOLERANCE:g} Å "
        f"is accepted){_explanation(positions, stored)}"
    )


def _other_atoms(given: np.ndarray, stored: np.ndarray) -> str:
    at = int(np.flatnonzero(given != stored)[0])
    found, wanted = (chemical_symbols[numbers[at]] for numbers in (given, stored))
    if (np.sort(given) == np.sort(stored)).all():
        return f"its atoms are in another order: atom {at + 1} is {found}, not {wanted}"
    return f"atom {at + 1} is {found}, not {wanted}"


def _other_cell(given: XyzFrame, stored: Structure) -> str | None:
    if not any(stored.pbc):
        return None
    try:
        cell = np.array([float(word) for word in given.info["Lattice"].split()]).reshape(3, 3)
    except (KeyError, ValueError):
        return "it has no Lattice of nine numbers, but the campaign is periodic"
    off = float(np.abs(cell - stored.cell).max())
    if not off <= GEOMETRY_TOLERANCE:
        return f"its cell differs by {off:.2g} Å"
    return None


def _apart(shift: np.ndarray, stored: Structure) -> np.ndarray:
    """Return the distance (N,) of each atom from its place, through the periodic boundaries."""
    if any(stored.pbc):
        return np.asarray(find_mic(shift, stored.cell, stored.pbc)[1])
    return np.linalg.norm(shift, axis=1)


def _explanation(positions: np.ndarray, stored: Structure) -> str:
    """Say what may have happened to a geometry that is not in its place."""
    if any(stored.pbc) or len(stored) > 500:
        return ""
    given, known = _distances(positions), _distances(stored.positions)
    if np.abs(given - known).max() <= 5 * GEOMETRY_TOLERANCE:
        return (
            "; the molecule was turned or shifted as a whole, and its forces with it: have the "
            "program keep the input orientation"
        )
    if np.abs(np.sort(given, axis=None) - np.sort(known, axis=None)).max() < 0.001:
        return "; atoms of one element have changed places"
    return ""


def _distances(positions: np.ndarray) -> np.ndarray:
    return np.linalg.norm(positions[:, None] - positions[None], axis=-1)


# Against the model's own prediction


def _check_against_model(label: Label, frame: Frame, query: Query) -> None:
    """Refuse what the model shows to be another quantity, another unit or other atoms' forces."""
    error = abs(label.energy - frame.energy)
    same = bool(np.isclose(label.energy, frame.energy, rtol=1e-9, atol=1e-7))
    if same and np.abs(label.forces - frame.forces).max() < SAME_FORCES:
        raise InputError(
            "its numbers are the model's own prediction, not a label; give those of the reference"
        )
    if query.snapshot > 0 and error > LARGEST_ENERGY_ERROR * len(label.forces):
        raise InputError(
            f"its energy is {label.energy:.6g} eV, the model says {frame.energy:.6g} eV: check the "
            "unit (declare it with energy_unit) and that it is the total energy"
        )
    _check_forces(label.forces, frame.forces, label.structure.numbers)


def _check_forces(given: np.ndarray, predicted: np.ndarray, numbers: np.ndarray) -> None:
    """Compare forces (N, 3) with those predicted: sign, unit, and the atoms they belong to."""
    sizes = float(np.linalg.norm(given)), float(np.linalg.norm(predicted))
    if min(sizes) == 0.0:
        return
    likeness = float((given * predicted).sum()) / (sizes[0] * sizes[1])
    if likeness < -0.8:
        raise InputError(
            "its forces point against those of the model: they look like gradients; change their "
            "sign"
        )
    ratio = sizes[0] / sizes[1]
    if likeness > 0.8 and not 0.2 < ratio < 5:
        raise InputError(
            f"its forces are {ratio:.3g} times those of the model: check the unit (declare it with "
            "force_unit)"
        )
    if likeness < 0.6 and _likeness_permuted(given, predicted, numbers) > 0.95:
        raise InputError(
            "its forces would fit the model if atoms of one element changed places: they belong to "
            "other atoms; write them in the order of the positions"
        )


def _likeness_permuted(given: np.ndarray, predicted: np.ndarray, numbers: np.ndarray) -> float:
    """Return the cosine between forces after the best exchange of atoms of one element."""
    moved = np.empty_like(given)
    for element in np.unique(numbers):
        own = np.flatnonzero(numbers == element)
        if len(own) > MOST_EXCHANGED:
            moved[own] = given[own]
            continue
        rows, columns = linear_sum_assignment(-(predicted[own] @ given[own].T))
        moved[own[rows]] = given[own[columns]]
    return float((moved * predicted).sum() / (np.linalg.norm(moved) * np.linalg.norm(predicted)))
