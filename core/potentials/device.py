"""Where a potential computes: on the processor, or on a CUDA card.

A card pays for many atoms or members and costs time for few, so "auto" measures. Before a card is
used, its energy and forces are held against the processor's.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from core.errors import ModelError
from core.potentials.base import TorchPotential
from core.structures import Structure

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest difference between the two, in units of the largest value."""
ROUNDS = 5
"""Steps timed on each; the fastest counts."""


def require_cuda() -> torch.device:
    """Return the CUDA device.

    Raises:
        ModelError: there is none, or torch was built without.
    """
    if torch.cuda.is_available():
        return CUDA
    why = (
        "no card is seen by its driver" if torch.version.cuda
        else f"torch {torch.__version__} was built without CUDA"
    )  # fmt: skip
    raise ModelError(
        f"The device 'cuda' cannot be used here: {why}. Accepted: cpu; auto, which takes a card "
        "where there is one; README tells how to install torch with CUDA."
    )


def place(potential: TorchPotential, structure: Structure, wanted: str) -> str:
    """Move `potential` to the device that is `wanted`: "cpu", "cuda" or "auto".

    Returns:
        what was measured, as a sentence; empty where there was nothing to choose.

    Raises:
        ModelError: "cuda" was wanted, and there is no card, or it computes something else.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return ""
    card = require_cuda()
    name = torch.cuda.get_device_name(card)
    before, expected = _step(potential, structure)
    potential.move_to(card)
    after, found = _step(potential, structure)
    problem = _difference(found, expected, AGREEMENT[potential.dtype])
    if problem and wanted == "cuda":
        raise ModelError(f"{name} contradicts the processor: {problem}. Use the device cpu.")
    times = f"{1e3 * before:.2g} ms a step on the processor, {1e3 * after:.2g} on {name}"
    if wanted == "auto" and (problem or before <= after):
        potential.move_to(CPU)
        return f"The model computes on the processor: {problem or times}."
    return f"The model computes on the card: {times}."


def _step(
    potential: TorchPotential, structure: Structure
) -> tuple[float, tuple[float, np.ndarray]]:
    """Return the seconds of an MD step, and its interaction energy and forces."""
    evaluate = potential.evaluator(structure)
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        energy, forces = evaluate(structure.positions)
        seconds.append(time.perf_counter() - began)
    return min(seconds), (energy - potential.isolated_energy(structure), forces)


def _difference(
    found: tuple[float, np.ndarray], expected: tuple[float, np.ndarray], allowed: float
) -> str:
    """Return how energy and forces differ, or an empty string."""
    for name, now, then in zip(("energy", "forces"), found, expected, strict=True):
        worst = float(np.abs(np.asarray(now) - np.asarray(then)).max())
        if not worst <= allowed * max(1.0, float(np.abs(np.asarray(then)).max())):
            return f"its {name} came out wrong by {worst:.2g}"
    return ""
