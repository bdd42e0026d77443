"""Gradient training of a potential, interruptible and resumable. One epoch at a time."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.contracts import Potential
from core.parallel import side_by_side
from core.training.data import Dataset, Example, batches
from core.training.loss import Loss
from core.training.moves import Blocks

PART = 3
"""Structures whose gradients are computed together; the parts of a batch go side by side."""
CHUNK, AT_ONCE = 8, 128
"""Structures of which only the loss is wanted: evaluated together, and held in memory at once."""


@dataclass(frozen=True)
class TrainerSettings:
    """Hyperparameters of one training run.

    Attributes:
        ema: decay of the averaged weights; 0 switches averaging off.
        clip: largest gradient norm. final_rate: learning rate at the end, as a fraction of the
            first (cosine).
        patience: epochs without a better loss on the validation data after which training ends;
            0 for never.
    """

    epochs: int = 100
    batch_size: int = 16
    learning_rate: float = 1e-2
    final_rate: float = 0.01
    ema: float = 0.99
    clip: float = 10.0
    max_seconds: float = float("inf")
    patience: int = 0


@dataclass(frozen=True)
class Task:
    """Data beside the main ones that every step learns from too, such as a replay set.

    Attributes:
        weight: of its loss; that of the main data counts 1.
    """

    data: Dataset
    weight: float = 1.0


@dataclass(frozen=True)
class Progress:
    """One finished epoch. Errors are root mean squares: eV/atom and eV/Å.

    Attributes:
        loss: of the main data. validation: loss of the averaged weights on the validation data,
            nan without. best: whether it is the lowest so far.
    """

    epoch: int
    loss: float
    energy_rmse: float
    force_rmse: float
    seconds: float
    validation: float = math.nan
    best: bool = True


@dataclass(frozen=True)
class _Part:
    """Some structures of a batch.

    Attributes:
        weight: of the batch's loss. of: structures and force components of the whole batch.
    """

    example: Example
    weight: float
    of: tuple[int, int]


def _parts(data: Dataset, indices: Sequence[int], weight: float) -> list[_Part]:
    """Return a batch in parts of at most `PART` structures, the same on any machine."""
    pieces = np.array_split(np.asarray(indices), -(-len(indices) // PART))
    examples = [data.example(piece.tolist()) for piece in pieces]
    of = len(indices), sum(e.forces.numel() for e in examples)
    return [_Part(example, weight, of) for example in examples]


class Trainer:
    """Adam (AMSGrad) on what of a potential moves.

    The schedule follows max(epoch / epochs, seconds / max_seconds), so that a run bounded by
    time also ends at its smallest learning rate.

    Args:
        data: the main data, of which an epoch is one pass. others: of each of them every step
            takes a batch as well. validation: data never trained on; the weights with the lowest
            loss on it are `result`. moves: what moves, by default all weights.

    Attributes:
        history: every finished epoch.
    """

    def __init__(
        self,
        potential: Potential,
        data: Dataset,
        settings: TrainerSettings,
        *,
        loss: Loss,
        rng: np.random.Generator,
        others: Sequence[Task] = (),
        validation: Dataset | None = None,
        moves: Blocks | None = None,
    ) -> None:
        self.potential, self.data, self.settings, self.loss, self.rng = (
            potential, data, settings, loss, rng,
        )  # fmt: skip
        self.others, self.validation = tuple(others), validation
        self.moves = moves or Blocks(potential)
        # not `fused`: on the processor that misreads gradients that are not contiguous
        self.optimizer = torch.optim.Adam(self.moves.free, lr=settings.learning_rate, amsgrad=True)
        self.average = self.moves.state()
        self.best_theta, self.best, self.best_epoch = potential.get_theta(), math.inf, 0
        self.epoch, self.steps, self.seconds = 0, 0, 0.0
        self.history: list[Progress] = []
        self._last: dict[str, Any] | None = None

    def epochs(self) -> Iterator[Progress]:
        """Train, yielding after each epoch; stop by not asking for the next."""
        while not self.has_ended:
            began = time.perf_counter()
            sums = np.zeros(5)
            before = self.seconds
            drawn = batches(len(self.data), self.settings.batch_size, self.rng)
            for indices in drawn:
                sums += self._step(indices)
                self.seconds = before + time.perf_counter() - began
                if self.seconds >= self.settings.max_seconds:
                    break
            self.epoch += 1
            validation = self._validate()
            self.seconds = before + time.perf_counter() - began
            progress = Progress(
                epoch=self.epoch,
                loss=float(sums[0] / sums[1]),
                energy_rmse=float(np.sqrt(sums[2] / sums[1])),
                force_rmse=float(np.sqrt(sums[3] / sums[4])),
                seconds=self.seconds,
                validation=validation,
                best=self.best_epoch == self.epoch,
            )
            self.history.append(progress)
            self._last = copy.deepcopy(self._state())
            yield progress

    @property
    def has_ended(self) -> bool:
        """Whether epochs, time or patience are used up."""
        s = self.settings
        waited = self.epoch - self.best_epoch
        impatient = self.validation is not None and 0 < s.patience <= waited
        return self.epoch >= s.epochs or self.seconds >= s.max_seconds or impatient

    def averaged_theta(self) -> torch.Tensor:
        """Return the weights (P,) of the averaged free parameters, or those in force without."""
        if not self.settings.ema:
            return self.potential.get_theta()
        with self._averaged():
            return self.potential.get_theta()

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Let the averaged free parameters be in force in here."""
        current = self.moves.state()
        if self.settings.ema:
            self.moves.restore(self.average)
        try:
            yield
        finally:
            self.moves.restore(current)

    def result(self) -> torch.Tensor:
        """Return the averaged weights (P,), with validation data those best on them."""
        return self.averaged_theta() if self.validation is None else self.best_theta.clone()

    def _step(self, indices: list[int]) -> np.ndarray:
        self._set_rate()
        parts = _parts(self.data, indices, 1.0)
        n_own = len(parts)
        for task in self.others:
            size = min(self.settings.batch_size, len(task.data))
            drawn = self.rng.choice(len(task.data), size=size, replace=False).tolist()
            parts += _parts(task.data, drawn, task.weight)
        found = side_by_side(self._of, parts)
        gradients = found[0][0]
        for more, _ in found[1:]:
            for total, g in zip(gradients, more, strict=True):
                total.add_(g)
        self.moves.pull(gradients)
        torch.nn.utils.clip_grad_norm_(self.moves.free, self.settings.clip)
        self.optimizer.step()
        self.moves.write()
        self.steps += 1
        self._average()
        return np.sum([sums for _, sums in found[:n_own]], axis=0)

    def _of(self, part: _Part) -> tuple[list[torch.Tensor], np.ndarray]:
        """Return the gradients of a part's loss, and what an epoch adds up."""
        example = part.example
        energy, forces = self.potential.energy_and_forces(example.graphs, create_graph=True)
        loss = part.weight * self.loss(example, energy, forces, part.of)
        gradients = torch.autograd.grad(
            loss, self.moves.needed, allow_unused=True, materialize_grads=True
        )
        with torch.no_grad():
            squared_energy = ((energy - example.energies) / example.n_atoms).pow(2).sum()
            squared_force = (forces - example.forces).pow(2).sum()
        return list(gradients), np.array(
            [float(loss.detach()) * part.of[0], len(energy), float(squared_energy),
             float(squared_force), forces.numel()]
        )  # fmt: skip

    def _set_rate(self) -> None:
        s = self.settings
        done = min(1.0, max(self.epoch / s.epochs, self.seconds / s.max_seconds))
        factor = s.final_rate + (1 - s.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = s.learning_rate * factor

    def _average(self) -> None:
        if self.settings.ema:
            decay = min(self.settings.ema, (1 + self.steps) / (10 + self.steps))
            for average, p in zip(self.average, self.moves.free, strict=True):
                average.lerp_(p.detach(), 1 - decay)

    def _validate(self) -> float:
        """Return the loss of the averaged weights on the validation data, and keep the best."""
        if self.validation is None:
            self.best_epoch = self.epoch
            return math.nan
        with self._averaged():
            found = mean_loss(self.potential, self.validation, self.loss)
            if found < self.best:
                self.best, self.best_epoch = found, self.epoch
                self.best_theta = self.potential.get_theta()
        return found

    def save(self, path: Path) -> None:
        """Write a checkpoint that `load` continues from, replacing `path` atomically.

        It holds what was there when the last epoch ended: one cut short is done again as a whole.
        """
        part = path.with_suffix(".part")
        torch.save(self._state() if self._last is None else self._last, part)
        part.replace(path)

    def _state(self) -> dict[str, Any]:
        return {
            "theta": self.potential.get_theta(),
            "average": self.average,
            "free": self.moves.state(),
            "optimizer": self.optimizer.state_dict(),
            "counters": (self.epoch, self.steps, self.seconds),
            "best": (self.best_theta, self.best, self.best_epoch),
            "rng": self.rng.bit_generator.state,
            "history": [astuple(progress) for progress in self.history],
        }

    def load(self, path: Path) -> None:
        """Continue from a checkpoint written by `save`; only plain data is read from it."""
        state = torch.load(path, weights_only=True, map_location="cpu")
        self.potential.set_theta(state["theta"])
        self.average = [tensor.to(self.potential.device) for tensor in state["average"]]
        self.moves.restore(state["free"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.steps, self.seconds = state["counters"]
        self.best_theta, self.best, self.best_epoch = state["best"]
        self.rng.bit_generator.state = state["rng"]
        self.history = [Progress(*values) for values in state["history"]]


def mean_loss(potential: Potential, data: Dataset, loss: Loss) -> float:
    """Return the loss of the weights in force, the mean over all of `data`."""

    def of(example: Example) -> float:
        energy, forces = potential.energy_and_forces(example.graphs)
        return float(loss(example, energy.detach(), forces)) * len(energy)

    total = 0.0
    for start in range(0, len(data), AT_ONCE):
        indices = range(start, min(start + AT_ONCE, len(data)))
        pieces = np.array_split(np.asarray(indices), -(-len(indices) // CHUNK))
        total += sum(side_by_side(of, [data.example(piece.tolist()) for piece in pieces]))
    return total / len(data)
