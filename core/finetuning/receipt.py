"""The receipt of a fine-tuning: what moved and how far, errors before and after, what it took."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from core.contracts import LabelSet, Potential


@dataclass(frozen=True)
class Block:
    """One tensor of weights before and after.

    Attributes:
        part: of the network. count: numbers in it. moved: |Δθ|, Euclidean; relative: to |θ| before.
        before, after: hashes.
    """

    name: str
    part: str
    count: int
    moved: float
    relative: float
    before: str
    after: str

    @property
    def is_moved(self) -> bool:
        """Whether any number changed."""
        return self.before != self.after


@dataclass(frozen=True)
class Errors:
    """Errors on a set of labels: eV/atom and eV/Å.

    Attributes:
        energy: root mean square; energy_within: with the mean of each composition removed.
        force: root mean square of components; force_mae: their mean absolute error.
    """

    frames: int
    energy: float
    energy_within: float
    force: float
    force_mae: float


@dataclass(frozen=True)
class Receipt:
    """See the module.

    Attributes:
        settings: strategy and hyperparameters. labels: how many, of which level, and how they were
            split. isolated: report on the energies of isolated atoms. errors: name of a set ->
            (before, after). curve: one entry an epoch. parity: some force components, eV/Å, of
            the reference and of the model before and after, on labels it did not see if there are.
        notes: what the user should know.
    """

    settings: dict[str, Any]
    labels: dict[str, Any]
    isolated: dict[str, Any]
    blocks: tuple[Block, ...]
    errors: dict[str, tuple[Errors, Errors]]
    curve: tuple[dict[str, float], ...]
    seconds: float
    weights_before: str
    weights_after: str
    notes: tuple[str, ...] = field(default=())
    parity: dict[str, Any] = field(default_factory=dict)

    @property
    def moved(self) -> tuple[str, ...]:
        """Names of the blocks of which any number changed."""
        return tuple(b.name for b in self.blocks if b.is_moved)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def errors(potential: Potential, labels: LabelSet) -> Errors:
    """Return the errors of the weights and head in use."""
    predicted = potential.predict(labels.structures)
    assert predicted.forces is not None
    sizes = np.array([len(s) for s in labels.structures])
    energy = (predicted.energies - labels.energies) / sizes
    force = np.concatenate(
        [(p - f).ravel() for p, f in zip(predicted.forces, labels.forces, strict=True)]
    )
    return Errors(
        frames=len(labels),
        energy=_rms(energy),
        energy_within=_rms(energy - _means([s.formula for s in labels.structures], energy)),
        force=_rms(force),
        force_mae=float(np.abs(force).mean()),
    )


def parity(before: Potential, after: Potential, labels: LabelSet, *, most: int) -> dict[str, Any]:
    """Return at most `most` force components of reference, model before and after, eV/Å."""
    reference = np.concatenate([f.ravel() for f in labels.forces])
    some = np.linspace(0, len(reference) - 1, min(most, len(reference))).astype(int)
    found = {"reference": reference[some]}
    for name, potential in (("before", before), ("after", after)):
        forces = potential.predict(labels.structures).forces
        assert forces is not None
        found[name] = np.concatenate([f.ravel() for f in forces])[some]
    return {name: values.round(4).tolist() for name, values in found.items()}


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean())) if values.size else math.nan


def _means(groups: list[str], values: np.ndarray) -> np.ndarray:
    """Return for each value the mean of its group."""
    _, inverse = np.unique(groups, return_inverse=True)
    return (np.bincount(inverse, values) / np.bincount(inverse))[inverse]


def blocks(potential: Potential, before: torch.Tensor, after: torch.Tensor) -> tuple[Block, ...]:
    """Return what became of each block of weights between two (P,)."""
    parts = potential.parts()
    return tuple(
        Block(
            name=name,
            part=parts[name],
            count=len(before[where]),
            moved=float((after[where] - before[where]).norm()),
            relative=float(
                (after[where] - before[where]).norm() / before[where].norm().clamp(1e-12)
            ),
            before=_hash(before[where]),
            after=_hash(after[where]),
        )
        for name, where in potential.blocks().items()
    )


def _hash(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


def lines(receipt: Receipt) -> list[str]:
    """Return the receipt for a terminal."""
    said = receipt.labels
    split = f"{said['trained']} trained on, {said['validation']} to validate with"
    if said["rehearsed"]:
        split += f", {said['rehearsed']} frames rehearsed"
    shown = [
        f"strategy   {receipt.settings['strategy']}, {len(receipt.curve)} epochs in "
        f"{receipt.seconds:.0f} s",
        f"labels     {split}",
        _isolated_line(receipt.isolated),
    ]
    for part in dict.fromkeys(b.part for b in receipt.blocks):
        of_part = [b for b in receipt.blocks if b.part == part]
        moved = [b for b in of_part if b.is_moved]
        farthest = max((b.relative for b in moved), default=0.0)
        shown.append(
            f"{part:<10} {len(moved)} of {len(of_part)} blocks moved, by {100 * farthest:.2g} % at "
            "most"
        )
    shown.append("errors     RMSE before -> after; energies also without each composition's mean")
    for name, (before, after) in receipt.errors.items():
        shown.append(
            f"  {name} ({before.frames}): {1e3 * before.energy:.1f} -> {1e3 * after.energy:.1f} "
            f"({1e3 * before.energy_within:.1f} -> {1e3 * after.energy_within:.1f}) meV/atom, "
            f"{1e3 * before.force:.0f} -> {1e3 * after.force:.0f} meV/Å"
        )
    shown.append(f"weights    {receipt.weights_before} -> {receipt.weights_after}")
    return [*shown, *(f"note       {note}" for note in receipt.notes)]


def _isolated_line(isolated: dict[str, Any]) -> str:
    shifts = ", ".join(f"{k} {v['shift_eV']:+.3f}" for k, v in isolated["elements"].items())
    return (
        f"atoms      {isolated['how']} (shifts {shifts} eV): error "
        f"{1e3 * isolated['before_eV_per_atom']:.1f} -> "
        f"{1e3 * isolated['after_eV_per_atom']:.1f} meV/atom before training"
    )
