"""Frames of what a foundation was trained on: to rehearse, and to measure forgetting with."""

from __future__ import annotations

import numpy as np

from core.assets import model_folder
from core.contracts import LabelSet, Potential
from core.finetuning.tuning import subset
from core.potentials import bundle
from core.structures import Structure

LARGEST_FORCE = 15.0
"""eV/Å; where a foundation predicts more, it extrapolates. In other models' squeezed frames that
happens, and a few of them then rule both the loss and the mean square."""


def brought(model: str) -> LabelSet | None:
    """Return the labelled frames that come with a model, by name or bundle; None without."""
    folder = model_folder(model)
    return bundle.replay(folder) if folder.is_dir() else None


def structures(potential: Potential, frames: LabelSet | None) -> tuple[Structure, ...]:
    """Return the structures of `frames`, else of the bundled model's, that a potential knows."""
    frames = frames or brought("bundled")
    known = set(potential.elements)
    return tuple(s for s in frames.structures if set(s.numbers) <= known) if frames else ()


def predicted(potential: Potential, frames: LabelSet | None) -> LabelSet | None:
    """Return `structures` labelled by the potential itself; None if there are none.

    Left out are those on which it predicts a force above `LARGEST_FORCE`.
    """
    usable = structures(potential, frames)
    if not usable:
        return None
    found = potential.predict(usable)
    assert found.forces is not None
    largest = [np.linalg.norm(forces, axis=1).max() for forces in found.forces]
    sound = np.flatnonzero(np.array(largest) <= LARGEST_FORCE)
    return subset(LabelSet(usable, found.energies, found.forces), sound) if len(sound) else None
