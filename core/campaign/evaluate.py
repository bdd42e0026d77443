"""Evaluate potentials on labels, side by side: every test, a recommendation and its reasons."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from core.campaign import pretraining
from core.campaign.finetune import read_labels
from core.campaign.labels import Declared
from core.contracts import LabelSet, Potential, Reference
from core.errors import InputError
from core.evaluation import accuracy, minima, stability
from core.evaluation.finding import Finding
from core.evaluation.repulsion import repulsion
from core.potentials import load as load_potential
from core.reference import make as make_reference
from core.structures import Structure

WEIGHT = {"bad": 100, "doubtful": 10, "unknown": 1, "good": 0}
"""How much a verdict counts against deploying."""


@dataclass(frozen=True)
class Inquiry:
    """What is to be evaluated.

    Attributes:
        models: names or bundles; the first is the one the others are compared with. labels: never
            trained on. reference: level of theory for frequencies and deep minima. pretraining:
            labelled frames of the foundation's own distribution, by default those the bundled
            model brings, if the first model is it. picoseconds: of dynamics at each temperature.
            trials: random starts. device: cpu or cuda.
    """

    models: tuple[str, ...]
    labels: Path
    reference: str | None = None
    pretraining: Path | None = None
    picoseconds: float = 5.0
    trials: int = 20
    seed: int = 1
    dtype: str = "float32"
    declared: Declared = Declared()
    device: str = "cpu"


def evaluate(
    inquiry: Inquiry, on_finding: Callable[[str, Finding], None] = lambda model, finding: None
) -> dict[str, Any]:
    """Run every test on every model; return plain JSON values.

    Args:
        on_finding: called with the model's name after each test.

    Raises:
        InputError: of what was given. ModelError: a model that does not know the elements.
    """
    given, level = read_labels(inquiry.labels, inquiry.declared)
    potentials = {
        name: cast(Potential, load_potential(name, dtype=inquiry.dtype, device=inquiry.device))
        for name in inquiry.models
    }
    if len(potentials) < len(inquiry.models):
        raise InputError("A model is named twice; name each once.")
    for potential in potentials.values():
        for structure in given.structures:
            potential.check(structure)
    first = next(iter(potentials.values()))
    if inquiry.pretraining is not None:
        own: LabelSet | None = read_labels(inquiry.pretraining, Declared())[0]
    else:
        own = pretraining.brought(inquiry.models[0]) or pretraining.predicted(first, None)
    start = given.structures[0]
    reference = None
    if inquiry.reference is not None:
        reference = make_reference(inquiry.reference, charge=start.charge, spin=start.spin)
    found: dict[str, list[Finding]] = {}
    for name, potential in potentials.items():
        found[name] = []
        for finding in _tests(potential, first, given, own, reference, inquiry):
            found[name].append(finding)
            on_finding(name, finding)
    best, why = recommend(found)
    return {
        "labels": {"file": inquiry.labels.name, "n": len(given), "level": level},
        "reference": inquiry.reference,
        "models": {name: [asdict(f) for f in findings] for name, findings in found.items()},
        "deploy": best, "because": why,
        "made": {
            "date": time.strftime("%Y-%m-%d"), "machine": platform.machine(),
            "torch": torch.__version__, "dtype": inquiry.dtype, "seed": inquiry.seed,
        },
    }  # fmt: skip


def _tests(
    potential: Potential, first: Potential, given: LabelSet, own: LabelSet | None,
    reference: Reference | None, inquiry: Inquiry,
) -> Iterator[Finding]:  # fmt: skip
    start = given.structures[0]
    yield accuracy.parity(potential, given)
    elements = sorted({int(z) for s in given.structures for z in s.numbers})
    yield repulsion(potential, elements)
    moving, frames = stability.stability(
        potential, start, picoseconds=inquiry.picoseconds, seed=inquiry.seed
    )
    yield moving
    yield stability.distributions(frames, given)
    truth = None if reference is None else _evaluator(reference, start)
    shaking, minimum, energy = minima.vibrations(potential.evaluator(start), start, truth)
    yield shaking
    if any(start.pbc):
        yield Finding("search", "unknown", "Random searches are made of molecules only.")
    else:
        yield minima.search(
            potential.evaluator, minimum, energy, reference,
            trials=inquiry.trials, seed=inquiry.seed,
        )  # fmt: skip
    if own is None:
        yield Finding("memory", "unknown", "No frames of the pretraining were given.")
    else:
        yield accuracy.forgetting(potential, first, own)


def _evaluator(reference: Reference, like: Structure) -> minima.Evaluate:
    def evaluate(positions: np.ndarray) -> tuple[float, np.ndarray]:
        label = reference.compute(like.moved(positions))
        return label.energy, label.forces

    return evaluate


def recommend(found: dict[str, list[Finding]]) -> tuple[str | None, str]:
    """Return which model to deploy, or None, and why.

    A model with a bad finding on what a simulation needs is not deployed; among the others fewer
    doubts win, then the smaller error of the forces. Memory of the pretraining is not needed for
    the systems of the labels; it is mentioned where the chosen model lost it.
    """
    if not found:
        return None, "No model was evaluated."
    bad = {
        name: [f.name for f in findings if f.verdict == "bad" and f.name != "memory"]
        for name, findings in found.items()
    }
    fit = [name for name in found if not bad[name]]
    listed = "; ".join(f"{name} fails in {', '.join(why)}" for name, why in bad.items() if why)
    if not fit:
        return None, f"None is fit for use: {listed}."

    def force(name: str) -> float:
        return float(found[name][0].figures["force"])

    def doubts(name: str) -> int:
        return sum(WEIGHT[f.verdict] for f in found[name] if f.name != "memory")

    best = min(fit, key=lambda name: (doubts(name), force(name)))
    reasons = [f"{best} has forces off by {1e3 * force(best):.0f} meV/Å on the labels"]
    sharpest = min(fit, key=force)
    if sharpest != best:
        worse = [f.name for f in found[sharpest] if f.verdict in ("bad", "doubtful")]
        reasons.append(
            f"{sharpest} is more accurate there ({1e3 * force(sharpest):.0f}) but does worse in "
            f"{', '.join(worse)}; take it only for the systems of the labels"
        )
    forgot = {
        name for name in fit if any(f.name == "memory" and f.verdict == "bad" for f in found[name])
    }
    if best in forgot:
        reasons.append("it has forgotten the pretraining: do not use it on other systems")
        if set(fit) - forgot:
            keeper = min(set(fit) - forgot, key=lambda name: (doubts(name), force(name)))
            reasons.append(
                f"{keeper} has not, and is off by {1e3 * force(keeper):.0f} meV/Å: take it where "
                "other systems are met"
            )
    if listed:
        reasons.append(listed)
    return best, "; ".join(reasons) + "."


def lines(result: dict[str, Any]) -> list[str]:
    """Return the outcome for a terminal."""
    shown = []
    for name, findings in result["models"].items():
        shown.append(name)
        shown += [f"  {f['name']:<11} {f['verdict']:<9} {f['said']}" for f in findings]
    chosen = result["deploy"] or "none"
    return [*shown, f"deploy     {chosen}: {result['because']}"]
