"""Fine-tune a foundation model on labels by one of the strategies, and account for it."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.contracts import LabelSet, Potential
from core.errors import InputError
from core.finetuning import e0
from core.finetuning.e0 import IsolatedEnergies
from core.finetuning.receipt import Errors, Receipt, blocks, errors, parity
from core.finetuning.strategies import Strategy
from core.training import Dataset, Loss, Progress, Task, Trainer

FOUNDATION, TARGET = "foundation", "fine-tuned"
"""Heads of a model that rehearses: the pretraining's level of theory, and that of the labels."""
PARITY_POINTS = 400
"""Force components kept in the receipt for a plot."""
LEAST_TO_SPLIT = 10
"""Labels below which none is set aside for validation."""


@dataclass(frozen=True)
class TuningSettings:
    """What a fine-tuning is asked for beside its strategy.

    Attributes:
        steps: gradient steps in all, at least one epoch. batch_size: labels in a step.
        validation: share of the labels set aside to choose the epoch by. patience: steps without
            improvement on them after which training ends. rehearsal_weight: of the loss on
            rehearsed frames, beside 1 of the labels'. learning_rate: 0 for the strategy's own.
            probe: rehearsal frames kept out of the training to measure forgetting with.
    """

    steps: int = 2000
    batch_size: int = 5
    validation: float = 0.1
    patience: int = 600
    rehearsal_weight: float = 1.0
    learning_rate: float = 0.0
    energy_weight: float = 1.0
    force_weight: float = 10.0
    probe: int = 100
    seed: int = 1
    max_seconds: float = math.inf


class Tuning:
    """One fine-tuning, from labels to receipt.

    Args:
        foundation: stays as it is. labels: with total energies. isolated: energies of isolated
            atoms at the labels' level. pretraining: frames of the foundation's own distribution
            with its labels (or its predictions), to rehearse and to measure forgetting with.
        held_out: labels never trained on, for the receipt.

    Attributes:
        potential: the one that is trained. start: the foundation with energies of isolated atoms
            for the labels' level, against which the receipt compares.

    Raises:
        InputError: no labels, or nothing to rehearse with a strategy that rehearses.
        ModelError: an element the foundation does not know, or nothing that can move.
    """

    def __init__(
        self,
        foundation: Potential,
        labels: LabelSet,
        strategy: Strategy,
        settings: TuningSettings,
        *,
        isolated: IsolatedEnergies,
        pretraining: LabelSet | None = None,
        held_out: LabelSet | None = None,
    ) -> None:
        if not len(labels):
            raise InputError("There are no labels to fine-tune on; give at least one.")
        for structure in labels.structures:
            foundation.check(structure)
        self.foundation, self.strategy, self.settings = foundation, strategy, settings
        self.isolated, self._held_out = isolated, held_out
        rng = np.random.default_rng(settings.seed)
        self._train, self._valid = split(labels, settings.validation, rng)
        self._rehearsed, self._probe = self._divided(pretraining, rng)
        self.start = foundation.with_heads({TARGET: isolated.energies})
        self.potential = self._prepared()
        self._before = self.potential.get_theta()
        self.trainer = self._trainer(rng)

    def _divided(
        self, pretraining: LabelSet | None, rng: np.random.Generator
    ) -> tuple[LabelSet | None, LabelSet | None]:
        """Return frames to rehearse, and others to measure forgetting with."""
        if pretraining is None or not len(pretraining):
            if self.strategy.rehearsal:
                raise InputError(
                    f"{self.strategy.title} needs frames of the pretraining to rehearse; give a "
                    "file of them, or choose a strategy without rehearsal."
                )
            return None, None
        known = set(self.foundation.elements)
        usable = [i for i, s in enumerate(pretraining.structures) if known >= set(s.numbers)]
        order = rng.permutation(usable)
        n_probe = min(self.settings.probe, len(order) // 2)
        probe = subset(pretraining, order[:n_probe])
        return (subset(pretraining, order[n_probe:]) if self.strategy.rehearsal else None), probe

    def _prepared(self) -> Potential:
        """Return the copy that is trained, with a head for each level of theory it learns."""
        heads = {TARGET: self.isolated.energies}
        if self._rehearsed is not None:
            heads = {FOUNDATION: self.foundation.isolated_energies, **heads}
        return self.foundation.with_heads(heads)

    def _trainer(self, rng: np.random.Generator) -> Trainer:
        s, potential = self.settings, self.potential
        batch = min(s.batch_size, len(self._train))
        per_epoch = math.ceil(len(self._train) / batch)
        published = self.strategy.training
        training = replace(
            published,
            batch_size=batch,
            epochs=math.ceil(s.steps / per_epoch),
            patience=math.ceil(s.patience / per_epoch),
            learning_rate=s.learning_rate or published.learning_rate * self._per_element(),
            max_seconds=s.max_seconds,
        )
        others = []
        if self._rehearsed is not None:
            data = Dataset(potential, self._rehearsed, head=FOUNDATION)
            others.append(Task(data, s.rehearsal_weight))
        return Trainer(
            potential,
            Dataset(potential, self._train),
            training,
            loss=Loss(energy=s.energy_weight, force=s.force_weight),
            rng=rng,
            others=others,
            validation=Dataset(potential, self._valid) if self._valid is not None else None,
            moves=self.strategy.moves(potential, rng),
        )

    def _per_element(self) -> float:
        """Return by how much the published learning rate is larger in the foundation's weights.

        mace drops the elements that the data have not; e3nn's normalisation then makes the weights
        of those that stay √(Z/Z') times smaller, and a step of the same length that much longer.
        """
        sets = [self._train, *([self._rehearsed] if self._rehearsed is not None else [])]
        present = {int(z) for labels in sets for s in labels.structures for z in s.numbers}
        return math.sqrt(len(self.foundation.elements) / len(present))

    def epochs(self) -> Iterator[Progress]:
        """Train, yielding after each epoch; it may be left and gone on with at any of them."""
        return self.trainer.epochs()

    def save(self, path: Path) -> None:
        """Write a checkpoint, from which `load` of a tuning with the same arguments goes on."""
        self.trainer.save(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        self.trainer.load(path)

    @contextlib.contextmanager
    def as_finished(self) -> Iterator[Potential]:
        """Give the potential as `finish` would return it now; afterwards it is as before."""
        theta = self.potential.get_theta()
        self._put()
        try:
            yield self.potential
        finally:
            self.potential.set_theta(theta)
            self.potential.set_isolated(self.isolated.energies)

    def _put(self) -> tuple[torch.Tensor, IsolatedEnergies]:
        """Put the best weights (P,) in force, and isolated atoms that go with them."""
        after = self.trainer.result()
        self.potential.set_theta(after)
        isolated = self._refitted()
        self.potential.set_isolated(isolated.energies)
        return after, isolated

    def finish(self) -> tuple[Potential, Receipt]:
        """Put the best weights in force; return the tuned potential and the receipt."""
        after, self.isolated = self._put()
        s = asdict(self.settings) | {
            k: v for k, v in asdict(self.trainer.settings).items() if math.isfinite(v)
        }
        if not math.isfinite(s["max_seconds"]):
            del s["max_seconds"]
        return self.potential, Receipt(
            settings={"strategy": self.strategy.name, **s, **_machine(self.potential)},
            labels={
                "trained": len(self._train),
                "validation": 0 if self._valid is None else len(self._valid),
                "rehearsed": 0 if self._rehearsed is None else len(self._rehearsed),
                "compositions": sorted({s.formula for s in self._train.structures}),
            },
            isolated=e0.report(self.isolated),
            blocks=blocks(self.potential, self._before, after),
            errors=self._errors(),
            curve=tuple(asdict(progress) for progress in self.trainer.history),
            seconds=self.trainer.seconds,
            weights_before=self.foundation.weights_hash(),
            weights_after=self.potential.weights_hash(),
            notes=tuple(self._notes()),
            parity=self._parity(),
        )

    def _parity(self) -> dict[str, Any]:
        for name, labels in (
            ("held out", self._held_out), ("validation", self._valid), ("trained", self._train)
        ):  # fmt: skip
            if labels is not None and len(labels):
                return {"set": name} | parity(
                    self.start, self.potential, labels, most=PARITY_POINTS
                )
        return {}

    def _refitted(self) -> IsolatedEnergies:
        """Return the energies of isolated atoms, estimated anew with the tuned weights.

        Gradient steps leave a shift of all energies behind that takes them many more to undo.
        """
        if self.isolated.how != "estimated":
            return self.isolated
        predicted = self.potential.predict(self._train.structures, forces=False).energies
        left = np.asarray(self._train.energies) - predicted
        more = e0.estimated(self.isolated, self._train.structures, left)
        return replace(
            self.isolated, energies=more.energies, shifts=self.isolated.shifts + more.shifts
        )

    def _errors(self) -> dict[str, tuple[Errors, Errors]]:
        """Return the errors before and after on every set there is."""
        sets = {"trained": self._train, "validation": self._valid, "held out": self._held_out}
        found = {
            name: (errors(self.start, labels), errors(self.potential, labels))
            for name, labels in sets.items()
            if labels is not None and len(labels)
        }
        if self._probe is not None:
            after = self.potential
            if FOUNDATION not in after.heads:
                after = after.with_heads({FOUNDATION: self.foundation.isolated_energies})
            with after.using(FOUNDATION):
                found["foundation's own"] = (
                    errors(self.foundation, self._probe), errors(after, self._probe),
                )  # fmt: skip
        return found

    def _notes(self) -> Iterator[str]:
        if self._valid is None:
            n = f"{len(self._train)} label" + "s" * (len(self._train) > 1)
            yield (
                f"With {n} none was set aside: the weights of the last step were taken, and "
                "nothing here says how they do elsewhere."
            )
        yield from e0.warnings(self.isolated)
        held_out = () if self._held_out is None else self._held_out.structures
        foreign = sorted({s.formula for s in held_out if not self.isolated.covers(s)})
        if foreign:
            yield (
                f"The labels do not fix the total energy of {', '.join(foreign)}, held out: its "
                "errors there mean nothing; compare energies within a composition."
            )


def split(
    labels: LabelSet, share: float, rng: np.random.Generator
) -> tuple[LabelSet, LabelSet | None]:
    """Return labels to train on and to validate with; none of these from fewer than ten."""
    n = round(share * len(labels))
    if len(labels) < LEAST_TO_SPLIT or n == 0:
        return labels, None
    order = rng.permutation(len(labels))
    return subset(labels, np.sort(order[n:])), subset(labels, np.sort(order[:n]))


def subset(labels: LabelSet, indices: np.ndarray) -> LabelSet:
    """Return some of the labels."""
    return LabelSet(
        tuple(labels.structures[i] for i in indices),
        np.asarray(labels.energies)[indices],
        tuple(labels.forces[i] for i in indices),
        tuple(labels.stress[i] for i in indices) if labels.stress else (),
    )


def _machine(potential: Potential) -> dict[str, Any]:
    return {
        "dtype": str(potential.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
