"""Which model to deploy: the bundled one, or it fine-tuned naively, or with replay?

    flywise bench evaluate

All three are given to `flywise evaluate`: fifty labels of ethanol at GFN2-xTB to learn, others to
judge by, and the physics that a table of errors does not show. The report's verdicts are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import cell, context, machine, table
from fixed_data import TESTS, drawn, gfn2, write

from core.campaign.evaluate import Inquiry, evaluate
from core.campaign.finetune import Order, finetune
from core.finetuning.tuning import TuningSettings

LABELS, STEPS, THREADS = 50, 1500, 2
FRAMES = 200
"""Frames of a run, 20 fs apart, that the labels to learn are drawn from."""
STRATEGIES = ("naive", "replay")


def measured() -> dict[str, Any]:
    """Fine-tune and evaluate; return the report's figures, the receipts' errors and the reasons."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        train, test = Path("train.extxyz"), Path("test.extxyz")
        write(train, drawn(partial(gfn2, FRAMES, 11), LABELS, 1))
        write(test, drawn(partial(gfn2, TESTS, 12), TESTS, 0))
        seconds = {}
        for name in STRATEGIES:
            tuning = TuningSettings(steps=STEPS, seed=1)
            order = Order(train=train, out=Path(name), strategy=name, tuning=tuning)
            seconds[name] = finetune(order).seconds
        inquiry = Inquiry(("bundled", *STRATEGIES), test, "gfn2-xtb")
        found = evaluate(inquiry, lambda model, f: print(model, f.name, f.said, flush=True))
    for finding in itertools.chain.from_iterable(found["models"].values()):
        del finding["series"]  # of the plots
    return found | {"tuning_seconds": seconds, "context": context(threads=THREADS)}


def main() -> None:
    """Measure what is missing and print what the report says."""
    argparse.ArgumentParser(prog="flywise bench evaluate").parse_args()
    torch.set_num_threads(THREADS)
    found = cell("evaluate", "ethanol", measured)
    tests = [f["name"] for f in next(iter(found["models"].values()))]
    rows = [
        [name, *(f"{f['verdict']}: {f['said']}" for f in findings)]
        for name, findings in found["models"].items()
    ]
    print(table(f"Ethanol at GFN2-xTB, {LABELS} labels", ("model", *tests), rows))
    print(f"Deploy {found['deploy']}: {found['because']}\n")
    print(machine(found["context"]))


if __name__ == "__main__":
    main()
