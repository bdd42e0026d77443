"""Train the bundled foundation model on the GFN1-xTB data made by `make_data.py`.

    python assets/foundation/train.py --minutes 60
    python assets/foundation/train.py --export assets/models/bundled

The run is bounded by time, writes a checkpoint each epoch and continues from it; `--start` begins
at the weights of an earlier bundle. `--export` writes the averaged weights as a bundle, with the
errors measured on molecules never trained on.
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
from core.contracts import LabelSet
from core.potentials.load import load as load_potential
from core.potentials.load import save
from core.potentials.mace import MacePotential, default_config
from core.structures import Structure
from core.training import Dataset, Loss, Trainer, TrainerSettings, evaluate
from dataset import Sample, load
from dataset import save as save_frames
from molecules import NUMBERS, is_exotic

WORK = Path(__file__).resolve().parent / "work"
LOG, CHECKS = WORK / "train.log", WORK / "checks.json"
BATCH = 16
PART = 2000
"""Batches after which a checkpoint is written."""
REPLAY, REPLAY_FORCE = 600, 15.0
"""Frames that ship with the model, and the largest force in them, eV/Å."""


def label_set(frames: list[Sample]) -> LabelSet:
    """Return the frames as labels (total GFN1-xTB energies, eV)."""
    structures = tuple(Structure(f.numbers.astype(int), f.positions.astype(float)) for f in frames)
    return LabelSet(
        structures, np.array([f.energy for f in frames]), tuple(f.forces for f in frames)
    )


def isolated_energies(frames: list[Sample]) -> np.ndarray:
    """Least-squares energy per element, eV, over frames with moderate forces."""
    calm = [f for f in frames if np.abs(f.forces).max() < 5 and len(f.numbers) > 1]
    counts = np.array([[(f.numbers == z).sum() for z in NUMBERS] for f in calm], dtype=float)
    weights = 1 / counts.sum(axis=1)
    energies = np.array([f.energy for f in calm])
    solution, *_ = np.linalg.lstsq(counts * weights[:, None], energies * weights, rcond=None)
    return solution


def new_potential(frames: list[Sample], channels: int, cutoff: float, seed: int) -> MacePotential:
    """Return an untrained model whose scale is the spread of the forces."""
    torch.manual_seed(seed)
    sample = label_set(frames[:500])
    neighbours = []
    for s in sample.structures:
        distances = np.linalg.norm(s.positions[:, None] - s.positions[None], axis=-1)
        neighbours.extend(((distances < cutoff).sum(axis=1) - 1).tolist())
    forces = np.concatenate([f.forces for f in frames])
    config = default_config(
        NUMBERS,
        isolated_energies(frames),
        channels=channels,
        max_ell=2,
        cutoff=cutoff,
        avg_num_neighbors=float(np.mean(neighbours)),
        scale=float(np.sqrt((np.clip(forces, -10, 10) ** 2).mean())),
        pair_repulsion=True,
    )
    return MacePotential(config, name="bundled")


def main() -> None:
    """Parse the command line, train or export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--channels", type=int, default=96)
    parser.add_argument("--cutoff", type=float, default=4.5)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, default=None, help="use at most this many frames")
    parser.add_argument("--checkpoint", type=Path, default=WORK / "train.pt")
    parser.add_argument("--start", type=Path, default=None, help="bundle to start from")
    parser.add_argument("--export", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.export is not None:
        export(arguments)
    else:
        train(arguments)


def _frames(arguments: argparse.Namespace) -> tuple[list[Sample], list[Sample]]:
    listed = json.loads((WORK / "molecules.json").read_text())
    train = {m["id"] for m in listed if m["split"] == "train"}
    files = [WORK / "atoms.npz", *sorted(WORK.glob("*_[0-9]*.npz"))]
    frames = [
        f for f in load(files) if len(f.numbers) > 1 and (f.molecule in train or f.molecule < 0)
    ]
    return frames[: arguments.limit], load([WORK / "valid.npz"])


def train(arguments: argparse.Namespace) -> None:
    """Train until the time is spent, writing checkpoints."""
    config_path = arguments.checkpoint.with_suffix(".json")
    frames, valid = _frames(arguments)
    print(f"{len(frames)} frames of {len({f.molecule for f in frames})} molecules", flush=True)
    if config_path.exists():
        potential = MacePotential(json.loads(config_path.read_text()), name="bundled")
    else:
        if arguments.start is not None:
            potential = load_potential(str(arguments.start))
        else:
            potential = new_potential(frames, arguments.channels, arguments.cutoff, arguments.seed)
        config_path.write_text(json.dumps(potential.config))
    settings = TrainerSettings(
        epochs=10_000,
        batch_size=BATCH,
        learning_rate=arguments.rate,
        final_rate=0.005,
        ema=0.999,
        max_seconds=60 * arguments.minutes,
        epoch_batches=PART,
    )
    data = Dataset(potential, label_set(frames))
    test = Dataset(potential, label_set(valid[::3]))
    loss = Loss(energy=20.0, force=10.0, per_atom=1.0, huber=0.1)
    trainer = Trainer(
        potential, data, settings, loss=loss, rng=np.random.default_rng(arguments.seed)
    )
    if arguments.checkpoint.exists():
        trainer.load(arguments.checkpoint)
    for progress in trainer.epochs():
        trainer.save(arguments.checkpoint)
        report(potential, trainer, test, progress)


def report(potential, trainer, test, progress) -> None:  # type: ignore[no-untyped-def]
    """Print training errors, and those of the averaged weights on unseen molecules."""
    current = potential.get_theta()
    potential.set_theta(trainer.averaged_theta())
    energy, force = evaluate(potential, test)
    potential.set_theta(current)
    print(
        f"epoch {progress.epoch} {progress.seconds:.0f} s  train E {1e3 * progress.energy_rmse:.1f}"
        f" meV/atom F {1e3 * progress.force_rmse:.0f} meV/Å  unseen E {1e3 * energy:.1f}"
        f" F {1e3 * force:.0f}",
        flush=True,
    )


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
    """Return the errors on the unseen molecules, those with strained or rare groups apart."""
    smiles = {m["id"]: m["smiles"] for m in json.loads((WORK / "molecules.json").read_text())}
    rare = [f for f in valid if is_exotic(smiles[f.molecule])]
    common = [f for f in valid if not is_exotic(smiles[f.molecule])]
    return {
        f"unseen, {len({f.molecule for f in part})} {name}": errors(potential, part)
        for name, part in (("common molecules", common), ("with strained or rare groups", rare))
    }


def export(arguments: argparse.Namespace) -> None:
    """Write the averaged weights as a bundle with a model card."""
    frames, valid = _frames(arguments)
    config = json.loads(arguments.checkpoint.with_suffix(".json").read_text())
    potential = MacePotential(config, name="bundled")
    state = torch.load(arguments.checkpoint, weights_only=True)
    potential.set_theta(state["average"])
    about = {
        "title": "Flywise bundled foundation model, version 1",
        "label_fingerprint": "GFN1-xTB (tblite)",
        "training": {
            "frames": len(frames),
            "molecules": len({f.molecule for f in frames}),
            "epochs": state["counters"][0],
            "minutes": round(state["counters"][2] / 60, 1),
            "seed": arguments.seed,
            "machine": f"{platform.machine()}, {arguments.threads} threads",
            "date": time.strftime("%Y-%m-%d"),
        },
        "errors": {
            "all unseen molecules": errors(potential, valid),
            **by_class(potential, valid),
            "ASE g2 (never trained on)": errors(potential, load([WORK / "g2_test.npz"])),
        },
        "curve": curve(),
    }
    if CHECKS.exists():
        about["checks"] = json.loads(CHECKS.read_text())
    if arguments.start is not None:
        earlier = json.loads((arguments.start / "config.json").read_text())["about"]
        about["training"]["earlier"] = earlier["training"]
    save(potential, arguments.export, about)
    rng = np.random.default_rng(arguments.seed)
    save_frames(arguments.export / "replay.npz", replay(frames, rng))
    (arguments.export / "MODEL_CARD.md").write_text(card(potential, about), encoding="utf-8")
    print(json.dumps(about, indent=1))


def curve() -> list[dict[str, float]]:
    """Return the errors on unseen molecules after each epoch, from the log: meV/atom, meV/Å."""
    pattern = r"epoch (\d+) (\d+) s .* unseen E ([\d.]+) F (\d+)"
    found = re.findall(pattern, LOG.read_text()) if LOG.exists() else []
    return [
        {
            "epoch": int(n),
            "minutes": round(int(s) / 60),
            "energy_RMSE": float(e),
            "forces_RMSE": int(f),
        }
        for n, s, e, f in found
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
