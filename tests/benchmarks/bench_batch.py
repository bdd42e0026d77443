"""Batches in a running campaign: chosen for what they tell together, beside the largest σ.

    flywise bench batch [--only WORD] [--list]

Ethanol and malonaldehyde at 500 K, target GFN2-xTB from the bundled GFN1-xTB model. Flagged frames
collect, and of every sixteen a batch of eight is labelled; nothing else differs between the rules.
Whenever the weights have learned a batch they are tested on 200 frames of GFN2-xTB's own dynamics,
fixed beforehand: coverage is the share of them whose energy, the mean error taken out, and largest
force error are both within the campaign's tolerances. Cells are kept under `results/batch`.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import safetensors.torch
from bench_rules import malonaldehyde
from common import arguments, context, machine, measured, table
from fixed_data import kept, labelled
from pools import run

from core import worker
from core.campaign import events as ev
from core.campaign.reader import CampaignReader, Commander
from core.contracts import LabelSet
from core.potentials import load
from core.potentials.mace import MacePotential
from core.settings import load as load_settings
from core.structures import Structure, from_smiles

TEMPERATURE, SEEDS = 500.0, (1, 2, 3)
BATCH, BATCHES, FIRST = 8, 4, 8
TESTS, BETWEEN = 200, 20
"""Frames to test with, and GFN2-xTB steps of 1 fs between two of them."""
SYSTEMS: dict[str, Callable[[], Structure]] = {
    "ethanol": partial(from_smiles, "CCO"),
    "malonaldehyde": malonaldehyde,
}
RULES = ("joint", "sigma")
TITLES = {"joint": "what they tell together", "sigma": "largest σ"}
SETTINGS = """
[structure]
file = "{start}"
[dynamics]
temperature_K = {temperature}
steps = 20000
check_every = 10
[labelling]
reference = "gfn2-xtb"
mode = "batch"
batch_size = {batch}
batch_by = "{rule}"
seed = {seed}
[trust]
initial_labels = {first}
"""


def test_set(system: str) -> LabelSet:
    """Return frames of the reference's own dynamics, made once on a machine."""

    def make() -> tuple[LabelSet, np.ndarray]:
        rng = np.random.default_rng(0)
        frames = run(
            SYSTEMS[system](), TEMPERATURE, TESTS + 50, BETWEEN, rng, lambda r, step: (0.0, 0.0)
        )
        return labelled(frames[50:]), np.zeros(0)

    return kept(f"batch-{system}", make)[0]


def campaign(system: str, rule: str, seed: int) -> dict[str, Any]:
    """Run a campaign until its last batch is learned, and test the weights after each."""
    with tempfile.TemporaryDirectory() as folder:
        start, settings = Path(folder) / "start.xyz", Path(folder) / "settings.toml"
        directory = Path(folder) / "campaign"
        ase.io.write(start, SYSTEMS[system]().to_atoms())
        text = SETTINGS.format(
            start=start, temperature=TEMPERATURE, batch=BATCH, rule=rule, seed=seed, first=FIRST
        )
        settings.write_text(text, encoding="utf-8")
        began = time.perf_counter()
        worker.prepare(directory, load_settings(settings))
        total = FIRST + BATCH * BATCHES
        while True:
            state = worker.run_inline(directory, until=lambda s: len(s.learned) > BATCHES)
            if len(state.learned) > BATCHES:
                break
            if state.phase != "deciding" or not state.proposal:
                raise RuntimeError(f"{system}: {state.phase} at {state.n_labels} of {total} labels")
            Commander(directory).post(ev.Approve(ids=state.proposal, who="benchmark"))
        tolerances = state.energy_tolerance, state.force_tolerance
        rows = [
            {"labels": labels, "step": step, **_tested(system, path, *tolerances)}
            for labels, step, path in _weights(directory)
        ]
        return {"rows": rows, "step": state.step, "wall_s": time.perf_counter() - began}


def _weights(directory: Path) -> list[tuple[int, int, Path]]:
    """Return labels, step and file of every snapshot."""
    with CampaignReader(directory) as reader:
        found, step = [], 0
        for _, event in reader.events_since(0):
            step = max(step, getattr(event, "step", 0))
            if isinstance(event, ev.Updated):
                path = directory / "snapshots" / f"{event.snapshot:05d}.safetensors"
                found.append((event.n_labels, step, path))
    return found


def _tested(
    system: str, weights: Path, energy_tolerance: float, force_tolerance: float | None
) -> dict[str, float]:
    """Return errors of the weights on the test frames, eV and eV/Å, and how many are within."""
    test, potential = test_set(system), load("bundled")
    assert isinstance(potential, MacePotential) and force_tolerance is not None
    potential.set_theta(safetensors.torch.load_file(weights)["theta"])
    out = potential.predict(test.structures)
    assert out.forces is not None
    energy = test.energies - out.energies
    energy = np.abs(energy - energy.mean())
    errors = [f - g for f, g in zip(test.forces, out.forces, strict=True)]
    largest = np.array([np.linalg.norm(e, axis=1).max() for e in errors])
    return {
        "coverage": float(((energy < energy_tolerance) & (largest < force_tolerance)).mean()),
        "energy": float(np.sqrt((energy**2).mean())),
        "force": float(np.sqrt(np.mean(np.square(errors)))),
        "largest_force": float(largest.mean()),
    }


def main() -> None:
    """Measure what is missing and print the table."""
    wanted = {
        (system, rule, seed): partial(campaign, system, rule, seed)
        for seed, system, rule in itertools.product(SEEDS, SYSTEMS, RULES)
    }
    found = measured("batch", wanted, arguments(__doc__).parse_args())
    lines = []
    for system, rule in itertools.product(SYSTEMS, RULES):
        there = [c for seed in SEEDS if (c := found.get((system, rule, seed)))]
        for k in range(BATCHES + 1) if there else ():
            lines.append(_line(system, rule, [c["rows"][k] for c in there]))
    columns = (
        "system", "chosen by", "seeds", "labels", "both within, %", "energy, meV", "forces, meV/Å",
        "largest force, meV/Å",
    )  # fmt: skip
    print(table("Weights after each batch, mean and spread over seeds", columns, lines))
    print(machine(context(seeds=str(SEEDS))))


def _line(system: str, rule: str, rows: list[dict[str, float]]) -> list[Any]:
    def shown(key: str, factor: float) -> str:
        values = [factor * row[key] for row in rows]
        spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        return f"{np.mean(values):.1f}{spread}"

    return [
        system, TITLES[rule], len(rows), int(rows[0]["labels"]), shown("coverage", 100),
        *(shown(key, 1e3) for key in ("energy", "force", "largest_force")),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
