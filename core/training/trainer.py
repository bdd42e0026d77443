"""Gradient training of a potential, interruptible and resumable. One epoch at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.contracts import Potential
from core.training.data import Dataset, batches
from core.training.loss import Loss


@dataclass(frozen=True)
class TrainerSettings:
    """Hyperparameters of one training run.

    Attributes:
        ema: decay of the averaged weights; 0 switches averaging off.
        clip: largest gradient norm. final_rate: learning rate at the end, as a fraction of the
            first (cosine). anchor: strength of the pull towards the weights at the start,
            ½·anchor·|θ - θ₀|² added to the loss.
    """

    epochs: int = 100
    batch_size: int = 16
    learning_rate: float = 1e-2
    final_rate: float = 0.01
    ema: float = 0.99
    clip: float = 10.0
    anchor: float = 0.0
    max_seconds: float = float("inf")


@dataclass(frozen=True)
class Progress:
    """One finished epoch. Errors are root mean squares: eV/atom and eV/Å."""

    epoch: int
    loss: float
    energy_rmse: float
    force_rmse: float
    seconds: float


class Trainer:
    """Adam (AMSGrad) on a potential's weights.

    The schedule follows max(epoch / epochs, seconds / max_seconds), so that a run bounded by
    time also ends at its smallest learning rate.
    """

    def __init__(
        self,
        potential: Potential,
        data: Dataset,
        settings: TrainerSettings,
        *,
        loss: Loss,
        rng: np.random.Generator,
    ) -> None:
        self.potential, self.data, self.settings, self.loss, self.rng = (
            potential, data, settings, loss, rng,
        )  # fmt: skip
        self.optimizer = torch.optim.Adam(
            potential.parameters(), lr=settings.learning_rate, amsgrad=True
        )
        self.start_theta = potential.get_theta()
        self.average = potential.get_theta()
        self.epoch, self.steps, self.seconds = 0, 0, 0.0

    def epochs(self) -> Iterator[Progress]:
        """Train, yielding after each epoch; stop by not asking for the next."""
        while self.epoch < self.settings.epochs and self.seconds < self.settings.max_seconds:
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
            yield Progress(
                epoch=self.epoch,
                loss=sums[0] / sums[1],
                energy_rmse=float(np.sqrt(sums[2] / sums[1])),
                force_rmse=float(np.sqrt(sums[3] / sums[4])),
                seconds=self.seconds,
            )

    def averaged_theta(self) -> torch.Tensor:
        """Return the averaged weights (P,), those in force if averaging is off."""
        return self.average.clone() if self.settings.ema else self.potential.get_theta()

    def _step(self, indices: list[int]) -> np.ndarray:
        example = self.data.example(indices)
        self._set_rate()
        self.optimizer.zero_grad()
        energy, forces = self.potential.energy_and_forces(example.graphs, create_graph=True)
        loss = self.loss(example, energy, forces)
        loss.backward()
        self._pull()
        torch.nn.utils.clip_grad_norm_(self.potential.parameters(), self.settings.clip)
        self.optimizer.step()
        self.steps += 1
        self._average()
        with torch.no_grad():
            squared_energy = ((energy - example.energies) / example.n_atoms).pow(2).sum()
            squared_force = (forces - example.forces).pow(2).sum()
        n = len(indices)
        return np.array(
            [float(loss.detach()) * n, n, squared_energy, squared_force, forces.numel()]
        )

    def _set_rate(self) -> None:
        s = self.settings
        done = min(1.0, max(self.epoch / s.epochs, self.seconds / s.max_seconds))
        factor = s.final_rate + (1 - s.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = s.learning_rate * factor

    def _pull(self) -> None:
        if not self.settings.anchor:
            return
        start = 0
        for p in self.potential.parameters():
            if p.grad is not None:
                centre = self.start_theta[start : start + p.numel()].view_as(p)
                p.grad.add_(p.detach() - centre, alpha=self.settings.anchor)
            start += p.numel()

    def _average(self) -> None:
        if self.settings.ema:
            decay = min(self.settings.ema, (1 + self.steps) / (10 + self.steps))
            self.average.lerp_(self.potential.get_theta(), 1 - decay)

    def save(self, path: Path) -> None:
        """Write a checkpoint that `load` continues from, replacing `path` atomically."""
        state: dict[str, Any] = {
            "theta": self.potential.get_theta(),
            "average": self.average,
            "start": self.start_theta,
            "optimizer": self.optimizer.state_dict(),
            "counters": (self.epoch, self.steps, self.seconds),
            "rng": self.rng.bit_generator.state,
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint written by `save`; only plain data is read from it."""
        state = torch.load(path, weights_only=True)
        self.potential.set_theta(state["theta"])
        self.average, self.start_theta = state["average"], state["start"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.steps, self.seconds = state["counters"]
        self.rng.bit_generator.state = state["rng"]


def evaluate(
    potential: Potential, data: Dataset, *, chunk: int = 64, stop: Callable[[], bool] | None = None
) -> tuple[float, float]:
    """Return RMSE of energy per atom (eV/atom) and of force components (eV/Å)."""
    sums = np.zeros(4)
    for start in range(0, len(data), chunk):
        if stop is not None and stop():
            break
        indices = list(range(start, min(start + chunk, len(data))))
        example = data.example(indices)
        energy, forces = potential.energy_and_forces(example.graphs)
        with torch.no_grad():
            sums += [
                float(((energy - example.energies) / example.n_atoms).pow(2).sum()),
                len(indices),
                float((forces - example.forces).pow(2).sum()),
                forces.numel(),
            ]
    return float(np.sqrt(sums[0] / sums[1])), float(np.sqrt(sums[2] / sums[3]))
