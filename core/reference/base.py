"""What all references share: the check of a label against physics, and its file.

A label is one .npz without pickles; what cannot be a gradient of an energy is refused.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from core.contracts import Label
from core.errors import LabelError
from core.structures import Structure

ASYMMETRY = 1e-3
"""Of a stress, relative to its largest component; and eV/Å³ below which none counts."""
NOISE_ABSOLUTE = 0.01
"""Net force and torque a label may carry for each atom, eV/Å: coarse DFT grids are let pass."""

NOISE_RELATIVE = 0.02
"""The same as a fraction of the root mean square force. Published DFT forces stay below 0.001,
forces permuted among the atoms of ethanol or a drug-like molecule above 0.04."""


def check_charge(structure: Structure, charge: int, spin: int) -> None:
    """Raise `LabelError` where a structure is not of the charge and spin of its reference."""
    if (structure.charge, structure.spin) != (charge, spin):
        raise LabelError(
            f"The structure has charge {structure.charge} and {structure.spin} unpaired electrons, "
            f"the reference was set up for {charge} and {spin}; labels of both must not be mixed.",
            kind="unsupported",
        )


def validate(label: Label) -> Label:
    """Return `label` if its forces can be minus the gradient of an energy.

    Without an outer field the forces sum to zero, and on a molecule so do their torques.
    Permuted forces keep their sum but not their torque (except in a diatomic molecule).

    Raises:
        LabelError: of kind "rejected", saying which of the conditions does not hold.
    """
    n = len(label.structure)
    if np.shape(label.forces) != (n, 3):
        raise _rejected(f"it has forces of shape {np.shape(label.forces)}, not ({n}, 3)")
    if not (np.isfinite(label.energy) and np.isfinite(label.forces).all()):
        raise _rejected("it holds numbers that are not finite")
    if label.stress is not None:
        _check_stress(label.stress)
    limit = NOISE_ABSOLUTE + NOISE_RELATIVE * float(np.sqrt((label.forces**2).sum() / n))
    net = float(np.linalg.norm(label.forces.sum(0)) / np.sqrt(n))
    if net > limit:
        raise _rejected(
            f"its forces do not sum to zero ({net:.3f} eV/Å for each of √N atoms, at most "
            f"{limit:.3f} is accepted)"
        )
    if not any(label.structure.pbc):
        _check_torque(label, limit)
    return label


def _check_stress(stress: np.ndarray) -> None:
    if np.shape(stress) != (3, 3):
        raise _rejected(f"it has a stress of shape {np.shape(stress)}, not (3, 3)")
    if not np.isfinite(stress).all():
        raise _rejected("its stress holds numbers that are not finite")
    lopsided = float(np.abs(stress - stress.T).max())
    if lopsided > ASYMMETRY * max(float(np.abs(stress).max()), ASYMMETRY):
        raise _rejected(f"its stress is not symmetric (by {lopsided:.2g} eV/Å³)")


def _check_torque(label: Label, limit: float) -> None:
    arms = label.structure.positions - label.structure.positions.mean(0)
    length = float(np.sqrt((arms**2).sum()))
    if length == 0.0:
        return
    torque = float(np.linalg.norm(np.cross(arms, label.forces).sum(0))) / length
    if torque > limit:
        raise _rejected(
            f"its forces would spin the molecule (net torque over lever arm {torque:.3f} eV/Å, at "
            f"most {limit:.3f} is accepted), as when forces are assigned to the wrong atoms"
        )


def _rejected(what: str) -> LabelError:
    return LabelError(
        f"The label contradicts itself: {what}. It is not learned from; check the reference, "
        "then label the frame again or skip it.",
        kind="rejected",
    )


def label_path(directory: Path, structure: Structure, fingerprint: str) -> Path:
    """Return where the label of `structure` at this level of theory is or will be stored."""
    level = hashlib.sha256(fingerprint.encode()).hexdigest()[:12]
    return directory / f"{structure.key}-{level}.npz"


def save_label(path: Path, label: Label) -> None:
    """Write `label` so that the file is whole or absent, also after a power cut.

    Only one process at a time may write a path.
    """
    part = path.with_name(path.name + ".part")
    structure = label.structure
    fields: dict[str, Any] = {
        "energy": label.energy, "forces": label.forces, "fingerprint": label.fingerprint,
        "wall_s": label.wall_s, "numbers": structure.numbers, "positions": structure.positions,
        "cell": structure.cell, "pbc": structure.pbc, "charge": structure.charge,
        "spin": structure.spin, "fixed": np.array(structure.fixed, dtype=int),
    }  # fmt: skip
    if label.stress is not None:
        fields["stress"] = label.stress
    with open(part, "wb") as file:
        np.savez(file, allow_pickle=False, **fields)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_label(path: str | Path) -> Label:
    """Read what `save_label` wrote.

    Raises:
        LabelError: the file is damaged.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            data = dict(archive)
        return Label(
            structure=_structure(data),
            energy=float(data["energy"]),
            forces=data["forces"],
            fingerprint=str(data["fingerprint"]),
            wall_s=float(data["wall_s"]),
            stress=data.get("stress"),
        )
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise LabelError(
            f"The stored label {Path(path).name} is damaged ({error}); remove the file to have "
            "it computed again.",
            kind="crashed",
        ) from error


def _structure(data: dict[str, np.ndarray]) -> Structure:
    a, b, c = (bool(p) for p in data["pbc"])
    return Structure(
        numbers=data["numbers"],
        positions=data["positions"],
        cell=data["cell"],
        pbc=(a, b, c),
        charge=int(data["charge"]),
        spin=int(data["spin"]),
        fixed=tuple(int(i) for i in data["fixed"]),
    )
