"""Two hundred thousand structures screened: time, memory, how both grow, and what is lost.

    flywise bench screen [--only WORD] [--list]

A pool generated here: molecules of C, H, N and O with 9 to 27 atoms, shaken by 0.05 to 0.15 Å, as
extended XYZ; fifty others are labelled already. `flywise screen` runs as a process of its own, on
all cores: activations of 2,000 to 200,000 structures, whose times give the slope; the whole cascade
on 200,000, the best 5,000 of them by the joint kernel, 1,000 picked, interrupted once while it
computes activations and gone on with. What the cascade loses is measured on 5,000 structures: as
many chosen with all of them on the shortlist, beside the shortlist of five for each (as above, and
the default), and how much is left unknown of the pool afterwards. Cells are kept under
`results/screen`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from common import arguments, context, machine, measured, table
from fixed_data import WORK

from core.acquisition.features import Features, Recipe
from core.acquisition.screening import Shortlist
from core.campaign import extxyz, pool
from core.contracts import Potential
from core.potentials import load
from core.structures import Structure, closest_pair, from_smiles

SIZES = (2_000, 20_000, 200_000)
LISTED, PICKED, LABELLED = 5_000, 1_000, 50
SMALL = 5_000
"""Structures on which the cascade is held against the kernel of all."""
INTERRUPTED_S = 60
"""When the screening is ended the first time: while it computes activations."""
SMILES = (
    "CCO", "CC(=O)C", "NCC(=O)O", "CCOC", "c1ccccc1", "CCC(=O)N", "CCCCN", "CCOCC", "c1ccccc1C",
    "CC(=O)NC", "C1CCNCC1", "NC(CO)C(=O)O", "CCCC(=O)O", "COc1ccccc1", "CCCCCC", "CC(N)C(=O)NC",
    "CCCCCCO", "CCCCCCC", "NCCCCCCN", "CCCCCCCO", "c1ccccc1CCCC", "CCCCCCCC", "CCCCCCCCO",
    "CC(C)CC(N)C(=O)O",
)  # fmt: skip


def shaken(n: int, seed: int) -> Iterator[Structure]:
    """Yield n structures, molecules in turn."""
    rng = np.random.default_rng(seed)
    molecules = [m for m in (from_smiles(s) for s in SMILES) if 9 <= len(m) <= 27]
    for k in range(n):
        start = molecules[k % len(molecules)]
        while True:
            far = rng.uniform(0.05, 0.15)
            moved = start.moved(start.positions + far * rng.standard_normal(start.positions.shape))
            if not overlapping(moved):
                break
        yield moved


def overlapping(structure: Structure) -> bool:
    """Return whether two atoms are too near for the program to take the structure."""
    pair = closest_pair(structure)
    return pair is not None and pair[2] < pair[3]


def made(n: int, seed: int = 1) -> Path:
    """Return a pool's file, written once on a machine."""
    path = WORK / f"screen-{n}-{seed}.extxyz"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        structures = shaken(n, seed)
        extxyz.save(path, (extxyz.write(s, {}, {"pos": s.positions}) for s in structures))
    return path


def screened(n: int, *options: str, interrupt: bool = False) -> dict[str, Any]:
    """Run `flywise screen` on n structures; return its figures, memory and times."""
    source, labelled = made(n), made(LABELLED, 2)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "chosen.extxyz"
        command = [
            sys.executable, "-m", "app", "screen", str(source), "--out", str(out),
            "--train", str(labelled), "--json", *options,
        ]  # fmt: skip
        before = 0.0
        if interrupt:
            began = time.perf_counter()
            first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            time.sleep(INTERRUPTED_S)
            first.terminate()
            if first.wait() == 0:
                raise RuntimeError(f"the screening ended within {INTERRUPTED_S} s")
            before = time.perf_counter() - began
        began = time.perf_counter()
        running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert running.stdout is not None
        said = running.stdout.read()
        _, status, usage = os.wait4(running.pid, 0)
        if status != 0:
            raise RuntimeError(f"flywise screen ended with {os.waitstatus_to_exitcode(status)}")
        figures = json.loads(said.strip().splitlines()[-1])
    return {
        "figures": figures, "before_s": before, "wall_s": time.perf_counter() - began,
        "peak_MB": usage.ru_maxrss * 1024 / 1e6, "context": context(),
    }  # fmt: skip


def whole() -> dict[str, Any]:
    """Screen the largest pool by the cascade, interrupted once."""
    options = ("-n", str(PICKED), "--shortlist", str(LISTED))
    return _brief(screened(SIZES[-1], *options, interrupt=True))


def by_activations(n: int) -> dict[str, Any]:
    """Screen by activations alone."""
    return _brief(screened(n, "-n", "100", "--kernel", "activation"))


def _brief(found: dict[str, Any]) -> dict[str, Any]:
    """Return the same without what was chosen."""
    figures = {name: value for name, value in found["figures"].items() if name != "choices"}
    return found | {"figures": figures}


def recall() -> dict[str, Any]:
    """Choose with all on the shortlist, and from shorter ones; return what is shared and left.

    "left" is the mean variance of the pool after the choice, in units of the noise squared.
    """
    n = SMALL * PICKED // SIZES[-1]
    same_share = SMALL * LISTED // SIZES[-1]
    features = Features(_potential(), Recipe("joint"))
    rows = list(features(list(pool.structures(made(SMALL)))))
    train = list(features(list(pool.structures(made(LABELLED, 2)))))

    def left(chosen: list[int]) -> float:
        known = [*train, *(rows[i] for i in chosen)]
        return float(Shortlist(rows, has_energy=True, train=known).scores().total.mean())

    every = Shortlist(rows, has_energy=True, train=train).choose(10 * n)
    found: dict[str, Any] = {"nothing": left([])}
    for picked, listed in ((n, same_share), (10 * n, 10 * same_share)):
        found[f"all, {picked}"] = {"shared": 1.0, "left": left(every[:picked])}
        options = ("-n", str(picked), "--shortlist", str(listed))
        chosen = [c["index"] for c in screened(SMALL, *options)["figures"]["choices"]]
        shared = len({*chosen} & {*every[:picked]}) / picked
        found[f"{listed}, {picked}"] = {"shared": shared, "left": left(chosen)}
        rng = np.random.default_rng(0)
        drawn = [int(i) for i in rng.permutation(SMALL)[:picked]]
        shared = len({*drawn} & {*every[:picked]}) / picked
        found[f"random, {picked}"] = {"shared": shared, "left": left(drawn)}
    return found


def _potential() -> Potential:
    return cast(Potential, load("bundled", dtype="float32"))


def main() -> None:
    """Measure what is missing and print the tables."""
    wanted: dict[str, Callable[[], dict[str, Any]]] = {
        **{f"activation-{n}": partial(by_activations, n) for n in SIZES},
        "recall": recall, "whole": whole,
    }  # fmt: skip
    found = measured("screen", wanted, arguments(__doc__).parse_args())
    print(_times(found))
    if "recall" in found:
        print(_recalled(found["recall"]))
    print(machine(context(seed=1)))


def _times(found: dict[str, dict[str, Any]]) -> str:
    lines: list[list[Any]] = []
    measured = [(n, found[f"activation-{n}"]) for n in SIZES if f"activation-{n}" in found]
    for n, c in measured:
        took = c["figures"]["stages_s"]["activations"]
        lines.append([f"activations of {n:,}", took, 1e3 * took / n, c["wall_s"], c["peak_MB"]])
    if "whole" in found:
        c = found["whole"]
        stages = c["figures"]["stages_s"]
        lines += [
            [f"cascade on {SIZES[-1]:,}: activations, after the interruption",
             stages["activations"], "", "", ""],
            [f"joint rows of {LISTED:,}", stages["joint"], 1e3 * stages["joint"] / LISTED, "", ""],
            [f"all, {PICKED:,} chosen, with the {c['before_s']:.0f} s before the interruption",
             c["before_s"] + c["wall_s"], "", c["wall_s"], c["peak_MB"]],
        ]  # fmt: skip
    columns = ("what", "s", "ms a structure", "s in all", "peak MB")
    shown = table("Screening", columns, lines)
    if len(measured) > 1:
        sizes = np.log([n for n, _ in measured])
        times = np.log([c["figures"]["stages_s"]["activations"] for _, c in measured])
        shown += f"\nlog-log slope of the activations' time: {np.polyfit(sizes, times, 1)[0]:.2f}\n"
    return shown


def _recalled(found: dict[str, Any]) -> str:
    lines = []
    for name, value in found.items():
        if name == "nothing":
            lines.append(["–", 0, "", value])
            continue
        listed, picked = name.rsplit(", ", 1)
        lines.append([listed, picked, f"{100 * value['shared']:.0f} %", value["left"]])
    columns = ("shortlist", "chosen", "of those chosen from all", "left unknown of the pool")
    return table(f"What the cascade loses, of {SMALL:,} structures", columns, lines)


if __name__ == "__main__":
    main()
