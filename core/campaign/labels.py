"""Labels in extended XYZ: what a frame says of its energy, forces, stress and level of theory.

Files are foreign: nothing in them is evaluated, and no number is taken for a label that may be a
model's prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.campaign import extxyz
from core.campaign.extxyz import XyzFrame
from core.contracts import Label
from core.errors import InputError, LabelError, StructureError
from core.reference.base import validate
from core.structures import Structure, check
from core.units import ENERGY_UNITS, FORCE_UNITS

MAX_FILE_BYTES = 32 * 1024 * 1024
UNSAID = "not said"
"""Level of theory of labels that do not say theirs."""


@dataclass(frozen=True)
class Declared:
    """What the person says of a file; where the file says it too, both must agree.

    Attributes:
        energy_unit, force_unit: keys of `core.units.ENERGY_UNITS` and `FORCE_UNITS`; eV and eV/Å
            where neither says it. fingerprint: level of theory.
    """

    energy_unit: str | None = None
    force_unit: str | None = None
    fingerprint: str | None = None


def parse(data: bytes, filename: str) -> list[XyzFrame]:
    """Return the frames of a file.

    Raises:
        InputError: it is not extended XYZ, too large, or empty.
    """
    if Path(filename).suffix.lower() not in extxyz.SUFFIXES:
        raise InputError(
            f"{filename}: labels are read from extended XYZ ({', '.join(extxyz.SUFFIXES)})."
        )
    if len(data) > MAX_FILE_BYTES:
        raise InputError(
            f"{filename} is larger than {MAX_FILE_BYTES >> 20} MB; import it in parts."
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{filename} is not a text file; nothing in it was opened.") from error
    try:
        frames = list(extxyz.read(text))
    except StructureError as error:
        raise InputError(f"{filename} is not extended XYZ: {error}") from error
    if not frames:
        raise InputError(f"{filename} is empty; it must hold at least one label.")
    return frames


def prefix(given: XyzFrame) -> str:
    """Return what stands before the names of the labels in a frame."""
    return "REF_" if "REF_energy" in given.info or "REF_forces" in given.columns else ""


def energy_and_forces(given: XyzFrame, declared: Declared) -> tuple[float, np.ndarray]:
    """Return energy (eV) and forces (N, 3) (eV/Å)."""
    energy, forces = (f"{prefix(given)}{name}" for name in ("energy", "forces"))
    if energy not in given.info:
        raise InputError("it has no energy; add energy=... (eV) to its comment line")
    if forces not in given.columns:
        raise InputError(
            f"it has no forces; add the columns {forces}:R:3 (eV/Å) to Properties and the atoms"
        )
    per_eV = _unit(given, declared, "energy_unit", ENERGY_UNITS)
    per_eV_A = _unit(given, declared, "force_unit", FORCE_UNITS)
    try:
        value = float(given.info[energy])
    except ValueError as error:
        raise InputError(
            f"its energy is {given.info[energy][:40]!r}, which is not a number"
        ) from error
    return value * per_eV, given.columns[forces] * per_eV_A


def stress(given: XyzFrame) -> np.ndarray | None:
    """Return the stress (3, 3), eV/Å³, if the frame has one of nine numbers."""
    words = given.info.get(f"{prefix(given)}stress", "").split()
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError:
        return None
    usable = numbers.shape == (9,) and bool(np.isfinite(numbers).all())
    return numbers.reshape(3, 3) if usable else None


def said(given: XyzFrame, declared: Declared, name: str) -> str | None:
    """Return what the file or the person says of `name`.

    Raises:
        InputError: they do not agree.
    """
    found, by_person = given.info.get(name) or None, getattr(declared, name)
    if found is not None and by_person is not None and found != by_person:
        raise InputError(
            f"it says {name}={found[:120]!r}, but {by_person!r} was declared; correct the one "
            "that is wrong"
        )
    return found or by_person


def _unit(given: XyzFrame, declared: Declared, name: str, units: dict[str, float]) -> float:
    unit = said(given, declared, name) or next(iter(units))
    if unit not in units:
        raise InputError(f"{name}={unit[:20]!r} is not known; accepted: {', '.join(units)}")
    return units[unit]


def structure_of(given: XyzFrame) -> Structure:
    """Return the structure of a frame.

    Raises:
        InputError: it has no positions, or a cell that is not nine numbers.
    """
    if "pos" not in given.columns:
        raise InputError("it has no positions; add the columns pos:R:3 (Å) to Properties")
    words = given.info.get("Lattice", "").split()
    pbc = [word in ("T", "True", "1") for word in given.info.get("pbc", "").split()]
    try:
        cell = np.array([float(word) for word in words]).reshape(3, 3) if words else None
        charge, spin = (int(given.info.get(name) or 0) for name in ("charge", "spin"))
    except ValueError as error:
        raise InputError(
            "its Lattice, charge or spin is not made of numbers; Lattice takes nine"
        ) from error
    if len(pbc) != 3:
        pbc = [cell is not None] * 3
    if cell is None:
        cell = np.zeros((3, 3))
    positions = given.columns["pos"]
    return check(Structure(given.numbers, positions, cell, (pbc[0], pbc[1], pbc[2]), charge, spin))


def read(data: bytes, filename: str, declared: Declared = Declared()) -> list[Label]:
    """Return the labels of a file; frames of a campaign that were not labelled are passed over.

    Raises:
        InputError: which frame cannot be taken, and why.
    """
    frames = parse(data, filename)
    if any(prefix(f) for f in frames) or any("sigma_energy" in f.info for f in frames):
        frames = [f for f in frames if prefix(f)]
    if not frames:
        raise InputError(f"{filename}: none of its frames has a label (REF_energy, REF_forces).")
    return [_label(f, filename, declared) for f in frames]


def _label(given: XyzFrame, filename: str, declared: Declared) -> Label:
    try:
        structure = structure_of(given)
        energy, forces = energy_and_forces(given, declared)
        level = said(given, declared, "fingerprint") or UNSAID
        return validate(Label(structure, energy, forces, level, stress=stress(given)))
    except (InputError, LabelError) as error:
        raise InputError(f"{filename}: the frame at line {given.line}: {error}") from error
