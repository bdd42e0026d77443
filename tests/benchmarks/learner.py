"""The bundled model fine-tuned naively on frames of one molecule, many times over.

All weights by Adam, as `mace_run_train` does it, with gradients compiled once for the molecule by
what trains the bundled model: a frame takes a fifth of the time. As the composition never changes,
the energies of isolated atoms come down to one constant, the labels' mean residual.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from core.contracts import LabelSet
from core.finetuning.receipt import Errors, errors
from core.potentials import load
from core.potentials.mace import MacePotential
from core.training import Dataset, Loss

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "assets" / "foundation"))
from gradients import Gradients, Inputs, Shape, padded  # noqa: E402

BATCH, STEPS, RATE = 10, 1000, 1e-2
FINAL, AVERAGED, CLIP = 0.01, 0.99, 10.0
"""The last rate over the first (cosine), the decay of averaged weights, the largest gradient."""
LOSS = Loss(energy=100.0, force=10.0)
"""A frame's energy weighs more than by default, as in the second stage of `mace_run_train`."""


@dataclass(frozen=True)
class Learned:
    """A fine-tuned model. Attributes: constant: eV, what labels have beyond its energies."""

    potential: MacePotential
    constant: float

    def residuals(self, labels: LabelSet) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the errors of energies (S,), eV, and of each frame's forces (N, 3), eV/Å."""
        said = self.potential.predict(labels.structures)
        assert said.forces is not None
        forces = [f - g for f, g in zip(labels.forces, said.forces, strict=True)]
        return labels.energies - self.constant - said.energies, forces

    def errors(self, test: LabelSet) -> Errors:
        """Return the errors on other frames."""
        moved = LabelSet(test.structures, test.energies - self.constant, test.forces)
        return errors(self.potential, moved)


class Learner:
    """Fine-tunes on some of these frames, which are all of one molecule."""

    def __init__(self, labels: LabelSet, dtype: str) -> None:
        self._dtype = dtype
        self._potential = self._model()
        self._start = self._potential.get_theta().clone()
        said = self._potential.predict(labels.structures, forces=False).energies
        self._residuals = labels.energies - said
        self._data = Dataset(self._potential, labels)
        sizes = [self._data.size(i) for i in range(len(labels))]
        self._shape = Shape(
            atoms=BATCH * sizes[0][0] + 2, edges=BATCH * max(edges for _, edges in sizes),
            structures=BATCH + 1, width=max(self._data.width(i) for i in range(len(labels))),
        )  # fmt: skip
        self._gradients = Gradients(self._potential, LOSS, self._shape, self._inputs([0], 0.0))

    def learn(self, chosen: np.ndarray, seed: int) -> Learned:
        """Return the foundation fine-tuned on the frames `chosen`."""
        constant = float(self._residuals[chosen].mean())
        self._potential.set_theta(self._start)
        weights = list(self._potential.parameters())
        averaged = [w.detach().clone() for w in weights]
        optimizer = torch.optim.Adam(weights, lr=RATE, amsgrad=True)
        rng, order = np.random.default_rng(seed), cast(list[int], [])
        for step in range(STEPS):
            if not order:
                order = rng.permutation(chosen).tolist()
            batch, order = order[:BATCH], order[BATCH:]
            _, gradients = self._gradients(self._inputs(batch, constant))
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            slope = 0.5 * (1 + math.cos(math.pi * step / STEPS))
            optimizer.param_groups[0]["lr"] = RATE * (FINAL + (1 - FINAL) * slope)
            optimizer.step()
            decay = min(AVERAGED, (1 + step) / (10 + step))
            with torch.no_grad():
                for mean, weight in zip(averaged, weights, strict=True):
                    mean.lerp_(weight, 1 - decay)
        return self._kept(averaged, constant)

    def _kept(self, averaged: list[torch.Tensor], constant: float) -> Learned:
        with torch.no_grad():
            for weight, mean in zip(self._potential.parameters(), averaged, strict=True):
                weight.copy_(mean)
        potential = self._model()
        potential.set_theta(self._potential.get_theta())
        return Learned(potential, constant)

    def _model(self) -> MacePotential:
        return cast(MacePotential, load("bundled", dtype=cast(Any, self._dtype)))

    def _inputs(self, batch: list[int], constant: float) -> Inputs:
        """Return the inputs of some frames; their energies are those without the constant."""
        inputs = padded(self._data.example(batch), self._shape, len(self._potential.elements))
        inputs[7][: len(batch)] -= constant
        return inputs
