"""Was the promise kept? Whole campaigns without a screen, audited every tenth step.

    flywise bench campaign                 all cells that are missing, then the tables
    flywise bench campaign --only ethanol-300K
    flywise bench campaign --show                 the tables of the cells there are

Each cell is one campaign: `flywise run` on the settings below, then `flywise audit --every 10`.
The baseline labels every nth step with the same posterior, start of trust and tolerances.
Cells are stored under `results/campaign`; a run that is interrupted goes on with the next one.
Those of the first bundled model, version 0, are kept under `results/campaign-v0` and shown too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, cell, context, machine, table

from core.campaign.audit import block_bootstrap
from core.campaign.events import Updated
from core.campaign.reader import CampaignReader
from core.units import KCAL_PER_MOL

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ethanol.toml"
SEEDS = (1, 2, 3)
SYSTEMS = {
    "ethanol-300K": {},
    "ethanol-500K": {"temperature_K = 300": "temperature_K = 500"},
    "glycolaldehyde-300K": {
        'smiles = "CCO"': 'smiles = "OCC=O"',
        'energy_tolerance = "0.5 kcal/mol"': "",  # the default, 0.5 kcal/mol √(N/9)
    },
}
PERIODS = (200, 100, 50, 30)
BEFORE = "campaign-v0"
AFTER = (10, 50, 150)
"""Label counts at which interventions are given apart."""


def settings_text(system: str, every: int) -> str:
    """Return the example's settings with the system's changes and the labelling period."""
    text = EXAMPLE.read_text(encoding="utf-8")
    for old, new in SYSTEMS[system].items():
        if old not in text:
            raise ValueError(f"{EXAMPLE.name} has no line {old!r}")
        text = text.replace(old, new)
    return text.replace("[labelling]", f"[labelling]\nevery = {every}")


def campaign(system: str, seed: int, every: int) -> dict[str, Any]:
    """Run and audit one campaign; return the figures of both and of every intervention."""
    with tempfile.TemporaryDirectory() as folder:
        settings, out = Path(folder) / "settings.toml", Path(folder) / "out"
        settings.write_text(settings_text(system, every), encoding="utf-8")
        began = time.perf_counter()
        run = _flywise("run", str(settings), "--out", str(out), "--seed", str(seed))
        wall = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        report = _flywise("audit", str(out), "--every", "10")
        return {
            "system": system, "seed": seed, "every": every, "run": run, "audit": report,
            "wall_with_start_s": wall, "peak_MB": peak, "updates": _updates(out),
        }  # fmt: skip


def _updates(out: Path) -> list[dict[str, Any]]:
    """Return labels so far, seconds and memory of every update after the first."""
    with CampaignReader(out) as reader:
        found = [e for _, e in reader.events_since(0) if isinstance(e, Updated)][1:]
    return [{"labels": e.n_labels, "seconds": e.seconds, **e.info} for e in found]


def _flywise(*arguments: str, check: bool = True) -> dict[str, Any]:
    command = [sys.executable, "-m", "app", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=check)
    return json.loads(done.stdout.strip().splitlines()[-1])


def pooled(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the audit's figures over all seeds of one system."""
    frames = np.array([c["audit"]["frames"] for c in cells])
    share = frames / frames.sum()

    def mean(key: str) -> float:
        return float(sum(w * c["audit"][key] for w, c in zip(share, cells, strict=True)))

    def rms(key: str) -> float:
        return float(
            np.sqrt(sum(w * c["audit"][key] ** 2 for w, c in zip(share, cells, strict=True)))
        )

    return {
        "frames": int(frames.sum()),
        "within": mean("within_tolerance"),
        "force_within": mean("force_within_tolerance"),
        "both_within": mean("both_within_tolerance"),
        "rmse_kcal": rms("rmse_eV") / KCAL_PER_MOL,
        "untuned_kcal": rms("rmse_untuned_eV") / KCAL_PER_MOL,
        "labels_per_step": float(np.mean([c["audit"]["labels_per_step"] for c in cells])),
        "wall_s": max(c["wall_with_start_s"] for c in cells),
    }


def interval(cells: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the 95 % block-bootstrap interval of the pooled fraction within tolerance."""
    good = [np.abs(c["audit"]["errors_eV"]) < c["audit"]["tolerance_eV"] for c in cells]
    block = max(c["audit"]["block_length"] for c in cells)
    return block_bootstrap(np.concatenate(good), block=block)


def main() -> dict[str, Any]:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=list(SYSTEMS), default=None)
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    systems = [arguments.only] if arguments.only else list(SYSTEMS)
    rows, all_cells = [], []
    for system in systems:
        groups = [(f"{system}, where unsure", [(seed, 0) for seed in SEEDS])]
        if system == "ethanol-300K" and not arguments.no_baseline:
            groups += [(f"{system}, every {n} steps", [(1, n)]) for n in PERIODS]
        for name, wanted in groups:
            before = [_stored(BEFORE, system, *which) for which in wanted]
            cells = [_cell(system, *which, stored=arguments.show) for which in wanted]
            all_cells += [c for c in cells if c is not None]
            for title, each in ((f"{name} (version 0)", before), (name, cells)):
                found = [c for c in each if c is not None]
                if found:
                    rows.append(_row(title, found))
    columns = (
        "campaigns", "seeds", "frames", "energy within ε, %", "95 % interval", "RMSE, kcal/mol",
        "untuned", "force within, %", "both, %", "labels, % of steps", "longest, s",
    )  # fmt: skip
    print(table("Campaigns of 5,000 steps, target GFN2-xTB, audited every 10 steps", columns, rows))
    steps = interventions(all_cells)
    columns = ("labels", "updates", "median, s", "worst, s", "memory, MB")
    print(table("From a label received to new weights in the simulation", columns, steps))
    about = context(seeds=str(SEEDS))
    print(machine(about))
    return {"context": about, "rows": rows, "interventions": steps}


def interventions(cells: list[dict[str, Any]]) -> list[list[Any]]:
    """Return rows (labels, updates, median and worst seconds, memory) of all updates."""
    updates = [u for c in cells for u in c["updates"]]
    rows = []
    for name, found in [
        *((f"{n} ± 5", [u for u in updates if abs(u["labels"] - n) <= 5]) for n in AFTER),
        ("all", updates),
    ]:
        if found:
            seconds = np.array([u["seconds"] for u in found])
            memory = max(u["memory_MB"] for u in found)
            rows.append([name, len(found), float(np.median(seconds)), float(seconds.max()), memory])
    return rows


def _cell(system: str, seed: int, every: int, *, stored: bool) -> dict[str, Any] | None:
    if stored:
        return _stored("campaign", system, seed, every)
    return cell("campaign", _name(system, seed, every), lambda: campaign(system, seed, every))


def _stored(folder: str, system: str, seed: int, every: int) -> dict[str, Any] | None:
    path = RESULTS / folder / f"{_name(system, seed, every)}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _name(system: str, seed: int, every: int) -> str:
    return f"{system}-seed{seed}" + (f"-every{every}" if every else "")


def _row(name: str, cells: list[dict[str, Any]]) -> list[Any]:
    p, (low, high) = pooled(cells), interval(cells)
    return [
        name, ", ".join(str(c["seed"]) for c in cells), p["frames"], f"{100 * p['within']:.1f}",
        f"{100 * low:.1f}–{100 * high:.1f}", p["rmse_kcal"], p["untuned_kcal"],
        f"{100 * p['force_within']:.1f}", f"{100 * p['both_within']:.1f}",
        f"{100 * p['labels_per_step']:.2f}", f"{p['wall_s']:.0f}",
    ]  # fmt: skip


if __name__ == "__main__":
    RESULTS.mkdir(exist_ok=True)
    main()
