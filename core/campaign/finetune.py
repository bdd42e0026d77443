"""Fine-tune a model on a file of labels: read, check, train, and write a bundle with a receipt.

The folder that is written holds a checkpoint while it trains; the same call goes on from it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

import ase.data
import numpy as np

from core.campaign import labels as label_files
from core.campaign import pretraining as frames_of
from core.contracts import Label, LabelSet, Potential
from core.errors import InputError
from core.finetuning import e0
from core.finetuning.e0 import IsolatedEnergies
from core.finetuning.receipt import Receipt
from core.finetuning.strategies import strategy
from core.finetuning.tuning import Tuning, TuningSettings
from core.potentials import bundle
from core.potentials import load as load_potential
from core.potentials.load import save as save_potential
from core.reference import make as make_reference
from core.structures import Structure
from core.training import Progress

CHECKPOINT, RECEIPT = "training.pt", "receipt.json"
CHECKPOINT_S = 30.0
"""Seconds between checkpoints."""

IsolatedFrom = Literal["estimated", "computed", "foundation"]


@dataclass(frozen=True)
class Order:
    """What is to be done.

    Attributes:
        train: labels as extended XYZ. out: folder of the bundle to be made.
        model: name or bundle of the foundation. held_out: labels never trained on.
        isolated: energies of isolated atoms: estimated from the labels, computed with `reference`,
            or the foundation's. rehearsal: labelled frames of the foundation's pretraining; by
            default those that come with the model. tuning: hyperparameters. device: cpu or cuda.
    """

    train: Path
    out: Path
    model: str = "bundled"
    strategy: str = "naive"
    held_out: Path | None = None
    isolated: IsolatedFrom = "estimated"
    reference: str | None = None
    rehearsal: Path | None = None
    dtype: str = "float32"
    declared: label_files.Declared = label_files.Declared()
    tuning: TuningSettings = TuningSettings()
    device: str = "cpu"


def finetune(
    order: Order, on_epoch: Callable[[Progress, int], None] = lambda progress, epochs: None
) -> Receipt:
    """Do it; return the receipt, which is also written beside the bundle.

    Args:
        on_epoch: called after each epoch with how many there are at most; what it raises leaves
            a checkpoint behind.

    Raises:
        InputError: of what was given, with what is accepted.
    """
    if (order.out / bundle.CONFIG).exists():
        raise InputError(f"{order.out} holds a model already; give another folder.")
    chosen = strategy(order.strategy)
    given, level = read_labels(order.train, order.declared)
    held_out = None
    if order.held_out is not None:
        held_out, other = read_labels(order.held_out, order.declared)
        _agree(order.held_out, other, level)
    foundation = cast(
        Potential, load_potential(order.model, dtype=order.dtype, device=order.device)
    )
    for structure in given.structures:
        foundation.check(structure)
    tuning = Tuning(
        foundation, given, chosen, order.tuning,
        isolated=isolated_energies(foundation, given, order.isolated, order.reference),
        pretraining=pretraining(order, foundation),
        held_out=held_out,
    )  # fmt: skip
    order.out.mkdir(parents=True, exist_ok=True)
    checkpoint = order.out / CHECKPOINT
    _resume(tuning, checkpoint, _digest(order, given))
    _train(tuning, checkpoint, on_epoch)
    potential, receipt = tuning.finish()
    order.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(receipt.to_dict() | {"label_fingerprint": level}, indent=1)
    (order.out / RECEIPT).write_text(text + "\n", encoding="utf-8")
    about = {
        "title": f"{order.model}, fine-tuned ({chosen.title})",
        "foundation": order.model, "label_fingerprint": level,
    }  # fmt: skip
    save_potential(potential, order.out, about)  # type: ignore[arg-type]
    for left in (checkpoint, checkpoint.with_suffix(".json")):
        left.unlink(missing_ok=True)
    return receipt


def _train(tuning: Tuning, checkpoint: Path, on_epoch: Callable[[Progress, int], None]) -> None:
    """Train to the end, with a checkpoint now and then, and when it is interrupted."""
    written = time.monotonic()
    try:
        for progress in tuning.epochs():
            on_epoch(progress, tuning.trainer.settings.epochs)
            if time.monotonic() > written + CHECKPOINT_S:
                tuning.save(checkpoint)
                written = time.monotonic()
    except BaseException:
        tuning.save(checkpoint)
        raise


def _resume(tuning: Tuning, checkpoint: Path, digest: str) -> None:
    """Go on from a checkpoint, if it is one of the same order.

    Raises:
        InputError: the folder holds the checkpoint of another.
    """
    note = checkpoint.with_suffix(".json")
    if checkpoint.exists():
        if not note.exists() or json.loads(note.read_text()) != digest:
            raise InputError(
                f"{checkpoint.parent} holds an unfinished fine-tuning with other labels or "
                "settings; give another folder, or remove it."
            )
        tuning.load(checkpoint)
    note.write_text(json.dumps(digest))


def _digest(order: Order, given: LabelSet) -> str:
    """Return what two orders share if one can go on with the other's checkpoint."""
    asked = [
        order.model, order.strategy, order.isolated, order.reference, str(order.rehearsal),
        order.dtype, asdict(order.tuning) | {"max_seconds": 0},
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(asked, default=str, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(given.energies).tobytes())
    for structure in given.structures:
        digest.update(structure.positions.tobytes())
    return digest.hexdigest()


def read_labels(path: Path, declared: label_files.Declared) -> tuple[LabelSet, str]:
    """Return the labels of a file, and their level of theory.

    Raises:
        InputError: no such file, a label that cannot be taken, or more than one level of theory.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}; give labels as extended XYZ.")
    with open(path, "rb") as opened:
        data = opened.read(label_files.MAX_FILE_BYTES + 1)
    found = label_files.read(data, path.name, declared)
    levels = sorted({label.fingerprint for label in found})
    if len(levels) > 1:
        raise InputError(
            f"{path.name} mixes labels of {len(levels)} levels of theory: "
            f"{'; '.join(map(repr, levels[:4]))}. One model learns one of them; split the file."
        )
    return label_set(found), levels[0]


def _agree(path: Path, level: str, expected: str) -> None:
    if level != expected:
        raise InputError(
            f"{path.name} holds labels of {level!r}, the training file of {expected!r}; errors "
            "between two levels of theory mean nothing. Give labels of the same."
        )


def label_set(found: list[Label]) -> LabelSet:
    """Return labels as a training takes them."""
    return LabelSet(
        tuple(label.structure for label in found),
        np.array([label.energy for label in found]),
        tuple(label.forces for label in found),
    )


def isolated_energies(
    foundation: Potential, given: LabelSet, how: IsolatedFrom, reference: str | None
) -> IsolatedEnergies:
    """Return energies of isolated atoms at the level of theory of the labels.

    Raises:
        InputError: they were to be computed, and no reference was named.
        LabelError: the reference cannot treat an atom.
    """
    before = e0.foundations(foundation.elements, foundation.isolated_energies)
    predicted = foundation.predict(given.structures, forces=False).energies
    residuals = np.asarray(given.energies) - predicted
    if how == "foundation":
        return e0.kept(before, given.structures, residuals)
    if how == "estimated":
        return e0.estimated(before, given.structures, residuals)
    if reference is None:
        raise InputError("To compute isolated atoms, name the level of theory of the labels.")
    present = sorted({int(z) for s in given.structures for z in s.numbers})
    atoms = {z: isolated_atom(z, reference) for z in present}
    return e0.isolated(before, atoms, given.structures, residuals)


def isolated_atom(number: int, reference: str) -> float:
    """Return the energy of an atom in its ground state, eV, computed with a reference."""
    unpaired = round(float(ase.data.ground_state_magnetic_moments[number]))
    atom = Structure(np.array([number]), np.zeros((1, 3)), spin=unpaired)
    return make_reference(reference, spin=unpaired).compute(atom).energy


def pretraining(order: Order, foundation: Potential) -> LabelSet | None:
    """Return frames of the foundation's own distribution: a file's, or those it brings.

    Where it brings none, the structures of the bundled model's serve with the foundation's own
    predictions, unless a rehearsal of labels was asked for.
    """
    if order.rehearsal is not None:
        frames: LabelSet | None = read_labels(order.rehearsal, label_files.Declared())[0]
    else:
        frames = frames_of.brought(order.model)
    rehearsal = strategy(order.strategy).rehearsal
    if rehearsal == "labels" or (frames is not None and not rehearsal):
        return frames
    return frames_of.predicted(foundation, frames)
