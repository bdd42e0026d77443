"""Train the bundled foundation model on the GFN1-xTB data made by `make_data.py`.

    python assets/foundation/train.py --minutes 95

Each process trains on its share of the data, on one core; gradients are averaged. With a CUDA card
elsewhere, `--pack` writes the data for it, and `--device cuda` trains there. The learning rate
falls in proportion to the time left. The run is bounded by time, writes checkpoints and continues
from the last; `--start` begins at the weights of an earlier bundle, widened to `--channels`.
`export.py` makes a bundle of the averaged weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import distributed, multiprocessing

sys.path.insert(0, str(Path(__file__).resolve().parent))


from core.contracts import LabelSet
from core.potentials.device import require_cuda
from core.potentials.load import load as load_potential
from core.potentials.mace import MacePotential, default_config
from core.structures import Structure
from core.training import Dataset, Loss
from dataset import NUMBERS, Sample, load
from gradients import Gradients, Padded, Shape, packed
from resident import Resident, pack
from soap import Soap
from widen import widened

WORK = Path(__file__).resolve().parent / "work"
LOG, CHECKS, PACKED = WORK / "train.log", WORK / "checks.json", WORK / "packed.npz"
LOSS = Loss(energy=20.0, force=10.0, per_atom=1.0, huber=0.05)
CLIP, WARM_UP, AVERAGED = 10.0, 100, 0.999
"""Largest norm of a gradient, steps until the full learning rate, decay of averaged weights."""
REPORTED_K = (300, 1200)
"""Temperatures of the unseen molecules whose errors the learning curve shows."""
NEAREST, WALL_COPIES = 0.45, 4
"""Length of the shortest pair of atoms trained on, Å; copies of such pairs for each process."""
SHAPE_ON_CARD = Shape(atoms=3600, edges=38_400, structures=300)
"""Of a batch on a CUDA card."""
SHARES = {"reaction": 0.5, "dimer": 0.5, "scan": 0.5}
"""Of the frames of a kind, how many are packed for the card; of other kinds all."""
CLOCK_STEPS = 10
"""Steps after which the clock is read."""


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
    """Parse the command line, and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--channels", type=int, default=96)
    parser.add_argument("--cutoff", type=float, default=4.5)
    parser.add_argument("--rate", type=float, default=3e-2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--part", type=float, default=300.0, help="seconds between checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, default=None, help="use at most this many frames")
    parser.add_argument("--checkpoint", type=Path, default=WORK / "train.pt")
    parser.add_argument("--start", type=Path, default=None, help="bundle to start from")
    parser.add_argument(
        "--rehearse", action="store_true",
        help="of molecules like those it knows, train on what --start itself predicts",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pack", action="store_true", help="write the data for --device cuda")
    arguments = parser.parse_args()
    on_card = arguments.pack or arguments.device == "cuda"
    if on_card and arguments.start is None and not arguments.checkpoint.exists():
        parser.error("on a card training goes on: name a bundle with --start, or a --checkpoint")
    if arguments.pack:
        pack_frames(arguments)
    elif arguments.device == "cuda":
        train_on_card(arguments)
    else:
        train(arguments)


def frames_of(arguments: argparse.Namespace) -> tuple[list[Sample], list[Sample]]:
    """Return the frames to train on, and those of unseen molecules."""
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
        if self.processes > 1:
            distributed.all_reduce(values)
        return values.div_(self.processes)

    def largest(self, value: int) -> int:
        """Return the largest `value` that any of the processes has."""
        found = torch.tensor(value)
        if self.processes > 1:
            distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return int(found)

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.processes > 1:
            distributed.barrier()


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
    frames, valid = frames_of(arguments)
    if arguments.rehearse:
        frames = rehearsed(cast(MacePotential, load_potential(str(arguments.start))), frames)
    order = np.random.default_rng(arguments.seed).permutation(len(frames))
    potential = _model(arguments, frames)
    mine = [frames[i] for i in order[rank :: share.processes]]
    mine += WALL_COPIES * walls(potential, frames)
    if rank == 0:
        molecules = {f.molecule for f in frames}
        print(f"{len(frames)} frames of {len(molecules)} molecules", flush=True)
    source = Padded(Dataset(potential, label_set(mine)), len(potential.elements))
    training = Training(potential, source, Shape(), share, arguments)
    _train(training, tests(potential, valid, share), arguments)


def train_on_card(arguments: argparse.Namespace) -> None:
    """Train on a CUDA card, on the frames that `--pack` wrote."""
    alone = Share(0, 1)
    potential = _model(arguments, [])
    potential.move_to(require_cuda())
    source = Resident(potential, PACKED)
    print(f"{len(source)} frames", flush=True)
    training = Training(
        potential, source, SHAPE_ON_CARD, alone, arguments,
        renew=25, options={"triton.cudagraphs": True},
    )  # fmt: skip
    _train(training, tests(potential, load([WORK / "valid.npz"]), alone), arguments)


def tests(potential: MacePotential, valid: list[Sample], share: Share) -> dict[int, Dataset]:
    """Return this process's share of a quarter of the unseen molecules' frames, by temperature."""
    return {
        t: Dataset(potential, label_set([f for f in valid if f.temperature == t][share.rank :: 4]))
        for t in REPORTED_K
    }


def _train(training: Training, tests: dict[int, Dataset], arguments: argparse.Namespace) -> None:
    if arguments.checkpoint.exists():
        training.load(arguments.checkpoint)
    for told in training.parts():
        line = training.report(told, tests)
        if training.leads:
            print(line, flush=True)
            training.save(arguments.checkpoint)


def pack_frames(arguments: argparse.Namespace) -> None:
    """Write what `--device cuda` trains on."""
    frames, _ = frames_of(arguments)
    draws = np.random.default_rng(arguments.seed).random(len(frames))
    chosen = [
        f
        for f, draw in zip(frames, draws, strict=True)
        if f.molecule < 0 or draw < SHARES.get(f.kind, 1.0)
    ]
    pack(PACKED, chosen + 2 * WALL_COPIES * walls(_model(arguments, frames), frames))
    print(f"{len(chosen)} frames, {PACKED.stat().st_size / 2**20:.1f} MiB: {PACKED}")


def _model(arguments: argparse.Namespace, frames: list[Sample]) -> MacePotential:
    """Return the model of the checkpoint or of `--start`, or a new one."""
    if arguments.checkpoint.exists():
        state = torch.load(arguments.checkpoint, weights_only=True, map_location="cpu")
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
        self, potential: MacePotential, source: Padded | Resident, shape: Shape, share: Share,
        arguments: argparse.Namespace, *, renew: int = 10, options: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._potential, self._source, self._share = potential, source, share
        self._seconds_in_all, self._rate = 60 * arguments.minutes, arguments.rate
        self._part = arguments.part
        self._rng = np.random.default_rng([arguments.seed, share.rank])
        self._soap = Soap(potential.module, arguments.channels, rate=arguments.rate, renew=renew)
        self._average = self._weights()
        self._steps, self._examples, self._seconds = 0, 0, 0.0
        self._shape = replace(shape, width=share.largest(source.width))
        like = source.inputs(next(packed(source, self._shape, self._rng)), self._shape)
        if share.rank:  # waits until the first process has compiled, then takes its program
            share.wait()
        self._gradients = Gradients(potential, LOSS, self._shape, like, options)
        self._gradients(like)
        if not share.rank:
            share.wait()

    @property
    def leads(self) -> bool:
        """Whether this is the process that reports and saves."""
        return self._share.rank == 0

    def _weights(self) -> torch.Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self._potential.parameters()])

    def parts(self) -> Iterator[float]:
        """Train, yielding the mean loss of each part."""
        began = time.perf_counter() - self._seconds
        losses, told = [], self._seconds
        while self._seconds < self._seconds_in_all:
            for batch in packed(self._source, self._shape, self._rng):
                losses.append(self._step(batch, began))
                done = self._seconds >= self._seconds_in_all
                if done or self._seconds >= told + self._part:
                    yield float(torch.stack(losses).mean())
                    losses, told = [], self._seconds
                if done:
                    return

    def _step(self, batch: list[int], began: float) -> torch.Tensor:
        """Take one step with the gradient of all processes, whose mean loss is returned."""
        loss, gradients = self._gradients(self._source.inputs(batch, self._shape))
        together = self._share.mean(torch.cat([*(g.reshape(-1) for g in gradients), loss[None]]))
        gradient = together[:-1]
        gradient *= (CLIP / gradient.norm().clamp(min=1e-12)).clamp(max=1.0)
        at = 0
        for p in self._potential.parameters():
            p.grad = gradient[at : at + p.numel()].view_as(p)
            at += p.numel()
        self._examples += len(batch) * self._share.processes
        self._steps += 1
        if self._steps % CLOCK_STEPS == 1:  # all processes go by the first one's clock
            clock = 0.0 if self._share.rank else time.perf_counter() - began
            self._seconds = self._share.processes * float(self._share.mean(torch.tensor(clock)))
        left = max(0.0, 1 - self._seconds / self._seconds_in_all)
        self._soap.rate = self._rate * left * min(1.0, self._steps / WARM_UP)
        self._soap.step()
        decay = min(AVERAGED, (1 + self._steps) / (10 + self._steps))
        self._average.lerp_(self._weights(), 1 - decay)
        return together[-1]

    def report(self, loss: float, tests: dict[int, Dataset]) -> str:
        """Return a line with the errors of the averaged weights on unseen molecules."""
        current = self._weights()
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
            "average": self._average.cpu(),
            "optimizer": self._soap.state(),
            "counters": (self._steps, self._examples, self._seconds),
            "frames": len(self._source) * self._share.processes,
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; only plain data is read from it."""
        state = torch.load(path, weights_only=True, map_location=self._potential.device)
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
        found = torch.stack([energy_error.abs().sum(), force_error.abs().sum()]).cpu()
        counts = torch.tensor([len(energy_error), force_error.numel()])
        sums += torch.cat([found, counts])
    return sums


if __name__ == "__main__":
    main()
