"""Fewest labels for the same promise: the tolerance rule beside rules of others, whole campaigns.

    flywise bench rules [--only WORD] [--list]

Ethanol, the inversion of ammonia and the proton shared in malonaldehyde, target GFN2-xTB from the
bundled GFN1-xTB model. The tolerances of each system are half the untuned model's errors on a run
of its own, the largest force's to 0.05 eV/Å, fixed beforehand. The posterior, the start of trust
and the checks are the same for all rules. A rival's parameter is chosen on *another* system: of the
values tried, the one that asks for the fewest labels and keeps 95 % there, found by halving the
range, on one seed. Its best value on the system itself is shown beside, the oracle's, on that seed.
Every tenth step is audited. A campaign ends at the most labels it may ask for, whether or not its
steps are done: "more than". Cells are kept under `results/rules`.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from bench_campaign import _flywise, interval
from common import RESULTS, arguments, cell, context, machine, table

from core.campaign.reader import CampaignReader
from core.campaign.state import LABELLED
from core.contracts import Label
from core.dynamics.integrators import Dynamics
from core.potentials import load
from core.reference import make as make_reference
from core.settings import DynamicsSettings
from core.structures import Structure, from_name, from_smiles
from core.units import KCAL_PER_MOL

STEPS, SEEDS, TUNING_SEED = 5000, (1, 2, 3), 1
PROMISE, MOST = 0.95, 120
"""The share of frames that has to be within both tolerances, and the most labels of a campaign."""
GRIDS = {
    "sigma": (0.32, 0.16, 0.08, 0.04, 0.02),
    "moving-average": (1.2, 0.6, 0.3, 0.1, 0.03),
    "every": (400, 200, 100, 50, 25),
}
"""Values of each rival's parameter, `rule_value` or `every`, from few labels to many.

Those of σ are for a tolerance of `SCALE`, and go with the tolerance.
"""
SCALE = 0.15


@dataclass(frozen=True)
class System:
    """A molecule at a temperature, and how far a frame is from its barrier (nan without one).

    Attributes:
        start: makes it. barrier: (N, 3) positions -> Å, positive.
        near: within it a frame lies in the barrier's region, Å.
    """

    start: Callable[[], Structure]
    temperature: float
    barrier: Callable[[np.ndarray], float] | None = None
    near: float = 0.0


def height(positions: np.ndarray) -> float:
    """Return how far ammonia's nitrogen, the first atom, is from the plane of its hydrogens, Å."""
    n, a, b, c = positions
    normal = np.cross(b - a, c - a)
    return float(abs((n - a) @ normal) / np.linalg.norm(normal))


def shared(positions: np.ndarray) -> float:
    """Return by how much malonaldehyde's proton is nearer to one oxygen than to the other, Å."""
    oxygens, proton = positions[[0, 4]], positions[HYDROXYL]
    apart = np.linalg.norm(oxygens - proton, axis=1)
    return float(abs(apart[0] - apart[1]))


HYDROXYL = 8
"""The proton between malonaldehyde's oxygens."""


def malonaldehyde() -> Structure:
    """Return the enol with its hydrogen bond closed, roughly."""
    positions = [
        [1.28, -1.20, 0], [1.20, 0.05, 0], [0, 0.75, 0], [-1.18, 0.05, 0], [-1.28, -1.27, 0],
        [2.13, 0.62, 0], [0, 1.83, 0], [-2.13, 0.60, 0], [-0.36, -1.60, 0],
    ]  # fmt: skip
    return Structure(np.array([8, 6, 6, 6, 8, 1, 1, 1, 1]), np.array(positions, dtype=float))


SYSTEMS = {
    "ethanol": System(lambda: from_smiles("CCO"), 300.0),
    "ammonia": System(lambda: from_name("NH3"), 600.0, height, 0.12),
    "malonaldehyde": System(malonaldehyde, 500.0, shared, 0.35),
}
TUNED_ON = {"ethanol": "ammonia", "ammonia": "ethanol", "malonaldehyde": "ethanol"}


def untuned(system: str) -> dict[str, float]:
    """Return the untuned model's error on a run of its own, and half of it: the tolerance, eV."""
    rmse = float(np.std([label.energy - d.energy for label, d in _compared(system)]))
    return {"rmse_eV": rmse, "tolerance_eV": rmse / 2}


def untuned_force(system: str) -> dict[str, float]:
    """Return the mean of its largest force error, and half of it to 0.05: the tolerance, eV/Å."""
    largest = [np.linalg.norm(x.forces - d.forces, axis=1).max() for x, d in _compared(system)]
    mean = float(np.mean(largest))
    return {"largest_eV_A": mean, "tolerance_eV_A": round(round(mean / 2 / 0.05) * 0.05, 2)}


def _compared(system: str) -> Iterator[tuple[Label, Dynamics]]:
    """Yield labels of frames of a run of the untuned model, and the run at each."""
    start = SYSTEMS[system].start()
    model = load("bundled")
    settings = DynamicsSettings(temperature_K=SYSTEMS[system].temperature)
    dynamics = Dynamics(start, model.evaluator(start), settings, np.random.default_rng(99))
    reference = make_reference("gfn2-xtb")
    for _ in range(100):
        dynamics.run(40)
        yield reference.compute(dynamics.structure), dynamics


def settings_text(
    system: str, rule: str, value: float, tolerances: tuple[float, float], start: Path
) -> str:
    """Return the settings file of one campaign."""
    energy, force = tolerances
    value = value * force / SCALE if rule == "sigma" else value
    flag = f'rule = "{rule}"\nrule_value = {value}' if rule in ("sigma", "moving-average") else ""
    if rule == "every":
        flag = f"every = {int(value)}"
    return f"""
[structure]
file = "{start}"
[dynamics]
temperature_K = {SYSTEMS[system].temperature}
steps = {STEPS}
check_every = 10
[trust]
energy_tolerance = "{energy} eV"
force_tolerance = "{force} eV/Å"
[labelling]
reference = "gfn2-xtb"
mode = "threshold"
max_labels = {MOST}
{flag}
"""


def campaign(
    system: str, rule: str, value: float, seed: int, tolerances: tuple[float, float]
) -> dict[str, Any]:
    """Run and audit one campaign."""
    with tempfile.TemporaryDirectory() as folder:
        settings, out = Path(folder) / "settings.toml", Path(folder) / "out"
        start = Path(folder) / "start.xyz"
        ase.io.write(start, SYSTEMS[system].start().to_atoms())
        text = settings_text(system, rule, value, tolerances, start)
        settings.write_text(text, encoding="utf-8")
        began = time.perf_counter()
        run = _flywise("run", str(settings), "--out", str(out), "--seed", str(seed), check=False)
        if run["phase"] not in ("finished", "paused"):
            raise RuntimeError(f"the campaign ended as {run['phase']}: {run['reason']}")
        wall_s = time.perf_counter() - began
        report = _flywise("audit", str(out), "--every", "10")
        return {"run": run, "audit": report, "wall_s": wall_s, **enrichment(system, out)}


def enrichment(system: str, out: Path) -> dict[str, float]:
    """Return the share of frames in the barrier's region among labels and in the trajectory."""
    chosen = SYSTEMS[system]
    if chosen.barrier is None:
        return {}
    with CampaignReader(out) as reader:
        state = reader.state()
        rows = reader.frames_since(1)
        kept = rows["id"][(rows["rewound"] == 0) & (rows["step"] % 10 == 0)]
        labelled = {q.frame_id for q in state.queue if q.status in LABELLED}
        where = {
            int(i): chosen.barrier(reader.frame(int(i)).positions) < chosen.near
            for i in {*kept.tolist(), *labelled}
        }
    return {
        "barrier_labels": float(np.mean([where[i] for i in labelled])),
        "barrier_trajectory": float(np.mean([where[int(i)] for i in kept])),
    }


def keeps(cells: list[dict[str, Any]]) -> bool:
    """Whether campaigns kept the promise: energy and force both within tolerance."""
    frames = np.array([c["audit"]["frames"] for c in cells])
    within = np.array([c["audit"]["both_within_tolerance"] for c in cells])
    return bool((frames * within).sum() / frames.sum() >= PROMISE)


def stopped(cells: list[dict[str, Any]]) -> bool:
    """Whether any campaign asked for more labels than it may."""
    return any(c["run"]["phase"] != "finished" for c in cells)


def labels(cells: list[dict[str, Any]]) -> str:
    """Return the mean number of labels."""
    mean = float(np.mean([c["run"]["labels"] for c in cells]))
    return f"more than {mean:.1f}" if stopped(cells) else f"{mean:.1f}"


class Study:
    """The cells there are, and those that are measured when they are asked for."""

    def __init__(self, only: str, listing: bool) -> None:
        self._only, self._listing = only, listing

    def get(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Return a cell; None where it is not there and not to be measured."""
        if (RESULTS / "rules" / f"{name}.json").exists():
            return cell("rules", name, make)
        if self._listing or not re.search(self._only, name):
            return None
        print(name, flush=True)
        return cell("rules", name, make)

    def campaign(self, system: str, rule: str, value: float, seed: int) -> dict[str, Any] | None:
        """Return one campaign's cell."""
        first = self.get(f"{system}-untuned", partial(untuned, system))
        force = self.get(f"{system}-untuned-force", partial(untuned_force, system))
        if first is None or force is None:
            return None
        name = f"{system}-{rule}" + (f"-{value:g}" if rule != "tolerance" else "") + f"-{seed}"
        tolerances = first["tolerance_eV"], force["tolerance_eV_A"]
        return self.get(name, partial(campaign, system, rule, value, seed, tolerances))

    def group(
        self, system: str, rule: str, value: float, seeds: Sequence[int] = SEEDS
    ) -> list[dict[str, Any]]:
        """Return the campaigns there are of these seeds."""
        found = [self.campaign(system, rule, value, seed) for seed in seeds]
        return [c for c in found if c is not None]

    def there(self, system: str, rule: str, value: float) -> list[dict[str, Any]]:
        """Return the campaign of the seed that parameters are chosen on, if it was measured."""
        name = f"{system}-{rule}-{value:g}-{TUNING_SEED}"
        if not (RESULTS / "rules" / f"{name}.json").exists():
            return []
        return self.group(system, rule, value, (TUNING_SEED,))

    def best(self, system: str, rule: str) -> float | None:
        """Return the value with the fewest labels that keeps the promise on one seed.

        By halving: more labels keep it better, and one that ends at the most labels allowed has
        asked for too many. The last value where none does; None where a campaign is missing.
        """
        grid, low, high = GRIDS[rule], 0, len(GRIDS[rule])
        while low < high:
            middle = (low + high) // 2
            found = self.campaign(system, rule, grid[middle], TUNING_SEED)
            if found is None:
                return None
            low, high = (low, middle) if keeps([found]) or stopped([found]) else (middle + 1, high)
        return grid[min(low, len(grid) - 1)]


def mean_expected(cells: list[dict[str, Any]]) -> float:
    """Return the share of unlabelled frames that was expected within both tolerances."""
    return float(np.mean([c["run"]["expected_within"] for c in cells]))


def _row(system: str, rule: str, cells: list[dict[str, Any]]) -> list[Any]:
    frames = np.array([c["audit"]["frames"] for c in cells])

    def mean(key: str) -> float:
        return float((frames * [c["audit"][key] for c in cells]).sum() / frames.sum())

    low, high = interval(cells)
    worst = max(c["audit"]["largest_error_eV"] for c in cells) / KCAL_PER_MOL
    rare: Any = "–"
    if "barrier_labels" in cells[0]:
        among = np.mean([c["barrier_labels"] for c in cells])
        usual = np.mean([c["barrier_trajectory"] for c in cells])
        rare = f"{100 * among:.1f} % / {100 * usual:.1f} %"
    return [
        system, rule, len(cells), labels(cells), f"{100 * mean('within_tolerance'):.1f}",
        f"{100 * low:.1f}–{100 * high:.1f}", f"{100 * mean('both_within_tolerance'):.1f}",
        f"{100 * mean_expected(cells):.1f}", "yes" if keeps(cells) else "no", worst, rare,
    ]  # fmt: skip


def main() -> None:
    """Measure what is missing and print the table."""
    options = arguments(__doc__).parse_args()
    study, rows = Study(options.only, options.list), []
    for system in SYSTEMS:
        ours = study.group(system, "tolerance", 0.0)
        if ours:
            rows.append(_row(system, "tolerances", ours))
        for rule in GRIDS:
            for source, title, seeds in (
                (TUNED_ON[system], "tuned elsewhere", SEEDS), (system, "oracle", (TUNING_SEED,)),
            ):  # fmt: skip
                value = study.best(source, rule)
                found = [] if value is None else study.group(system, rule, value, seeds)
                if found:
                    rows.append(_row(system, f"{rule} {value:g}, {title}", found))
            for value in GRIDS[rule]:
                found = study.there(system, rule, value)
                if found and value != study.best(system, rule):
                    rows.append(_row(system, f"{rule} {value:g}, tried", found))
    columns = (
        "system", "rule", "seeds", "labels", "energy within ε, %", "95 % interval",
        "force too, %", "expected, %", "promise kept", "worst, kcal/mol",
        "at the barrier: labels / trajectory",
    )  # fmt: skip
    print(table(f"Campaigns of {STEPS:,} steps", columns, rows))
    print(machine(context(seeds=str(SEEDS))))


if __name__ == "__main__":
    main()
