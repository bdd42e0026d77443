"""The default posterior beside SGHMC on its published schedule, on the same 20 ethanol labels.

    flywise bench posterior

Frames come from two runs of the bundled model at 300 K, labels from GFN2-xTB. The energy offset is
the mean over the 20 labels for both. Time is that of one update from the foundation's weights.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from common import cell, context, machine, table

from core.contracts import LabelSet, Spread
from core.dynamics.integrators import Dynamics
from core.posterior import make
from core.potentials import load
from core.reference import make as make_reference
from core.settings import DynamicsSettings, Noise, PosteriorSettings
from core.structures import Structure, from_smiles
from core.units import KCAL_PER_MOL

LABELS, TESTS, STRIDE, THREADS = 20, 100, 40, 2


def frames(n: int, seed: int) -> list[Structure]:
    """Return every `STRIDE`-th frame of a 300 K run of the bundled model."""
    start = from_smiles("CCO")
    evaluate = load("bundled").evaluator(start)
    dynamics = Dynamics(start, evaluate, DynamicsSettings(), np.random.default_rng(seed))
    out = []
    for _ in range(n):
        dynamics.run(STRIDE)
        out.append(dynamics.structure)
    return out


def labelled(structures: list[Structure]) -> LabelSet:
    """Return GFN2-xTB labels of the frames."""
    reference = make_reference("gfn2-xtb")
    labels = [reference.compute(s) for s in structures]
    return LabelSet(
        tuple(structures), np.array([x.energy for x in labels]), tuple(x.forces for x in labels)
    )


def scores(spreads: list[Spread], test: LabelSet, offset: float) -> dict[str, float]:
    """Return RMSE of energies and forces, Gaussian NLL of both and the z-score of the energy."""
    error = test.energies - offset - np.array([s.energy for s in spreads])
    sigma = np.array([s.sigma_energy for s in spreads])
    force = np.stack([s.forces for s in spreads]) - np.stack(test.forces)
    sigma_force = np.stack([s.sigma_forces for s in spreads])[..., None] / math.sqrt(3)
    return {
        "energy_rmse_kcal": float(np.sqrt((error**2).mean()) / KCAL_PER_MOL),
        "force_rmse_meV": float(1e3 * np.sqrt((force**2).mean())),
        "energy_nll": _nll(error, sigma),
        "force_nll": _nll(force, sigma_force),
        "energy_z": float(np.sqrt(((error / sigma) ** 2).mean())),
        "largest_force_error": float(np.linalg.norm(force, axis=-1).max(1).mean()),
    }


def _nll(error: np.ndarray, sigma: np.ndarray) -> float:
    return float(np.mean(0.5 * (error / sigma) ** 2 + np.log(sigma) + 0.5 * np.log(2 * np.pi)))


def measure(kind: str, train: LabelSet, test: LabelSet) -> dict[str, Any]:
    """Update one posterior once and judge it on the test frames."""
    potential = load("bundled")
    residual = train.energies - potential.predict(train.structures, forces=False).energies
    offset = float(residual.mean())
    labels = LabelSet(train.structures, train.energies - offset, train.forces)
    settings = PosteriorSettings(kind=kind)
    posterior = make(potential, settings, Noise(0.003, 0.03), energy_tolerance=0.5 * KCAL_PER_MOL)
    rng = np.random.default_rng(1)
    began = time.perf_counter()
    state, _ = posterior.update(posterior.init(rng), labels, rng)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    spreads = [posterior.spread(state, s) for s in test.structures]
    return {
        "update_s": seconds,
        "check_ms": 1e3 * (time.perf_counter() - began) / len(test),
        **scores(spreads, test, offset),
    }


def untuned(train: LabelSet, test: LabelSet) -> dict[str, float]:
    """Return the errors of the foundation with its own best offset on the test frames."""
    out = load("bundled").predict(test.structures)
    error = test.energies - out.energies
    force = np.stack(out.forces or ()) - np.stack(test.forces)
    return {
        "energy_rmse_kcal": float(error.std() / KCAL_PER_MOL),
        "force_rmse_meV": float(1e3 * np.sqrt((force**2).mean())),
        "largest_force_error": float(np.linalg.norm(force, axis=-1).max(1).mean()),
    }


def main() -> dict[str, Any]:
    """Measure what is missing and print the table."""
    torch.set_num_threads(THREADS)
    train, test = labelled(frames(LABELS, seed=1)), labelled(frames(TESTS, seed=2))
    rows = {"untuned": cell("posterior", "untuned", lambda: untuned(train, test))}
    for kind in ("linearised", "sghmc"):
        rows[kind] = cell("posterior", kind, lambda kind=kind: measure(kind, train, test))
    columns = (
        "update_s", "energy_rmse_kcal", "force_rmse_meV", "largest_force_error", "energy_nll",
        "force_nll", "energy_z", "check_ms",
    )  # fmt: skip
    title = f"Ethanol, 300 K, {LABELS} GFN2-xTB labels, {TESTS} test frames of another run"
    print(
        table(
            title,
            ("posterior", *columns),
            [(name, *(row.get(c, "–") for c in columns)) for name, row in rows.items()],
        )
    )
    about = context(threads=THREADS, seeds="frames 1 and 2, posterior 1")
    print(machine(about))
    return {"context": about, "rows": rows}


if __name__ == "__main__":
    main()
