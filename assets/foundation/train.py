"""Train the bundled foundation model on the GFN1-xTB data made by `make_data.py`.

    python assets/foundation/train.py --minutes 95
    python assets/foundation/train.py --export assets/models/bundled

Each process trains on its share of the data, on one core; gradients are averaged. The learning
rate falls in proportion to the time left. The run is bounded by time, writes checkpoints and
continues from the last; `--start` begins at the weights of an earlier bundle, widened to
`--channels`. `--export` writes the averaged weights as a bundle, with the errors measured on
molecules never trained on.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import distributed, multiprocessing

sys.path.insert(0, str(Path(__file__).resolve().parent))


from card import card
from core.contracts import LabelSet
from core.potentials.load import load as load_potential
from core.potentials.load import save
from core.potentials.mace import MacePotential, default_config
from core.structures import Structure
from core.training import Dataset, Loss
from dataset import Sample, load
from dataset import save as save_frames
from gradients import Gradients, Shape, packed
from molecules import FAMILIES, FIRST_ID, NUMBERS, TINY, is_exotic, scaffold
from soap import Soap
from widen import widened

WORK = Path(__file__).resolve().parent / "work"
LOG, CHECKS = WORK / "train.log", WORK / "checks.json"
LOSS = Loss(energy=20.0, force=10.0, per_atom=1.0, huber=0.05)
CLIP, WARM_UP, AVERAGED = 10.0, 100, 0.999
"""Largest norm of a gradient, steps until the full learning rate, decay of averaged weights."""
REPORTED_K = (300, 1200)
"""Temperatures of the unseen molecules whose errors the learning curve shows."""
NEAREST, WALL_COPIES = 0.45, 4
"""Length of the shortest pair of atoms trained on, Å; copies of such pairs for each process."""
PART_S = 300.0
"""Seconds after which a checkpoint is written."""
WORST = 6
"""Molecules that the card names as known failures, of each test."""
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
    parser.add_argument("--rate", type=float, default=3e-2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, default=None, help="use at most this many frames")
    parser.add_argument("--checkpoint", type=Path, default=WORK / "train.pt")
    parser.add_argument("--start", type=Path, default=None, help="bundle to start from")
    parser.add_argument(
        "--rehearse", action="store_true",
        help="of molecules like those it knows, train on what --start itself predicts",
    )  # fmt: skip
    parser.add_argument("--export", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.export is not None:
        export(arguments)
    else:
        train(arguments)


def _frames(arguments: argparse.Namespace) -> tuple[list[Sample], list[Sample]]:
    listed = json.loads((WORK / "molecules.json").read_text())
    train = {m["id"] for m in listed if m["split"] == "train"}
    files = [WORK / "atoms.npz", WORK / "tiny.npz", *sorted(WORK.glob("*_[0-9]*.npz"))]
    frames = [
        f for f in load(files) if len(f.numbers) > 1 and (f.molecule in train or f.molecule < 0)
    ]
    return frames[: arguments.limit], load([WORK / "valid.npz"])


@dataclass(frozen=True)
class Share:
    """What one process is: its number, and how many there are."""

    rank: int
    processes: int

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean of `values` over the processes."""
        distributed.all_reduce(values)
        return values.div_(self.processes)


def train(arguments: argparse.Namespace) -> None:
    """Train until the time is spent, writing checkpoints."""
    meeting = WORK / "processes"
    meeting.unlink(missing_ok=True)
    multiprocessing.spawn(work, (arguments, meeting), nprocs=arguments.processes)


def work(rank: int, arguments: argparse.Namespace, meeting: Path) -> None:
    """Train in one of the processes."""
    torch.set_num_threads(1)
    share = Share(rank, arguments.processes)
    distributed.init_process_group(
        "gloo", init_method=meeting.as_uri(), rank=rank, world_size=share.processes
    )
    frames, valid = _frames(arguments)
    if arguments.rehearse:
        frames = rehearsed(cast(MacePotential, load_potential(str(arguments.start))), frames)
    order = np.random.default_rng(arguments.seed).permutation(len(frames))
    potential = _model(arguments, frames)
    mine = [frames[i] for i in order[rank :: share.processes]]
    mine += WALL_COPIES * walls(potential, frames)
    data = Dataset(potential, label_set(mine))
    tests = {
        t: Dataset(potential, label_set([f for f in valid if f.temperature == t][rank::4]))
        for t in REPORTED_K
    }
    if rank == 0:
        molecules = {f.molecule for f in frames}
        print(f"{len(frames)} frames of {len(molecules)} molecules", flush=True)
    training = Training(potential, data, share, arguments)
    if arguments.checkpoint.exists():
        training.load(arguments.checkpoint)
    for told in training.parts():
        line = training.report(told, tests)
        if rank == 0:
            print(line, flush=True)
            training.save(arguments.checkpoint)


def _model(arguments: argparse.Namespace, frames: list[Sample]) -> MacePotential:
    """Return the model of the checkpoint or of `--start`, or a new one."""
    if arguments.checkpoint.exists():
        state = torch.load(arguments.checkpoint, weights_only=True)
        return MacePotential(state["config"], name="bundled")
    if arguments.start is not None:
        start = cast(MacePotential, load_potential(str(arguments.start)))
        return widened(start, arguments.channels, arguments.seed)
    return new_potential(frames, arguments.channels, arguments.cutoff, arguments.seed)


def rehearsed(start: MacePotential, frames: list[Sample]) -> list[Sample]:
    """Return the frames; those of molecules with an id have the energies and forces of `start`.

    It learned from ten times as many: by labels of these few it would forget the others.
    """
    known = [k for k, f in enumerate(frames) if f.molecule >= 0]
    found = start.predict(label_set([frames[k] for k in known]).structures)
    assert found.forces is not None
    out = list(frames)
    for k, energy, forces in zip(known, found.energies, found.forces, strict=True):
        out[k] = replace(frames[k], energy=float(energy), forces=forces)
    return out


def walls(potential: MacePotential, frames: list[Sample]) -> list[Sample]:
    """Return pairs of atoms nearer than any that was labelled, pushed apart by nuclear repulsion.

    There the force of the rest of the model is to stay what it is at the innermost label.
    """
    bare = potential.recipe().build()
    bare.set_theta(torch.zeros(bare.n_parameters))
    innermost: dict[tuple[int, ...], Sample] = {}
    for f in (f for f in frames if f.molecule < 0 and len(f.numbers) == 2):
        pair = tuple(sorted(int(z) for z in f.numbers))
        if pair not in innermost or _length(f) < _length(innermost[pair]):
            innermost[pair] = f
    found = []
    for label in innermost.values():
        lengths = np.arange(NEAREST, _length(label) - 0.02, 0.05)
        ends = [np.array([[0.0, 0.0, 0.0], [d, 0.0, 0.0]]) for d in (_length(label), *lengths)]
        numbers = label.numbers.astype(int)
        repelled = bare.predict([Structure(numbers, positions) for positions in ends])
        assert repelled.forces is not None
        pushes = np.array([forces[1, 0] for forces in repelled.forces])
        along = (label.positions[1] - label.positions[0]) / _length(label)
        rest = float(label.forces[1] @ along) - pushes[0]
        energies = label.energy + repelled.energies - repelled.energies[0]
        energies[1:] += rest * (_length(label) - lengths)
        for positions, push, energy in zip(ends[1:], pushes[1:] + rest, energies[1:], strict=True):
            forces = np.array([[-push, 0.0, 0.0], [push, 0.0, 0.0]])
            found.append(Sample(label.numbers, positions, forces, float(energy), -1, "wall", 0.0))
    return found


def _length(pair: Sample) -> float:
    return float(np.linalg.norm(pair.positions[1] - pair.positions[0]))


class Training:
    """The state of the training in one process, the same in all but for the data."""

    def __init__(
        self, potential: MacePotential, data: Dataset, share: Share, arguments: argparse.Namespace
    ) -> None:
        self._potential, self._data, self._share = potential, data, share
        self._seconds_in_all, self._rate = 60 * arguments.minutes, arguments.rate
        self._rng = np.random.default_rng([arguments.seed, share.rank])
        self._soap = Soap(potential.module, arguments.channels, rate=arguments.rate)
        self._average = potential.get_theta()
        self._steps, self._examples, self._seconds = 0, 0, 0.0
        widest = torch.tensor(max(data.width(i) for i in range(len(data))))
        distributed.all_reduce(widest, op=distributed.ReduceOp.MAX)
        self._shape = Shape(width=int(widest))
        like = data.example(next(packed(data, self._shape, self._rng)))
        if share.rank:  # waits until the first process has compiled, then takes its program
            distributed.barrier()
        self._gradients = Gradients(potential, LOSS, self._shape, like)
        self._gradients(like)
        if not share.rank:
            distributed.barrier()

    def parts(self) -> Iterator[float]:
        """Train, yielding the mean loss after every `PART_S` seconds."""
        began = time.perf_counter() - self._seconds
        losses: list[float] = []
        told = self._seconds
        while self._seconds < self._seconds_in_all:
            for batch in packed(self._data, self._shape, self._rng):
                losses.append(self._step(batch, began))
                done = self._seconds >= self._seconds_in_all
                if done or self._seconds >= told + PART_S:
                    told = self._seconds
                    yield sum(losses) / len(losses)
                    losses = []
                if done:
                    return

    def _step(self, batch: list[int], began: float) -> float:
        """Take one step with the gradient of all processes; the first one's clock counts."""
        loss, gradients = self._gradients(self._data.example(batch))
        clock = 0.0 if self._share.rank else self._share.processes * (time.perf_counter() - began)
        told = [loss.reshape(1), torch.tensor([clock, float(len(batch))])]
        together = self._share.mean(torch.cat([*(g.reshape(-1) for g in gradients), *told]))
        mean_loss, self._seconds, examples = together[-3:].tolist()
        self._examples += round(examples * self._share.processes)
        gradient = together[:-3]
        gradient.mul_(min(1.0, CLIP / max(float(gradient.norm()), 1e-12)))
        at = 0
        for p in self._potential.parameters():
            p.grad = gradient[at : at + p.numel()].view_as(p)
            at += p.numel()
        left = max(0.0, 1 - self._seconds / self._seconds_in_all)
        self._steps += 1
        self._soap.rate = self._rate * left * min(1.0, self._steps / WARM_UP)
        self._soap.step()
        decay = min(AVERAGED, (1 + self._steps) / (10 + self._steps))
        self._average.lerp_(self._potential.get_theta(), 1 - decay)
        return mean_loss

    def report(self, loss: float, tests: dict[int, Dataset]) -> str:
        """Return a line with the errors of the averaged weights on unseen molecules."""
        current = self._potential.get_theta()
        self._potential.set_theta(self._average)
        words = []
        for temperature, test in tests.items():
            sums = self._share.mean(absolute_errors(self._potential, test))
            energy, force = (1e3 * sums[:2] / sums[2:]).tolist()
            words.append(f"{temperature} K E {energy:.1f} meV/atom F {force:.1f} meV/Å")
        self._potential.set_theta(current)
        return (
            f"{self._seconds:.0f} s, {self._examples} frames, {self._steps} steps: loss {loss:.3f},"
            f" unseen MAE {', '.join(words)}"
        )

    def save(self, path: Path) -> None:
        """Write a checkpoint, replacing `path` atomically."""
        state = {
            "config": self._potential.config,
            "theta": self._potential.get_theta(),
            "average": self._average,
            "optimizer": self._soap.state(),
            "counters": (self._steps, self._examples, self._seconds),
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; only plain data is read from it."""
        state = torch.load(path, weights_only=True)
        self._potential.set_theta(state["theta"])
        self._average = state["average"]
        self._soap.restore(state["optimizer"])
        self._steps, self._examples, self._seconds = state["counters"]


def absolute_errors(potential: MacePotential, test: Dataset) -> torch.Tensor:
    """Return sums of errors of energies (eV/atom) and forces (eV/Å), then how many there are."""
    sums = torch.zeros(4)
    for start in range(0, len(test), 64):
        example = test.example(range(start, min(start + 64, len(test))))
        energy, forces = potential.energy_and_forces(example.graphs)
        energy_error = (energy.detach() - example.energies) / example.n_atoms
        force_error = forces.detach() - example.forces
        counts = [len(energy_error), force_error.numel()]
        sums += torch.tensor([energy_error.abs().sum(), force_error.abs().sum(), *counts])
    return sums


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
    frames, valid = _frames(arguments)
    state = torch.load(arguments.checkpoint, weights_only=True)
    potential = MacePotential(state["config"], name="bundled")
    potential.set_theta(state["average"])
    about = {
        "title": "Flywise bundled foundation model, version 3",
        "label_fingerprint": "GFN1-xTB (tblite)",
        "training": {
            "frames": len(frames),
            "molecules": len({f.molecule for f in frames}),
            "chosen": len({f.molecule for f in frames if f.molecule >= FIRST_ID * len(FAMILIES)}),
            "rehearsed": sum(f.molecule >= 0 for f in frames) if arguments.rehearse else 0,
            "tiny": len({f.molecule for f in frames if f.molecule < -1}),
            "epochs": round(state["counters"][1] / len(frames), 1),
            "minutes": round(state["counters"][2] / 60, 1),
            "seed": arguments.seed,
            "machine": f"{platform.machine()}, {arguments.processes} cores",
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
    save(potential, arguments.export, about)
    rng = np.random.default_rng(arguments.seed)
    save_frames(arguments.export / "replay.npz", replay(frames, rng))
    (arguments.export / "MODEL_CARD.md").write_text(card(potential, about), encoding="utf-8")
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
