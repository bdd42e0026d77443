"""The seven strategies beside mace_run_train on the same labels, threads and precision.

    flywise bench finetune [--pairs] [--only WORD] [--threads N]

Ethanol (rMD17, PBE) and 3BPA (trained at 300 K, tested at 300 to 1,200 K) from a SPICE model, and
ethanol at GFN2-xTB from the bundled GFN1-xTB model. Both sides take the same training and
validation frames, 40 epochs of batches of five, and the published hyperparameters, and both are
scored by the same code on the same test frames. mace's time is that of its process; ours holds the
time this one took to import everything, preparation and training, not files read and written.
`--pairs` measures what is timed beside mace, on an otherwise idle machine; the rest may run in
several processes of one thread, each with another `--only`. Cells are kept; delete one under
`results/finetune` to measure it again.
"""

from __future__ import annotations

import re
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peer
import psutil
import torch
from common import RESULTS, arguments, cell, context, machine, table
from fixed_data import TESTS, drawn, ethanol, foundation, gfn2, three_bpa
from peer import BATCH, EPOCHS

from core.campaign.finetune import isolated_energies
from core.campaign.pretraining import brought, predicted
from core.contracts import LabelSet
from core.finetuning.receipt import errors
from core.finetuning.strategies import STRATEGIES, strategy
from core.finetuning.tuning import Tuning, TuningSettings, subset
from core.potentials import load
from core.potentials.convert import convert
from core.potentials.mace import MacePotential

IMPORTED_S = time.time() - psutil.Process().create_time()
"""Seconds from the start of this process to here, with everything imported."""
DTYPE = "float64"
LABELS, SEEDS, CURVE = 50, (1, 2), (10, 20, 50, 100, 200, 500)
CURVES = ("naive", "lora", "replay")
REHEARSED = 300
"""Frames of the pretraining: mace passes over all of them in every epoch."""
WRONG_E0 = "naive-e0-kept"
"""Naive fine-tuning with the energies of the foundation's isolated atoms, of another method."""
LONGER, LONGER_EPOCHS = "replay-longer", 60
"""Replay beyond mace's epochs, each of which holds all rehearsed frames: eight times our steps."""
ROWS = (*STRATEGIES, "scratch", WRONG_E0, LONGER)
PEER = {
    "naive": {},
    "freeze-products": {"freeze": 5},
    "lora": {"lora": True, "lora_rank": strategy("lora").rank},
    "replay": {"multiheads_finetuning": True},
}
"""Options of mace_run_train that make it do what a strategy does."""
BESIDE = {name: name for name in PEER} | {LONGER: "replay"}
"""What of ours is compared with which of mace's."""
KIND = {"scratch": "naive", WRONG_E0: "naive", LONGER: "replay"}
"""The strategy of a row that is not named after one."""


SYSTEMS: dict[str, tuple[Any, Any, str]] = {
    "ethanol": (partial(ethanol, "train"), partial(ethanol, "test"), "spice"),
    "3bpa": (partial(three_bpa, "300K"), partial(three_bpa, "mixedT"), "spice"),
    "gfn2": (partial(gfn2, 600, 11), partial(gfn2, TESTS, 12), "bundled"),
}


def data(system: str, n: int, seed: int) -> tuple[LabelSet, LabelSet]:
    """Return n labels to train on, another draw for each seed, and the labels to test with."""
    train, test, _ = SYSTEMS[system]
    return drawn(train, n, seed), drawn(test, TESTS, 0)


def rehearsed(start: MacePotential) -> LabelSet:
    """Return frames that both sides rehearse, with the foundation's own predictions."""
    frames = predicted(start, None)
    assert frames is not None
    return subset(frames, np.random.default_rng(0).permutation(len(frames))[:REHEARSED])


def untrained(like: MacePotential, seed: int) -> MacePotential:
    """Return a model of the same make with random weights."""
    torch.manual_seed(seed)
    return MacePotential(like.config, name="from scratch", dtype=like.dtype)


def ours(system: str, name: str, n: int, seed: int, folder: Path) -> dict[str, Any]:
    """Fine-tune by what a row is called."""
    train, test = data(system, n, seed)
    source = SYSTEMS[system][2]
    start = foundation(source, folder, DTYPE)
    own = brought("bundled") if source == "bundled" and name != "pseudolabel-replay" else None
    pretraining = own or rehearsed(start)
    if name == "scratch":
        start = untrained(start, seed)
    per_epoch = -(-round(0.9 * n) // BATCH)
    epochs = LONGER_EPOCHS if name == LONGER else EPOCHS
    settings = TuningSettings(
        steps=epochs * per_epoch, batch_size=BATCH, patience=10**9, seed=seed,
        learning_rate=1e-2 if name == "scratch" else 0.0,
    )  # fmt: skip
    began = time.perf_counter()
    tuning = Tuning(
        start, train, strategy(KIND.get(name, name)), settings,
        isolated=isolated_energies(
            start, train, "foundation" if name == WRONG_E0 else "estimated", None
        ),
        pretraining=pretraining,
    )  # fmt: skip
    prepared = IMPORTED_S + time.perf_counter() - began
    curve = []
    for progress in tuning.epochs():
        if progress.epoch % 2 == 0 or progress.epoch == epochs:
            began = time.perf_counter()
            with tuning.as_finished() as potential:
                ended = time.perf_counter() - began
                found = errors(potential, test)
            curve.append([prepared + progress.seconds + ended, found.energy, found.force])
    tuned, receipt = tuning.finish()
    before = errors(tuning.start, test)
    own_errors = receipt.errors["foundation's own"]
    return {
        "seconds": prepared + receipt.seconds, "curve": curve,
        "test": vars(errors(tuned, test)), "untuned": vars(before),
        "foundation_before": vars(own_errors[0]), "foundation_after": vars(own_errors[1]),
    }  # fmt: skip


def theirs(system: str, name: str, n: int, seed: int, folder: Path) -> dict[str, Any]:
    """Fine-tune by mace_run_train with the options that amount to a strategy."""
    train, test = data(system, n, seed)
    source = SYSTEMS[system][2]
    start = foundation(source, folder, DTYPE)
    order = np.random.default_rng(seed).permutation(len(train))
    n_valid = round(0.1 * n)
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        try:
            seconds, made = peer.run_train(
                peer.checkpoint(source, start, place),
                subset(train, order[n_valid:]), subset(train, order[:n_valid]), place,
                name=name, seed=seed, dtype=DTYPE, options=PEER[name],
                rehearsed=rehearsed(start) if name == "replay" else None,
            )  # fmt: skip
        except peer.PeerError as error:
            return {"failed": str(error)}
        convert(made, place / "bundle", consent=True)
        tuned = load(str(place / "bundle"), dtype=DTYPE)
        if name == "replay":
            tuned.head = next(h for h in tuned.heads if h != "pt_head")
        return {"seconds": seconds, "test": vars(errors(tuned, test))}  # type: ignore[arg-type]


def wanted() -> list[tuple[str, str, str, int, int]]:
    """Return (who, system, strategy, labels, seed) of every cell, the important ones first."""
    cells = []
    for seed in SEEDS:
        for system in SYSTEMS:
            for name in ROWS:
                if name in PEER and system != "gfn2":
                    cells.append(("mace", system, name, LABELS, seed))
                if name != LONGER or system != "gfn2":
                    cells.append(("flywise", system, name, LABELS, seed))
    for n in CURVE:
        for system in ("ethanol", "3bpa"):
            cells += [("flywise", system, name, n, 1) for name in CURVES if n != LABELS]
    return cells


def measured(who: str, system: str, name: str, n: int, seed: int, folder: Path) -> dict[str, Any]:
    """Return one cell."""
    run = ours if who == "flywise" else theirs
    about = context(threads=torch.get_num_threads(), dtype=DTYPE)
    return run(system, name, n, seed, folder) | {"context": about}


def main() -> None:
    """Measure what is not there yet, and print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--pairs", action="store_true", help="What mace is measured for too.")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[tuple[str, str, str, int, int], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work:
        cells = wanted()
        for key in cells:
            name = "-".join(map(str, key))
            there = (RESULTS / "finetune" / f"{name}.json").exists()
            chosen = re.search(options.only, name) and not options.list
            beside = BESIDE.get(key[2], key[2])
            if options.pairs and ("mace", key[1], beside, *key[3:]) not in cells:
                chosen = False
            if chosen or there:
                folder = Path(work) / "spice"
                found[key] = cell("finetune", name, lambda k=key, f=folder: measured(*k, f))
                print(name, flush=True)
    print(_strategies(found))
    print(_peers(found))
    print(_curves(found))
    print(machine(context(threads=options.threads, dtype=DTYPE, epochs=EPOCHS, batch=BATCH)))


def _mean(cells: list[dict[str, Any]], *path: str) -> float:
    values = []
    for c in cells:
        value: Any = c
        for key in path:
            value = value[key]
        values.append(value)
    return float(np.mean(values))


def _strategies(found: dict[Any, dict[str, Any]]) -> str:
    rows = []
    for system in SYSTEMS:
        for name in ROWS:
            cells = [c for k, c in found.items() if k[:4] == ("flywise", system, name, LABELS)]
            if cells:
                rows.append([
                    system, name, len(cells), 1e3 * _mean(cells, "test", "energy"),
                    1e3 * _mean(cells, "test", "force"),
                    1e3 * _mean(cells, "foundation_after", "force"),
                    1e3 * _mean(cells, "foundation_before", "force"),
                ])  # fmt: skip
    columns = (
        "system", "strategy", "seeds", "energy RMSE, meV/atom", "force RMSE, meV/Å",
        "on the foundation's own frames, meV/Å", "before",
    )  # fmt: skip
    return table(f"Strategies, {LABELS} labels", columns, rows)


def _peers(found: dict[Any, dict[str, Any]]) -> str:
    rows = []
    for system in SYSTEMS:
        for name, of_mace in BESIDE.items():
            for seed in SEEDS:
                peer = found.get(("mace", system, of_mace, LABELS, seed))
                mine = found.get(("flywise", system, name, LABELS, seed))
                if peer is None or mine is None:
                    continue
                if "failed" in peer:
                    rows.append([system, name, seed, "failed", "", "", "", ""])
                    continue
                reached = [
                    s for s, e, f in mine["curve"]
                    if e <= peer["test"]["energy"] and f <= peer["test"]["force"]
                ]  # fmt: skip
                rows.append([
                    system, name, seed, 1e3 * peer["test"]["force"], 1e3 * peer["test"]["energy"],
                    mine["test"]["force"] / peer["test"]["force"],
                    mine["test"]["energy"] / peer["test"]["energy"],
                    mine["seconds"] / peer["seconds"],
                    reached[0] / peer["seconds"] if reached else "not reached",
                ])  # fmt: skip
    columns = (
        "system", "strategy", "seed", "mace: force RMSE, meV/Å", "energy RMSE, meV/atom",
        "ours / mace: forces", "energy", "wall time", "time to mace's errors",
    )  # fmt: skip
    return table(f"Beside mace_run_train, {LABELS} labels", columns, rows)


def _curves(found: dict[Any, dict[str, Any]]) -> str:
    rows = []
    for system in ("ethanol", "3bpa"):
        for name in CURVES:
            cells = [found.get(("flywise", system, name, n, 1)) for n in CURVE]
            if any(cells):
                shown = [
                    f"{1e3 * c['test']['energy']:.2f} / {1e3 * c['test']['force']:.1f}" if c else ""
                    for c in cells
                ]
                rows.append([system, name, *shown])
    columns = ("system", "strategy", *(f"{n} labels" for n in CURVE))
    return table("Learning curves: energy (meV/atom) / force (meV/Å) RMSE", columns, rows)


if __name__ == "__main__":
    main()
