"""Labelled frames that studies on fixed data share: what to learn from, what to be tested on."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from core.campaign import extxyz
from core.campaign.finetune import label_set
from core.campaign.labels import read
from core.contracts import LabelSet
from core.dynamics.integrators import Dynamics
from core.finetuning.tuning import subset
from core.potentials import load
from core.potentials.convert import convert
from core.potentials.mace import MacePotential
from core.reference import make as make_reference
from core.settings import DynamicsSettings
from core.structures import Structure, from_smiles
from core.units import KCAL_PER_MOL

SHARED = Path(__file__).resolve().parents[3] / "shared"
SPICE = SHARED / "models" / "mace-spice.model"
WORK = Path(__file__).resolve().parent / "work"
"""Labels made here; delete it when the bundled model changes."""
STRIDE, TESTS = 40, 200


def foundation(name: str, folder: Path, dtype: str) -> MacePotential:
    """Return the foundation "bundled" or "spice", whose pickle is converted into `folder` first."""
    if name == "bundled":
        return load("bundled", dtype=dtype)  # type: ignore[return-value]
    if not (folder / "config.json").exists():
        convert(SPICE, folder, consent=True)
    return load(str(folder), dtype=dtype)  # type: ignore[return-value]


def frames(n: int, seed: int, temperature: float = 300.0) -> list[Structure]:
    """Return every `STRIDE`-th frame of a run of the bundled model on ethanol."""
    start = from_smiles("CCO")
    evaluate = load("bundled").evaluator(start)
    settings = DynamicsSettings(temperature_K=temperature)
    dynamics = Dynamics(start, evaluate, settings, np.random.default_rng(seed))
    out = []
    for _ in range(n):
        dynamics.run(STRIDE)
        out.append(dynamics.structure)
    return out


def kept(name: str, make: Callable[[], tuple[LabelSet, np.ndarray]]) -> tuple[LabelSet, np.ndarray]:
    """Return labels of frames of one molecule, with a value of each, made once on this machine."""
    path = WORK / f"{name}.npz"
    if not path.exists():
        labels, values = make()
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f"{path.stem}-{os.getpid()}.part.npz")
        np.savez(
            part, numbers=labels.structures[0].numbers, values=values, energies=labels.energies,
            positions=[s.positions for s in labels.structures], forces=labels.forces,
        )  # fmt: skip
        part.replace(path)
    with np.load(path) as data:
        frames = tuple(Structure(data["numbers"], r) for r in data["positions"])
        return LabelSet(frames, data["energies"], tuple(data["forces"])), data["values"]


def labelled(structures: list[Structure]) -> LabelSet:
    """Return GFN2-xTB labels of the frames."""
    reference = make_reference("gfn2-xtb")
    labels = [reference.compute(s) for s in structures]
    return LabelSet(
        tuple(structures), np.array([x.energy for x in labels]), tuple(x.forces for x in labels)
    )


def gfn2(n: int, seed: int, temperature: float = 300.0) -> LabelSet:
    """Return ethanol at GFN2-xTB."""

    def make() -> tuple[LabelSet, np.ndarray]:
        return labelled(frames(n, seed, temperature)), np.zeros(0)

    return kept(f"ethanol-{n}-{seed}-{temperature:.0f}K", make)[0]


def ethanol(part: str) -> LabelSet:
    """Return rMD17's ethanol, PBE/def2-SVP, at 500 K: its "train" or its "test" file."""
    with np.load(SHARED / "data" / "rmd17-ethanol" / f"{part}_01.npz") as data:
        numbers, coords = data["nuclear_charges"].astype(int), data["coords"].astype(float)
        energies, forces = data["energies"] * KCAL_PER_MOL, data["forces"] * KCAL_PER_MOL
    return LabelSet(tuple(Structure(numbers, r) for r in coords), energies, tuple(forces))


def three_bpa(part: str) -> LabelSet:
    """Return 3BPA, wB97X/6-31G(d): the file at "300K", or that at all temperatures, "mixedT"."""
    path = SHARED / "data" / "3bpa" / f"train_{part}.xyz"
    return label_set(read(path.read_bytes(), path.name))


@lru_cache(maxsize=16)
def drawn(make: Callable[[], LabelSet], n: int, seed: int) -> LabelSet:
    """Return n labels of a set, another draw for each seed."""
    made = _all(make)
    return subset(made, np.random.default_rng(seed).permutation(len(made))[:n])


@lru_cache(maxsize=8)
def _all(make: Callable[[], LabelSet]) -> LabelSet:
    return make()


def write(path: Path, labels: LabelSet) -> None:
    """Write labels as extended XYZ, with the keys that mace reads too."""
    extxyz.save(
        path,
        (
            extxyz.write(s, {"REF_energy": float(e)}, {"pos": s.positions, "REF_forces": f})
            for s, e, f in zip(labels.structures, labels.energies, labels.forces, strict=True)
        ),
    )
