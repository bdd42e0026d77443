"""Errors on labels: of the task (parity), and of the pretraining (forgetting)."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from core.contracts import LabelSet, Potential
from core.evaluation.finding import Finding
from core.finetuning.receipt import errors
from core.finetuning.tuning import FOUNDATION

GOOD_FORCE, BAD_FORCE = 0.05, 0.25
"""Root mean square error of a force component, eV/Å: for quantitative work, and beyond use."""
FORGOTTEN, LOST = 1.1, 2.0
"""Growth of the error on the foundation's own distribution that counts as some and as all."""
MOST_POINTS = 4000
"""Force components kept for a plot."""


def parity(potential: Potential, labels: LabelSet) -> Finding:
    """Compare predictions with labels that were never trained on."""
    found = errors(potential, labels)
    predicted = potential.predict(labels.structures)
    assert predicted.forces is not None
    sizes = np.array([len(s) for s in labels.structures])
    shift = float(((predicted.energies - labels.energies) / sizes).mean())
    reference = np.concatenate([f.ravel() for f in labels.forces])
    forces = np.concatenate([f.ravel() for f in predicted.forces])
    some = np.linspace(0, len(forces) - 1, min(MOST_POINTS, len(forces))).astype(int)
    verdict = "good" if found.force <= GOOD_FORCE else "doubtful"
    if not found.force <= BAD_FORCE:
        verdict = "bad"
    return Finding(
        "accuracy",
        verdict,  # type: ignore[arg-type]
        f"On {len(labels)} labels forces are off by {1e3 * found.force:.0f} meV/Å (RMSE), energies "
        f"by {1e3 * found.energy:.1f} meV/atom, {1e3 * found.energy_within:.1f} without the mean "
        "of each composition.",
        asdict(found) | {"energy_shift_per_atom": shift},
        {
            "energy": [(labels.energies / sizes).tolist(), (predicted.energies / sizes).tolist()],
            "force": [reference[some].tolist(), forces[some].tolist()],
        },
    )


def forgetting(potential: Potential, before: Potential, pretraining: LabelSet) -> Finding:
    """Compare the errors on frames of the pretraining with those of the foundation.

    A model with a head of the foundation's is judged by that head.
    """
    old = errors(before, pretraining)
    head = FOUNDATION if FOUNDATION in potential.heads else None
    with potential.using(head):
        new = errors(potential, pretraining)
    floor = 0.01  # eV/Å, where the labels are the foundation's own predictions
    growth = (new.force_mae + floor) / (old.force_mae + floor)
    verdict = "good" if growth <= FORGOTTEN else "doubtful" if growth <= LOST else "bad"
    return Finding(
        "memory",
        verdict,  # type: ignore[arg-type]
        f"On {len(pretraining)} frames of the pretraining forces are off by "
        f"{1e3 * new.force_mae:.0f} meV/Å (mean), the foundation's by {1e3 * old.force_mae:.0f}.",
        {"before": asdict(old), "after": asdict(new), "growth": growth},
    )
