"""Make the bundle of the trained foundation model, with its errors and its card.

    python assets/foundation/export.py assets/models/bundled --version 4

The averaged weights of the checkpoint that `train.py` wrote, the errors measured on molecules never
trained on, and frames for rehearsal.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))


from card import card
from core.potentials.load import save
from core.potentials.mace import MacePotential
from dataset import Sample, load
from dataset import save as save_frames
from molecules import FAMILIES, FIRST_ID, TINY, is_exotic, scaffold
from train import CHECKS, LOG, REPORTED_K, WORK, frames_of, label_set

WORST = 6
"""Molecules that the card names as known failures, of each test."""
REPLAY, REPLAY_FORCE = 600, 15.0
"""Frames that ship with the model, and the largest force in them, eV/Å."""


def main() -> None:
    """Parse the command line, and export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=WORK / "train.pt")
    parser.add_argument("--start", type=Path, default=None, help="bundle that was started from")
    parser.add_argument("--version", type=int, required=True)
    parser.add_argument("--machine", default=platform.machine(), help="that it was trained on")
    parser.add_argument("--rehearse", action="store_true", help="as in training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, default=None, help="frames that were used, at most")
    export(parser.parse_args())


def errors(potential: MacePotential, frames: list[Sample]) -> dict[str, dict[str, float]]:
    """Return errors and counts for each class of frames: meV/Å and meV/atom.

    Energies "within" have each molecule's own mean error removed.
    """
    classes: dict[str, list[Sample]] = {}
    for f in frames:
        name = f"MD {f.temperature:.0f} K" if f.kind == "md" else f.kind
        classes.setdefault(name, []).append(f)
    table = {}
    for name, members in sorted(classes.items()):
        prediction = potential.predict(label_set(members).structures)
        force = np.concatenate(
            [(p - f.forces).ravel() for p, f in zip(prediction.forces, members, strict=True)]
        )
        energy = np.array(
            [
                (p - f.energy) / len(f.numbers)
                for p, f in zip(prediction.energies, members, strict=True)
            ]
        )
        molecule = np.array([f.molecule for f in members])
        within = energy.copy()
        for m in set(molecule):
            within[molecule == m] -= energy[molecule == m].mean()
        table[name] = {
            "frames": len(members),
            "forces_MAE": round(1e3 * float(np.abs(force).mean()), 1),
            "forces_RMSE": round(1e3 * float(np.sqrt((force**2).mean())), 1),
            "energy_within_MAE": round(1e3 * float(np.abs(within).mean()), 2),
            "energy_MAE": round(1e3 * float(np.abs(energy).mean()), 2),
            "energy_RMSE": round(1e3 * float(np.sqrt((energy**2).mean())), 2),
        }
    return table


def by_class(potential: MacePotential, valid: list[Sample]) -> dict[str, dict]:
    """Return the errors on parts of the unseen molecules.

    Those with strained or rare groups apart, and those of ring scaffolds never trained on.
    """
    listed = {m["id"]: m for m in json.loads((WORK / "molecules.json").read_text())}
    smiles = {f.molecule: listed[f.molecule]["smiles"] for f in valid}
    by_scaffold = {k for k in smiles if listed[k]["family"] == "mixed" and scaffold(smiles[k])}
    parts = {
        "common molecules": [f for f in valid if not is_exotic(smiles[f.molecule])],
        "with strained or rare groups": [f for f in valid if is_exotic(smiles[f.molecule])],
        "of unseen ring scaffolds": [f for f in valid if f.molecule in by_scaffold],
    }
    return {
        f"unseen, {len({f.molecule for f in part})} {name}": errors(potential, part)
        for name, part in parts.items()
    }


def errors_of_g2(potential: MacePotential) -> dict[str, dict]:
    """Return the errors on g2: all of it, what was never trained on, and what was."""
    frames = load([WORK / "g2_test.npz"])
    parts = {
        "ASE g2, all {} molecules": frames,
        f"of these {{}} of more than {TINY} atoms, never trained on": [
            f for f in frames if len(f.numbers) > TINY
        ],
        f"of these {{}} of up to {TINY} atoms, trained on by other frames": [
            f for f in frames if len(f.numbers) <= TINY
        ],
    }
    return {
        name.format(len({f.molecule for f in part})): errors(potential, part)
        for name, part in parts.items()
    }


def worst(
    potential: MacePotential, frames: list[Sample], names: dict[int, str]
) -> dict[str, float]:
    """Return name -> MAE of the forces at 300 K, meV/Å, of the molecules that are worst."""
    at = [f for f in frames if f.temperature == REPORTED_K[0]]
    predicted = potential.predict(label_set(at).structures).forces
    assert predicted is not None
    off: dict[int, list[float]] = {}
    for f, p in zip(at, predicted, strict=True):
        off.setdefault(f.molecule, []).append(1e3 * float(np.abs(p - f.forces).mean()))
    means = {m: float(np.mean(values)) for m, values in off.items()}
    return {
        names[m]: round(means[m], 1)
        for m in sorted(means, key=means.__getitem__)[: -WORST - 1 : -1]
    }


def export(arguments: argparse.Namespace) -> None:
    """Write the averaged weights as a bundle with a model card."""
    frames, valid = frames_of(arguments)
    state = torch.load(arguments.checkpoint, weights_only=True, map_location="cpu")
    potential = MacePotential(state["config"], name="bundled")
    potential.set_theta(state["average"])
    about = {
        "title": f"Flywise bundled foundation model, version {arguments.version}",
        "label_fingerprint": "GFN1-xTB (tblite)",
        "training": {
            "frames": state["frames"],
            "molecules": len({f.molecule for f in frames}),
            "chosen": len({f.molecule for f in frames if f.molecule >= FIRST_ID * len(FAMILIES)}),
            "tiny": len({f.molecule for f in frames if f.molecule < -1}),
            "rehearsed": sum(f.molecule >= 0 for f in frames) if arguments.rehearse else 0,
            "epochs": round(state["counters"][1] / state["frames"], 1),
            "minutes": round(state["counters"][2] / 60, 1),
            "seed": arguments.seed,
            "machine": arguments.machine,
            "date": time.strftime("%Y-%m-%d"),
        },
        "errors": {
            "all unseen molecules": errors(
                potential, valid + load([WORK / "valid_geometries.npz"])
            ),
            **by_class(potential, valid),
            **errors_of_g2(potential),
        },
        "curve": curve([]),
        "worst": {
            "unseen molecules": worst(
                potential, valid,
                {m["id"]: m["smiles"] for m in json.loads((WORK / "molecules.json").read_text())},
            ),
            "g2": worst(
                potential, load([WORK / "g2_test.npz"]),
                dict(enumerate(json.loads((WORK / "g2_names.json").read_text()))),
            ),
        },
    }  # fmt: skip
    if CHECKS.exists():
        about["checks"] = json.loads(CHECKS.read_text())
    if arguments.start is not None:
        earlier = json.loads((arguments.start / "config.json").read_text())["about"]
        about["training"]["earlier"] = earlier["training"]
        about["curve"] = curve(earlier["curve"])
    save(potential, arguments.out, about)
    rng = np.random.default_rng(arguments.seed)
    save_frames(arguments.out / "replay.npz", replay(frames, rng))
    (arguments.out / "MODEL_CARD.md").write_text(card(potential, about), encoding="utf-8")
    print(json.dumps(about, indent=1))


def curve(before: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the errors on unseen molecules in the course of training, from the log.

    After those of the runs `before`, whose minutes and frames go on.
    """
    number = r"([\d.]+)"
    by_temperature = rf"E {number} meV/atom F {number} meV/Å"
    pattern = rf"^(\d+) s, (\d+) frames, .* K {by_temperature}, .* K {by_temperature}"
    found = re.findall(pattern, LOG.read_text(), re.MULTILINE) if LOG.exists() else []
    names = [f"{kind}_{t}K" for t in REPORTED_K for kind in ("energy_MAE", "forces_MAE")]
    minutes, done = (before[-1]["minutes"], before[-1]["frames"]) if before else (0, 0)
    return before + [
        {"minutes": minutes + round(int(seconds) / 60), "frames": done + int(frames)}
        | dict(zip(names, map(float, values), strict=True))
        for seconds, frames, *values in found
    ]


def replay(frames: list[Sample], rng: np.random.Generator) -> list[Sample]:
    """Return frames for rehearsal: equally many of each kind, no molecule twice in one kind."""
    kinds: dict[str, dict[int, Sample]] = {}
    for k in rng.permutation(len(frames)):
        f = frames[k]
        if np.abs(f.forces).max() < REPLAY_FORCE:
            kinds.setdefault(f.kind, {}).setdefault(f.molecule, f)
    each = REPLAY // len(kinds)
    return [f for kind in sorted(kinds) for f in list(kinds[kind].values())[:each]]


if __name__ == "__main__":
    main()
