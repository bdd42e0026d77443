"""Carries out what the loop asks for: structure, model, dynamics and reference put together.

Every method does one thing and returns what happened; nothing here writes the journal.
"""

from __future__ import annotations

import io
import json
import math
import os
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from core.acquisition.selection import top
from core.assets import cache
from core.calibration import Assessment
from core.campaign import canary
from core.campaign import events as ev
from core.campaign.accounts import Accounts, joined
from core.campaign.canary import Residuals
from core.campaign.learner import (
    Labelled,
    Learner,
    Score,
    Update,
    calibration_from_dict,
    calibration_to_dict,
    label_set,
)
from core.campaign.loop import Rewind
from core.campaign.rules import Rule
from core.campaign.state import State
from core.campaign.store import Frame, LabelRow, Snapshot
from core.contracts import Compiler, Failure, Label, LabelSet, Potential
from core.dynamics.integrators import Dynamics
from core.dynamics.triggers import Limits, broken
from core.errors import CampaignError, CanaryError, LabelError
from core.finetuning.e0 import Offset
from core.finetuning.strategies import strategy
from core.posterior import device_for
from core.posterior import make as make_posterior
from core.potentials import load as load_potential
from core.potentials.device import place
from core.reference import make as make_reference
from core.reference.base import validate
from core.reference.submitter import Submitter
from core.settings import Noise
from core.structures import Structure

SNAPSHOTS = "snapshots"
LABELS = "labels"
WHOLE_SNAPSHOTS = 3
"""Newest snapshots that keep their members; of older ones only the weights stay."""


@dataclass(frozen=True)
class Outcome:
    """What an attempt to update came to; `snapshot` is None if the weights were refused.

    `judged_by` is the calibration in force when `scores` were taken, as JSON; None before trust.
    """

    event: ev.Updated | ev.UpdateRefused | ev.RolledBack
    snapshot: Snapshot | None
    learned: tuple[int, ...]
    scores: tuple[Score, ...]
    calibration: str
    judged_by: str | None = None


class Engine:
    """The numerical side of one campaign.

    Args:
        noise: of the labels, by the settings the campaign began with: tolerances changed since
            do not make it another one.

    Raises:
        InputError: model, reference and structure do not fit. LabelError: a program is missing.
    """

    def __init__(self, directory: Path, structure: Structure, state: State, noise: Noise) -> None:
        settings = state.settings
        torch.set_num_threads(settings.potential.threads)
        self._with_stress = state.stress_tolerance is not None
        self._learning_threads = settings.potential.learning_threads
        self.directory, self.structure = directory, structure
        loaded = load_potential(settings.potential.model, dtype=settings.potential.dtype)
        loaded.check(structure)
        self.placed = place(
            loaded, structure, device_for(settings.posterior.kind, settings.potential.device)
        )
        """Why the model computes where it does; empty where there was no choice."""
        self.potential = cast(Potential, loaded)
        reference = make_reference(
            settings.labelling.reference, charge=structure.charge, spin=structure.spin
        )
        reference.check(structure)
        self.fingerprint = reference.fingerprint
        self.submitter = Submitter(
            directory / LABELS, reference, processes=settings.labelling.processes,
            time_limit_s=settings.labelling.time_limit_s,
        )  # fmt: skip
        self._noise = noise
        posterior = make_posterior(
            self.potential, settings.posterior, self._noise,
            energy_tolerance=state.energy_tolerance,
            elements=sorted(set(structure.numbers.tolist())),
            moving=self._moving(settings.finetuning.strategy),
        )  # fmt: skip
        seed = settings.labelling.seed
        describer = cast(
            Potential, load_potential(settings.potential.model, dtype=settings.potential.dtype)
        )
        self.learner = Learner(self.potential, posterior, seed=seed, describer=describer)
        self._accounts = Accounts(self.potential, settings.potential.model)
        self.knowledge = self.learner.begin()
        self.learner.activate(self.knowledge)
        self._labelling = settings.labelling
        self._rule = Rule(settings.labelling)
        self._compiler: Compiler | None = None
        if settings.potential.compiled:
            self._compiler = self.potential.compile(structure, cache() / "compiled")
        self._evaluator = self.potential.evaluator(structure)
        self.dynamics = Dynamics(
            structure, self._evaluator, settings.dynamics, np.random.default_rng([seed, 0])
        )
        self.limits = Limits(speed_factor=settings.dynamics.max_speed_factor)
        self._keys: dict[int, tuple[int, int]] = {}
        self._submissions = 0
        self._arrived = time.monotonic()
        self.judged: Frame | None = None
        """The last frame that was judged, None before the first."""
        self.suspicious = False
        """Whether `run` stopped because the energy may be beyond its tolerance."""

    def _moving(self, name: str) -> torch.Tensor | None:
        """Return the indices of the weights that a strategy moves; None for all."""
        chosen = strategy(name)
        if not chosen.parts:
            return None
        blocks = self.potential.blocks()
        parts = [blocks[block] for block in chosen.names(self.potential)]
        return torch.cat([torch.arange(part.start, part.stop) for part in parts])

    def close(self, wait_s: float = 0.0) -> None:
        """End the label processes, and that of the compiler."""
        self.submitter.close(wait_s)
        if self._compiler is not None:
            self._compiler.close()

    # Dynamics

    def run(self, state: State, seconds: float) -> str | None:
        """Step until `state.next_stop`, or for `seconds`, or until a step looks `suspicious`.

        Returns why the run broke, if it did.
        """
        end = time.monotonic() + seconds
        self.suspicious = False
        limit = self._energy_limit(state)
        while self.dynamics.step < state.next_stop:
            self.dynamics.run(1)
            why = self._broken()
            if why is not None:
                return why
            self.suspicious = self.sigma_energy > limit
            if self.suspicious or time.monotonic() >= end:
                return None
        return None

    def compiled(self) -> list[ev.StepCompiled]:
        """Return what has become of compiling the step since the last call."""
        if self._compiler is None:
            return []
        told, self._compiler.news = self._compiler.news, []
        return [ev.StepCompiled(step=self.dynamics.step, **asdict(news)) for news in told]

    @property
    def sigma_energy(self) -> float:
        """σ of the energy at this moment, eV; nan before any trust, or where it is not watched."""
        changes = self._evaluator.changes
        if changes is None:
            return math.nan
        return self.learner.energy_sigma(self.knowledge, changes)

    def energy_confidence(self, state: State, sigma: float) -> tuple[float, float]:
        """Return P(|energy error| < tolerance) and the interval's half-width, eV."""
        trust = state.settings.trust
        return self.knowledge.calibration.energy_within(
            sigma, tolerance=state.energy_tolerance, confidence=trust.confidence,
            method=trust.calibration,
        )  # fmt: skip

    def _energy_limit(self, state: State) -> float:
        """Return the σ of the energy, eV, beyond which a step is judged before its turn.

        Only where the last judged frame was trusted with the weights in force: otherwise the
        simulation is where the model is known to be unsure, and would ask for each of many frames
        that are all alike.
        """
        seen, now = self.judged, self.knowledge.snapshot
        if seen is None or seen.kind != "trusted" or seen.snapshot != now:
            return math.inf
        _, for_unit_sigma = self.energy_confidence(state, 1.0)
        return state.energy_tolerance / for_unit_sigma

    def _watch(self) -> None:
        """Let every step give the energy's uncertainty, once there is something to trust."""
        watched = None
        if self.knowledge.labels and self._rule.watches:
            watched = self.learner.posterior.watched(self.knowledge.posterior)
        self._evaluator.watch(watched)

    def _broken(self) -> str | None:
        d = self.dynamics
        return broken(d.structure, d.energy, d.forces, d.temperature_K, d.target_K, self.limits)

    def check(self, state: State, frame_id: int) -> tuple[Frame, ev.FrameChecked]:
        """Judge the present frame, by few samples of its forces unless it is to be labelled."""
        d, knowledge = self.dynamics, self.knowledge
        spread = self.learner.judge(knowledge, d.structure, quick=True)
        seen = self.learner.assess(knowledge, spread, state)
        if state.trusted and self._rule.asks(d.step, seen, spread.sigma_force):
            spread = self.learner.judge(knowledge, d.structure)
            seen = self.learner.assess(knowledge, spread, state)
        sigma_force = spread.sigma_force
        reasons: tuple[str, ...] = ("initial",)
        if state.trusted:
            reasons = self._rule.at(d.step, seen, sigma_force)
        kind = "untrusted" if not state.trusted else "flagged" if reasons else "trusted"
        (features,) = self.learner.describe([d.structure])
        novelty = self.learner.novelty(knowledge, d.structure.numbers, features)
        frame = Frame(
            id=frame_id, step=d.step, time=d.time_fs, kind=kind, positions=d.positions,
            velocities=d.velocities, forces=spread.forces, sigma_atoms=spread.sigma_forces,
            energy=spread.energy, offset=knowledge.offset.value, temperature=d.temperature_K,
            sigma_energy=spread.sigma_energy, sigma_force=sigma_force,
            probability=seen.probability, energy_bound=seen.energy_bound,
            force_bound=seen.force_bound, within=seen.within, reasons=reasons,
            snapshot=knowledge.snapshot,
            stress=spread.stress, sigma_stress=spread.sigma_stress,
            stress_bound=seen.stress_bound, cell=d.cell, novelty=novelty,
            activation=features.mean(axis=0),
        )  # fmt: skip
        self.judged = frame
        event = ev.FrameChecked(
            frame_id=frame_id, step=d.step, key=d.structure.key, snapshot=knowledge.snapshot,
            reasons=reasons, sigma_energy=float(spread.sigma_energy), sigma_force=sigma_force,
            probability=float(seen.probability), energy_bound=float(seen.energy_bound),
            force_bound=float(seen.force_bound), sigma_stress=_known(spread.sigma_stress),
            stress_bound=_known(seen.stress_bound), novelty=_known(novelty),
            within=_known(seen.within) if knowledge.labels else None,
        )  # fmt: skip
        return frame, event

    def remember(self, sigma_forces: Sequence[float]) -> None:
        """Take up the largest force σ of the frames judged so far, eV/Å, oldest first."""
        self._rule = Rule(self._labelling, sigma_forces)

    def rewind(self, frame: Frame, request: Rewind) -> None:
        """Go on from a stored frame."""
        velocities = None if request.fresh else frame.velocities
        self.dynamics.jump(frame.positions, velocities, frame.cell)
        self.dynamics.step = request.step

    def save_dynamics(self) -> bytes:
        """Return all that decides the future of the dynamics."""
        snapshot = self.dynamics.snapshot()
        arrays: dict[str, Any] = {k: v for k, v in snapshot.items() if isinstance(v, np.ndarray)}
        values = {k: v for k, v in snapshot.items() if k not in arrays}
        file = io.BytesIO()
        np.savez(file, values=np.array(json.dumps(values)), **arrays)
        return file.getvalue()

    def load_dynamics(self, data: bytes) -> None:
        """Go on exactly from what `save_dynamics` returned."""
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            snapshot = {name: stored[name] for name in stored.files if name != "values"}
            snapshot.update(json.loads(str(stored["values"])))
        self.dynamics.restore(snapshot)

    def reconfigure(self, state: State) -> None:
        """Take over live settings."""
        self.submitter.time_limit_s = state.settings.labelling.time_limit_s
        wanted = state.settings.dynamics.temperature_K
        if wanted != self.dynamics.target_K:
            self.dynamics.set_temperature(wanted)

    # Labels

    def submit(self, query_id: int, structure: Structure) -> None:
        """Ask for a label; an unfinished request for the same query is kept."""
        if query_id in self._keys:
            return
        self._submissions += 1
        self._keys[query_id] = (query_id, self._submissions)
        self.submitter.submit(self._keys[query_id], structure)

    def cancel(self, query_ids: Sequence[int]) -> None:
        """Stop calculations; nothing is reported about them any more."""
        for query_id in query_ids:
            key = self._keys.pop(query_id, None)
            if key is not None:
                self.submitter.cancel(key)

    def poll(self) -> list[tuple[int, Label | Failure]]:
        """Return (query id, label or failure) of what ended."""
        ended = []
        for key, result in self.submitter.poll():
            query_id = key[0]  # type: ignore[index]
            if self._keys.get(query_id) == key:
                del self._keys[query_id]
                self._arrived = time.monotonic()
                ended.append((query_id, result))
        return ended

    def accept(self, label: Label) -> Label:
        """Return a label computed elsewhere if it may stand beside those of the reference.

        Raises:
            LabelError: of another level of theory, or one that contradicts itself.
        """
        if label.fingerprint != self.fingerprint:
            raise LabelError(
                f"The label was computed with {label.fingerprint!r}, this campaign's labels with "
                f"{self.fingerprint!r}; they must not be mixed.",
                kind="rejected",
            )
        if self._with_stress and label.stress is None:
            raise LabelError(
                "The label has no stress, on which this campaign has a tolerance.", kind="rejected"
            )
        self._arrived = time.monotonic()
        return validate(label)

    # Learning

    def update(self, state: State, rows: Sequence[LabelRow], frames: Sequence[Frame]) -> Outcome:
        """Learn the labels `rows` (of `frames`) that are not learned yet; canary; roll back."""
        new = [self._labelled(row, frame) for row, frame in zip(rows, frames, strict=True)]
        scored = frozenset(row.query_id for row in rows if row.z is not None)
        former = self.knowledge
        judged_by = self._calibration() if state.trusted else None
        old = canary.probe(label_set(former.labels, former.offset))
        probes = joined(old, label_set(new, former.offset))
        before = canary.residuals(self.potential, probes)
        theta = self.potential.get_theta()
        candidate: Update | None = None
        try:
            with _threads(self._learning_threads):
                if state.trusted:
                    candidate = self.learner.update(former, new, scored)
                else:
                    candidate = self.learner.first_update(former, new)
            after = self._canary(state, probes, before, n_old=len(old))
        except (CanaryError, torch.linalg.LinAlgError) as error:
            at_fault = getattr(error, "contradicting", ())
            outcome = self._refuse(
                state, candidate, str(error), tuple(new[k].query_id for k in at_fault)
            )
        else:
            receipt = self._accounts.receipt(theta, before, after, n_old=len(old))
            outcome = self._accept(candidate, tuple(lab.query_id for lab in new), receipt)
        return replace(outcome, judged_by=judged_by)

    def _labelled(self, row: LabelRow, frame: Frame) -> Labelled:
        return Labelled(
            row.query_id, frame.of(self.structure), row.energy, row.forces,
            row.stress if self._with_stress else None,
        )  # fmt: skip

    def _canary(
        self, state: State, probes: LabelSet, before: Residuals, *, n_old: int
    ) -> Residuals:
        """Return the residuals of the new weights, which are in force, if they may stay so."""
        settings = state.settings
        after = canary.residuals(self.potential, probes)
        canary.check_new(before, after, n_old=n_old, force=self._noise.force)
        canary.check_errors(
            before.errors(), after.errors(), energy=state.energy_tolerance, force=self._noise.force
        )
        d = self.dynamics
        canary.check_dynamics(
            self.potential, d.structure, d.velocities, settings.dynamics, self.limits
        )
        return after

    def _refuse(
        self, state: State, candidate: Update | None, reason: str, contradicting: tuple[int, ...]
    ) -> Outcome:
        former = self.knowledge
        self.learner.activate(former)
        self.dynamics.refresh()
        usable = candidate is not None and state.trusted and not contradicting
        scores = candidate.scores if candidate is not None and usable else ()
        if scores and candidate is not None:
            self.knowledge = replace(former, calibration=candidate.knowledge.calibration)
        event = ev.UpdateRefused(
            reason=reason, seconds=time.monotonic() - self._arrived, contradicting=contradicting
        )
        return Outcome(event, None, (), scores, self._calibration())

    def _accept(
        self, candidate: Update, learned: tuple[int, ...], receipt: dict[str, Any]
    ) -> Outcome:
        self.knowledge = candidate.knowledge
        self._watch()
        self.dynamics.refresh()
        number = self.knowledge.snapshot
        path = _snapshot_path(number)
        self.learner.save(self.knowledge, self.directory / path)
        self.learner.shrink(self.directory / _snapshot_path(number - WHOLE_SNAPSHOTS))
        weights = self.potential.weights_hash()
        info = {name: _plain(value) for name, value in candidate.info.items()}
        info["receipt"] = receipt
        info["memory_MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        snapshot = Snapshot(
            id=number, at=time.time(), path=str(path), weights=weights,
            offset=self.knowledge.offset.value, offset_variance=self.knowledge.offset.variance,
            n_labels=len(self.knowledge.labels), info=info,
            calibration=calibration_to_dict(self.knowledge.calibration),
        )  # fmt: skip
        event = ev.Updated(
            snapshot=number, n_labels=snapshot.n_labels, weights=weights, info=info,
            seconds=time.monotonic() - self._arrived,
        )  # fmt: skip
        return Outcome(event, snapshot, learned, candidate.scores, self._calibration())

    def _calibration(self) -> str:
        return json.dumps(calibration_to_dict(self.knowledge.calibration))

    def restore(
        self,
        snapshot: Snapshot,
        rows: Sequence[LabelRow],
        frames: Sequence[Frame],
        calibration: str,
    ) -> None:
        """Take up the knowledge of `snapshot`, learned from `rows` in the order of learning."""
        labels = [self._labelled(row, frame) for row, frame in zip(rows, frames, strict=True)]
        with _threads(self._learning_threads):
            restored = self.learner.restore(
                self.directory / snapshot.path, labels,
                Offset(snapshot.offset, snapshot.offset_variance), snapshot.id,
            )  # fmt: skip
        self.knowledge = replace(
            restored, calibration=calibration_from_dict(json.loads(calibration))
        )
        self._watch()
        found = self.potential.weights_hash()
        if found != snapshot.weights:
            raise CampaignError(
                f"The weights in {snapshot.path} have hash {found}, the journal says "
                f"{snapshot.weights}; the file was changed. Restore it from a copy."
            )
        self.dynamics.refresh()

    def roll_back(
        self, snapshot: Snapshot, rows: Sequence[LabelRow], frames: Sequence[Frame], number: int
    ) -> Outcome:
        """Put the weights of `snapshot`, learned from `rows`, in force as snapshot `number`."""
        began = time.monotonic()
        self.restore(snapshot, rows, frames, json.dumps(snapshot.calibration))
        self.knowledge = replace(self.knowledge, snapshot=number)
        path = _snapshot_path(number)
        self.learner.save(self.knowledge, self.directory / path)
        self.learner.shrink(self.directory / _snapshot_path(number - WHOLE_SNAPSHOTS))
        again = replace(
            snapshot, id=number, at=time.time(), path=str(path), info={"restored": snapshot.id}
        )
        event = ev.RolledBack(
            snapshot=number, to=snapshot.id, weights=snapshot.weights,
            seconds=time.monotonic() - began,
        )  # fmt: skip
        return Outcome(event, again, (), (), self._calibration())

    def rescore(self, state: State, query_id: int, structure: Structure) -> ev.Rescored:
        """Judge a waiting frame with the weights in force."""
        seen, values = self._judged_anew(state, structure)
        reasons = self._rule.reasons(seen, values["sigma_force"])
        return ev.Rescored(query_id=query_id, reasons=reasons, **values)

    def judge_stored(self, state: State, frame: Frame) -> dict[str, Any]:
        """Return what a query keeps of a stored frame, judged with the weights in force."""
        structure = frame.of(self.structure)
        _, values = self._judged_anew(state, structure)
        return {
            "frame_id": frame.id, "step": frame.step, "key": structure.key,
            "snapshot": self.knowledge.snapshot, **values,
        }  # fmt: skip

    def _judged_anew(self, state: State, structure: Structure) -> tuple[Assessment, dict[str, Any]]:
        spread = self.learner.judge(self.knowledge, structure)
        seen = self.learner.assess(self.knowledge, spread, state)
        (features,) = self.learner.describe([structure])
        novelty = self.learner.novelty(self.knowledge, structure.numbers, features)
        return seen, {
            "sigma_energy": float(spread.sigma_energy), "sigma_force": spread.sigma_force,
            "probability": float(seen.probability), "energy_bound": float(seen.energy_bound),
            "force_bound": float(seen.force_bound), "sigma_stress": _known(spread.sigma_stress),
            "stress_bound": _known(seen.stress_bound), "novelty": _known(novelty),
        }  # fmt: skip

    def select(
        self, structures: Sequence[Structure], sigma_forces: Sequence[float], n: int
    ) -> list[int]:
        """Return the indices of `n` structures as the settings ask for: a batch.

        Args:
            sigma_forces: (S,) σ of the largest force of each by the weights in force, eV/Å.
        """
        if self._labelling.batch_by == "sigma":
            return top(np.asarray(sigma_forces), n)
        with _threads(self._learning_threads):
            return self.learner.choose(self.knowledge, structures, n)

    @property
    def energy(self) -> float:
        """Potential energy of the present point, offset included, eV."""
        return self.dynamics.energy + self.learner.shift(self.knowledge)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Let torch use `n` threads for a while, all cores for 0: the simulation waits meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or _cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _snapshot_path(number: int) -> Path:
    return Path(SNAPSHOTS) / f"{number:05d}.safetensors"


def _plain(value: object) -> object:
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return float(value) if np.ndim(value) == 0 else np.asarray(value, dtype=float).tolist()  # type: ignore[arg-type]
