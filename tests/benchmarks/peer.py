"""The peer, by its own programs: mace_run_train, and a committee in a MACECalculator."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fixed_data import SPICE, write

from core.contracts import LabelSet, Spread
from core.finetuning.strategies import strategy
from core.posterior.largest import largest_change
from core.potentials.mace import MacePotential, guarded, scripted

EPOCHS, BATCH = 40, 5


class PeerError(Exception):
    """mace_run_train did not end well; holds the end of what it said."""


def checkpoint(source: str, start: MacePotential, place: Path) -> Path:
    """Return a foundation as mace-torch loads it: the file it came in, or one made of it.

    The file is in double precision, parts of it compiled, which mace_run_train leaves as they are.
    """
    if source == "spice" and start.dtype == torch.float64:
        return SPICE
    path = place / "foundation.model"
    if not path.exists():
        place.mkdir(parents=True, exist_ok=True)
        torch.save(scripted(start), path)
    return path


def run_train(
    foundation: Path, train: LabelSet, valid: LabelSet, place: Path, *, name: str, seed: int,
    dtype: str, options: dict[str, Any], rehearsed: LabelSet | None = None,
) -> tuple[float, Path]:  # fmt: skip
    """Fine-tune with mace_run_train and a strategy's published hyperparameters.

    Args:
        place: folder to work in. name: of the strategy. options: more of mace's, which make it do
            what the strategy does. rehearsed: frames of the pretraining.

    Returns:
        wall time of its process, s, and the model.

    Raises:
        PeerError: it failed.
    """
    published = strategy(name).training
    write(place / "train.xyz", train)
    write(place / "valid.xyz", valid)
    given: dict[str, Any] = {
        "name": "peer", "train_file": "train.xyz", "valid_file": "valid.xyz",
        "foundation_model": foundation, "multiheads_finetuning": False, "E0s": "estimated",
        "lr": published.learning_rate, "ema_decay": published.ema,
        "clip_grad": published.clip, "weight_decay": 0.0, "batch_size": BATCH,
        "valid_batch_size": 10, "max_num_epochs": EPOCHS, "default_dtype": dtype,
        "device": "cpu", "seed": seed, "energy_weight": 1.0, "forces_weight": 10.0,
        "energy_key": "REF_energy", "forces_key": "REF_forces", "eval_interval": 1,
        **options,
    }  # fmt: skip
    if rehearsed is not None:
        write(place / "replay.xyz", rehearsed)
        given |= {"pt_train_file": "replay.xyz", "force_mh_ft_lr": True}
    words = [f"--{key}={value}" for key, value in given.items()]
    command = [sys.executable, "-m", "mace.cli.run_train", *words, "--ema", "--amsgrad"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    made = place / "peer.model"
    if done.returncode or not made.exists():
        raise PeerError((done.stderr or done.stdout).strip()[-1500:])
    return seconds, made


def committee(potentials: Sequence[MacePotential], test: LabelSet) -> tuple[list[Spread], float]:
    """Return what a MACECalculator says of every structure, and milliseconds each.

    σ is the spread of the members: of the energy its standard deviation, of each atom's force the
    root of the sum over components of their variances, of the largest as of all posteriors.
    """
    with guarded():
        from mace.calculators import MACECalculator

    members = [scripted(potential) for potential in potentials]
    dtype = str(potentials[0].dtype).removeprefix("torch.")
    calculator = MACECalculator(models=members, device="cpu", default_dtype=dtype)
    spreads = []
    began = time.perf_counter()
    for structure in test.structures:
        atoms = structure.to_atoms()
        calculator.calculate(atoms, properties=["energy", "forces"])
        found = calculator.results
        n = len(structure)
        if len(members) == 1:
            sigma, sigmas, largest = np.nan, np.full(n, np.nan), np.nan
        else:
            sigma = float(np.sqrt(found["energy_var"]))
            apart = np.asarray(found["forces_comm"]) - found["forces"]
            sigmas, largest = np.sqrt((apart**2).mean(0).sum(1)), largest_change(apart)
        mean = float(found["energy"]), np.asarray(found["forces"])
        spreads.append(Spread(*mean, sigma, sigmas, largest))
    return spreads, 1e3 * (time.perf_counter() - began) / len(test)
