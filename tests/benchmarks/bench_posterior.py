"""Posteriors on fixed data: errors, likelihood, calibration, ranking, and what they cost.

    flywise bench posterior [--only WORD] [--picture FILE]

Ethanol at PBE from a SPICE model and from the bundled one; 3BPA trained at 300 K and tested at 300
to 1,200 K; ethanol at GFN2-xTB from the bundled GFN1-xTB model, trained at 300 K and tested there
and at two and three times that. The energy's constant is the mean over the labels, for all of them.
σ is the posterior's own, before any calibration. "Attainable" is the rank correlation that errors
drawn from these σ would have with them; more of it takes σ that vary more. "distance" is no
posterior: it ranks by the distance from the labels in the foundation's features.
"mace_run_train" is the peer's own training from the same foundation on the same labels, and "mace
committee" five of them with other seeds in one MACECalculator. One thread for all; times are the
least of the seeds', since what else a machine does only adds to them. The picture holds errors and
likelihoods of one draw against what one more label takes, the frontier drawn in. Cells are kept;
delete one under `results/posterior` to measure it again.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import fixed_data
import numpy as np
import peer
import torch
from common import arguments, context, machine, measured, table

from core.acquisition.coverage import Coverage
from core.contracts import LabelSet, Posterior, Spread
from core.finetuning.tuning import subset
from core.posterior import make
from core.potentials import load
from core.potentials.convert import convert
from core.potentials.mace import MacePotential
from core.settings import Noise, PosteriorSettings
from core.uncertainty import metrics, rank_correlation
from core.units import KCAL_PER_MOL

THREADS, DTYPE = 1, "float32"
LABELS, SEEDS, RANKED = (10, 50, 200), (1, 2, 3), 20
"""Numbers of labels, draws of them, and the number at which rankings are compared."""
TIMED = 20
"""Frames judged by the clock, as a step of a simulation judges them: by few samples of forces."""
NOISE = Noise(energy=0.003, force=0.03)
BOUNDED = "linearised, 2000 rows"
"""With 200 labels only; of fewer there are no more rows than that."""
POSTERIORS: dict[str, dict[str, Any]] = {
    "linearised": {"kind": "linearised"},
    BOUNDED: {"kind": "linearised", "max_rows": 2000},
    "last-layer": {"kind": "last-layer"},
    "deep-ensemble": {"kind": "deep-ensemble"},
    "blip": {"kind": "blip"},
    "blip, gates": {"kind": "blip", "blip_noise": "gates"},
    "sghmc": {"kind": "sghmc"},
    "sghmc, frozen mass": {"kind": "sghmc", "sghmc_frozen": True},
}
PUBLISHED = ("sghmc", "sghmc, frozen mass")
"""Up to an hour a cell: one seed, and 20 labels only. Every update is their whole schedule."""

PEERS = {"mace_run_train": 1, "mace committee": 5}
"""Trainings by mace_run_train, each on the labels less a tenth to validate with."""

Make = Callable[[], LabelSet]
SYSTEMS: dict[str, tuple[str, Make, dict[str, Make]]] = {
    "ethanol GFN2": (
        "bundled", partial(fixed_data.gfn2, 260, 11),
        {
            f"{t} K": partial(fixed_data.gfn2, fixed_data.TESTS, 12, float(t))
            for t in (300, 600, 900)
        },
    ),
    "ethanol PBE": (
        "spice", partial(fixed_data.ethanol, "train"),
        {"500 K": partial(fixed_data.ethanol, "test")},
    ),
    "ethanol PBE, bundled": (
        "bundled", partial(fixed_data.ethanol, "train"),
        {"500 K": partial(fixed_data.ethanol, "test")},
    ),
    "3BPA": (
        "spice", partial(fixed_data.three_bpa, "300K"),
        {"300-1,200 K": partial(fixed_data.three_bpa, "mixedT")},
    ),
}  # fmt: skip
"""Name -> foundation, labels to learn from, and sets to be tested on."""


def prepared(system: str, n: int, seed: int, folder: Path) -> tuple[MacePotential, LabelSet, float]:
    """Return the foundation, the labels without their constant, and that constant, eV."""
    source, train, _ = SYSTEMS[system]
    potential = fixed_data.foundation(source, folder, DTYPE)
    labels = fixed_data.drawn(train, n, seed)
    residual = labels.energies - potential.predict(labels.structures, forces=False).energies
    constant = float(residual.mean())
    return (
        potential,
        LabelSet(labels.structures, labels.energies - constant, labels.forces),
        constant,
    )


def judged(spreads: list[Spread], test: LabelSet, constant: float) -> dict[str, Any]:
    """Return the figures of predictions: energies in eV, force components in eV/Å."""
    energy = test.energies - constant - np.array([s.energy for s in spreads])
    force = [f - s.forces for f, s in zip(test.forces, spreads, strict=True)]
    largest = np.array([np.linalg.norm(f, axis=1).max() for f in force])
    components = np.concatenate([f.ravel() for f in force])
    if np.isnan(spreads[0].sigma_energy):
        return {"energy": {"rmse": _rms(energy)}, "force": {"rmse": _rms(components)}}
    sigma = np.concatenate([np.repeat(s.sigma_forces / np.sqrt(3), 3) for s in spreads])
    ranks = attainable(spreads)
    return {
        "energy": asdict(metrics(energy, np.array([s.sigma_energy for s in spreads]))),
        "force": asdict(metrics(components, sigma)),
        "largest_force_spearman": rank_correlation(
            largest, np.array([s.sigma_force for s in spreads])
        ),
        "attainable": {"energy": ranks[0], "largest_force": ranks[1]},
    }  # fmt: skip


def attainable(spreads: list[Spread], draws: int = 50) -> tuple[float, float]:
    """Return the mean rank correlation of σ with errors drawn from it: energy, largest force."""
    rng = np.random.default_rng(0)
    energy = np.array([s.sigma_energy for s in spreads])
    largest = np.array([s.sigma_force for s in spreads])
    found = []
    for _ in range(draws):
        error = np.abs(energy * rng.standard_normal(len(energy)))
        force = np.array([
            (s.sigma_forces * np.linalg.norm(rng.standard_normal((len(s.sigma_forces), 3)), axis=1))
            .max() for s in spreads
        ])  # fmt: skip
        found.append((rank_correlation(error, energy), rank_correlation(force, largest)))
    return tuple(np.mean(found, axis=0).tolist())


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def measure(system: str, name: str, n: int, seed: int, folder: Path) -> dict[str, Any]:
    """Update one posterior once from the foundation, and judge it on all test sets."""
    potential, labels, constant = prepared(system, n, seed, folder)
    posterior, rng = begun(name, potential, labels), np.random.default_rng(seed)
    began = time.perf_counter()
    state, info = posterior.update(posterior.init(rng), labels, rng)
    update_s = time.perf_counter() - began
    posterior.activate(state)
    tests, checks = {}, []
    for title, make_test in SYSTEMS[system][2].items():
        test = fixed_data.drawn(make_test, fixed_data.TESTS, 0)
        spreads = [posterior.spread(state, s) for s in test.structures]
        began = time.perf_counter()
        for structure in test.structures[:TIMED]:
            posterior.spread(state, structure, quick=True)
        checks.append((time.perf_counter() - began) / TIMED)
        tests[title] = judged(spreads, test, constant)
    values = {k: v for k, v in info.values.items() if isinstance(v, float)}
    found = {"tests": tests, "update_s": update_s, "check_ms": 1e3 * min(checks), "info": values}
    more = prepared(system, n + 1, seed, folder)[1]
    if name in PUBLISHED:
        default = begun("linearised", prepared(system, n, seed, folder)[0], labels)
        state, _ = default.update(default.init(rng), labels, rng)
        return found | {"default_next_s": seconds(default, state, more, rng)}
    return found | {"next_s": seconds(posterior, state, more, rng)}


def begun(name: str, potential: MacePotential, labels: LabelSet) -> Posterior:
    """Return a posterior that knows nothing yet."""
    elements = sorted({int(z) for s in labels.structures for z in s.numbers})
    return make(
        potential, PosteriorSettings(**POSTERIORS[name]), NOISE,
        energy_tolerance=0.5 * KCAL_PER_MOL, elements=elements,
    )  # fmt: skip


def seconds(posterior: Posterior, state: Any, labels: LabelSet, rng: np.random.Generator) -> float:
    """Return what an intervention takes: the update by labels of which all but one are known."""
    posterior.activate(state)
    began = time.perf_counter()
    posterior.update(state, labels, rng)
    return time.perf_counter() - began


def peers(system: str, n: int, seed: int, folder: Path, members: int) -> dict[str, Any]:
    """Train members with mace_run_train, from seeds of their own, and judge what they say."""
    potential = fixed_data.foundation(SYSTEMS[system][0], folder, DTYPE)
    labels = fixed_data.drawn(SYSTEMS[system][1], n, seed)
    trained, seconds = [], 0.0
    with tempfile.TemporaryDirectory() as work:
        for k in range(members):
            place = Path(work) / str(k)
            place.mkdir()
            order = np.random.default_rng([seed, k]).permutation(n)
            n_valid = round(0.1 * n)
            took, made = peer.run_train(
                peer.checkpoint(SYSTEMS[system][0], potential, Path(work)),
                subset(labels, order[n_valid:]), subset(labels, order[:n_valid]), place,
                name="naive", seed=100 * seed + k, dtype=DTYPE, options={},
            )  # fmt: skip
            convert(made, place / "bundle", consent=True)
            trained.append(cast(MacePotential, load(str(place / "bundle"), dtype=DTYPE)))
            seconds += took
    tests, checks = {}, []
    for title, make_test in SYSTEMS[system][2].items():
        test = fixed_data.drawn(make_test, fixed_data.TESTS, 0)
        spreads, check_ms = peer.committee(trained, test)
        tests[title] = judged(spreads, test, 0.0)
        checks.append(check_ms)
    return {"tests": tests, "update_s": seconds, "check_ms": min(checks), "info": {}}


def untuned(system: str, n: int, seed: int, folder: Path) -> dict[str, Any]:
    """Return the errors of the foundation, and how the distance from the labels ranks them."""
    potential, labels, constant = prepared(system, n, seed, folder)
    features = potential.predict(labels.structures, forces=False, features=True).features
    assert features is not None
    known = Coverage([s.numbers for s in labels.structures], features)
    tests = {}
    for title, make_test in SYSTEMS[system][2].items():
        test = fixed_data.drawn(make_test, fixed_data.TESTS, 0)
        out = potential.predict(test.structures, features=True)
        assert out.forces is not None and out.features is not None
        spreads = [
            Spread(float(e), f, d := known.novelty(s.numbers, h), np.full(len(s), d), d)
            for s, e, f, h in zip(
                test.structures, out.energies, out.forces, out.features, strict=True
            )
        ]
        tests[title] = judged(spreads, test, constant)
    return {"tests": tests}


def wanted() -> list[tuple[str, str, int, int]]:
    """Return (system, posterior, labels, seed) of every cell, the quick and important first."""
    names = [name for name in POSTERIORS if name not in (*PUBLISHED, BOUNDED)]
    cells = [(s, "untuned", RANKED, seed) for seed in SEEDS for s in SYSTEMS]
    cells += [(s, name, RANKED, seed) for seed in SEEDS for name in names for s in SYSTEMS]
    cells += [
        (s, name, n, seed) for n in LABELS for seed in SEEDS for name in names for s in SYSTEMS
    ]
    cells += [
        (s, name, n, seed)
        for n in (RANKED, *LABELS) for seed in SEEDS for name in PEERS for s in SYSTEMS
    ]  # fmt: skip
    cells += [(s, BOUNDED, LABELS[-1], seed) for seed in SEEDS for s in SYSTEMS]
    cells += [(s, name, RANKED, SEEDS[0]) for name in PUBLISHED for s in SYSTEMS]
    return cells


def main() -> None:
    """Measure what is not there yet, and print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--picture", help="Draw the trade of cost and errors into this file.")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "spice"
        found = measured("posterior", {k: partial(_cell, k, folder) for k in wanted()}, options)
    for n in sorted({key[2] for key in found}):
        print(_table(found, n))
    about = [machine(c["context"] | {"seeds": SEEDS, "noise": NOISE}) for c in found.values()]
    print(_in_one_run(found))
    for line, number in Counter(about).items():
        print(f"{number} cells: {line}")
    if options.picture:
        _picture(found, Path(options.picture))


def _cell(key: tuple[str, str, int, int], folder: Path) -> dict[str, Any]:
    system, name, n, seed = key
    if name == "untuned":
        found = untuned(system, n, seed, folder)
    elif name in PEERS:
        found = peers(system, n, seed, folder, PEERS[name])
    else:
        found = measure(system, name, n, seed, folder)
    return found | {"context": context(threads=THREADS, dtype=DTYPE)}


def _in_one_run(found: dict[tuple[str, str, int, int], dict[str, Any]]) -> str:
    """What one more label takes by a published schedule and, in the same process, the default."""
    rows = [
        [system, name, n, c["update_s"], c["default_next_s"], c["update_s"] / c["default_next_s"]]
        for (system, name, n, _), c in found.items()
        if name in PUBLISHED
    ]
    columns = ("system", "posterior", "labels", "its update, s", "the default's, s", "ratio")
    return table("One more label, in one run", columns, rows)


def _picture(found: dict[tuple[str, str, int, int], dict[str, Any]], path: Path) -> None:
    """Draw what one more label takes and what is reached, of the first draw of the labels."""
    from matplotlib import pyplot as plt

    plt.rcParams |= {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    systems, figures = ("ethanol GFN2", "3BPA"), ("energy, meV", "forces, meV/Å", "NLL, energy")
    shown, axes = plt.subplots(2, 3, figsize=(10, 5.6), sharex=True, layout="constrained")
    for across, system in zip(axes, systems, strict=True):
        points: list[list[tuple[float, float, str]]] = [[] for _ in figures]
        for name in (*POSTERIORS, *PEERS):
            if (cell := found.get((system, name, RANKED, SEEDS[0]))) is None:
                continue
            judged = cell["tests"][next(iter(SYSTEMS[system][2]))]
            takes = cell.get("next_s", cell["update_s"])
            points[0].append((takes, 1e3 * judged["energy"]["rmse"], name))
            points[1].append((takes, 1e3 * judged["force"]["rmse"], name))
            if "nll" in judged["energy"]:
                points[2].append((takes, judged["energy"]["nll"], name))
        for ax, title, of in zip(across, figures, points, strict=True):
            _trade(ax, of)
            ax.set_title(f"{system}: {title}", fontsize=9, loc="left")
    for ax in axes[1]:
        ax.set_xlabel("one more label, s")
    shown.savefig(path)


SIDES = {"mace_run_train": (True, 3), "mace committee": (False, -10), "blip": (True, -9)}
"""Where a name stands beside its point in the picture: to the left, and points above it."""


def _trade(ax: Any, points: list[tuple[float, float, str]]) -> None:
    """Draw points of (seconds, figure, name), and those that no other one beats in both."""
    best, least = [], np.inf
    for takes, value, _ in sorted(points):
        if value < least:
            best.append((takes, value))
            least = value
    xs, ys = zip(*best, strict=True)
    ax.step([*xs, 3e3], [*ys, ys[-1]], where="post", color="#0f6e7c", lw=1, alpha=0.5)
    for takes, value, name in points:
        colour = "#0f6e7c" if name == "linearised" else "#5d6875"
        ax.plot(takes, value, "o", color=colour, ms=5)
        left, up = SIDES.get(name, (False, 3))
        ax.annotate(
            name, (takes, value), (-4 if left else 4, up), textcoords="offset points",
            ha="right" if left else "left", color=colour, size=8,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlim(1, 3e3)
    ax.margins(y=0.12)
    if max(ys := [value for _, value, _ in points]) > 10 * abs(float(np.median(ys))):
        ax.set_yscale("symlog", linthresh=1)
    ax.spines[["top", "right"]].set_visible(False)


def _table(found: dict[tuple[str, str, int, int], dict[str, Any]], n: int) -> str:
    rows = []
    for system, (_, _, tests) in SYSTEMS.items():
        for title in tests:
            for name in ("untuned", *POSTERIORS, *PEERS):
                cells = [c for (s, p, m, _), c in found.items() if (s, p, m) == (system, name, n)]
                if cells:
                    rows.append([system, title, name, len(cells), *_figures(cells, title)])
    columns = (
        "system", "tested at", "posterior", "seeds", "E RMSE, meV", "F RMSE, meV/Å", "E NLL",
        "F NLL", "E CRPS, meV", "E area", "E z", "F z", "E Spearman", "largest F Spearman",
        "E attainable", "largest F attainable", "E within 90 %", "F within 90 %", "update, s",
        "one more label, s", "check, ms",
    )  # fmt: skip
    return table(f"{n} labels", columns, rows)


def _figures(cells: list[dict[str, Any]], title: str) -> list[Any]:
    """Return the mean over the seeds of every figure of one row, and the least of every time."""

    def mean(*path: str | int) -> float:
        values = []
        for c in cells:
            value: Any = c["tests"][title]
            for key in path:
                value = value[key]
            values.append(value)
        return float(np.mean(values))

    def least(time: str) -> float:
        return float(min(c[time] for c in cells))

    accuracy = [1e3 * mean("energy", "rmse"), 1e3 * mean("force", "rmse")]
    if "nll" not in cells[0]["tests"][title]["energy"]:
        return [*accuracy, *["–"] * 12, least("update_s"), "–", least("check_ms")]
    ranks = [mean("energy", "spearman"), mean("largest_force_spearman")]
    if "update_s" not in cells[0]:
        return [*accuracy, *["–"] * 6, *ranks, *["–"] * 7]
    ranks += [mean("attainable", "energy"), mean("attainable", "largest_force")]
    return [
        *accuracy, mean("energy", "nll"), mean("force", "nll"), 1e3 * mean("energy", "crps"),
        mean("energy", "miscalibration"), mean("energy", "z"), mean("force", "z"), *ranks,
        mean("energy", "coverage", 1), mean("force", "coverage", 1),
        least("update_s"), least("next_s" if "next_s" in cells[0] else "update_s"),
        least("check_ms"),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
