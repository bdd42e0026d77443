"""Drives one campaign: commands, labels, dynamics, in turn; every event journalled when it happens.

Knows no process and catches no error: the worker does. What it needs to go on is in the store
before it is acted upon, so that it may die at any moment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from core.campaign import events as ev
from core.campaign import loop
from core.campaign import store as st
from core.campaign.engine import Engine, Outcome
from core.campaign.live import RATE_HZ, LiveFrame, LiveWriter
from core.campaign.rules import REMEMBERED
from core.campaign.state import LABELLED, State
from core.contracts import Failure, Label
from core.errors import CampaignError, LabelError
from core.structures import Structure

POLL_S = 0.2
"""Seconds between looks at the command table while the dynamics run."""
IDLE_S = 0.05
LABELLING_S = 0.005
"""The same while nothing runs but labels, and while nothing runs at all."""

Listener = Callable[[State, ev.Event], None]


class Runner:
    """The one writer of a campaign directory.

    `state` is complete before `open`, which loads the model and takes up what was under way.
    `listener` is told every event with the state after it.
    """

    def __init__(self, directory: str | Path, listener: Listener | None = None) -> None:
        self.store = st.Store(directory)
        self.directory = self.store.directory
        self._listener = listener
        self.structure: Structure = st.read_structure(self.store.connection)
        journal = st.read_events(self.store.connection)
        self.state = loop.replay(
            st.initial_state(self.store.connection), (event for _, event in journal)
        )
        self._live = LiveWriter(self.directory, len(self.structure))
        self._engine: Engine | None = None
        self._polled = 0.0
        self._speed = (time.monotonic(), 0, 0.0)
        self._leaving = False

    @property
    def engine(self) -> Engine:
        """The numerical side; `open` makes it."""
        if self._engine is None:
            raise CampaignError("The campaign is not open.")
        return self._engine

    def open(self) -> None:
        """Load model and reference, restore what was learned, take up what was under way."""
        noise = st.read_settings(self.store.connection).noise_for(len(self.structure))
        self._engine = Engine(self.directory, self.structure, self.state, noise)
        self.store.set_meta("fingerprint", self._engine.fingerprint)
        self._restore_knowledge()
        self._restore_dynamics()
        self._engine.submitter.warm()
        self.apply(ev.WorkerStarted(pid=os.getpid(), device=self._engine.placed))

    def close(self) -> None:
        """Keep the point the dynamics reached, then let go of everything."""
        if self._engine is not None:
            self._engine.close()
        self._live.close()
        self.store.close()

    def leave(self) -> None:
        """Ask `run` to return at the next opportunity; safe in a signal handler."""
        self._leaving = True

    def run(self, done: Callable[[State], bool]) -> None:
        """Go on until `done` says so of the state, or `leave` was called."""
        while not self._leaving:
            self._handle_commands()
            self._collect_labels()
            if done(self.state):
                break
            if self.state.phase == "running":
                self._run_dynamics()
            else:
                time.sleep(LABELLING_S if self.state.phase == "labelling" else IDLE_S)
        self.sync()

    def apply(self, event: ev.Event) -> None:
        """Journal `event` and do what follows from it.

        Raises:
            CommandRefusedError: a command without meaning now; nothing is journalled.
        """
        self._follow(self._record(event))

    def fail(self, text: str) -> None:
        """Journal that an error ended the run."""
        self._record(ev.WorkerFailed(traceback=text))

    def sync(self) -> None:
        """Journal the point the dynamics reached between two checks."""
        if self._engine is not None and self._engine.dynamics.step != self.state.step:
            with self.store.transaction(durable=False):
                requests = self._record(ev.StepsDone(step=self._engine.dynamics.step))
                self._save_dynamics()
            self._follow(requests)

    # Journal

    def _record(self, event: ev.Event) -> tuple[loop.Request, ...]:
        state, requests = loop.advance(self.state, event)
        with self.store.transaction():
            self.store.add_event(event)
            for request in requests:
                if isinstance(request, loop.Rewind):
                    self.store.mark_rewound(request.step)
        self.state = state
        if self._listener is not None:
            self._listener(state, event)
        return requests

    def _follow(self, requests: tuple[loop.Request, ...]) -> None:
        for request in requests:
            _CARRY_OUT[type(request)](self, request)
        if self._engine is not None:
            self._publish(force=True)

    # Commands

    def _handle_commands(self) -> None:
        now = time.monotonic()
        if now - self._polled < POLL_S and self.state.phase == "running":
            return
        self._polled = now
        for command_id, command in self.store.new_commands():
            self.sync()
            requests: tuple[loop.Request, ...] = ()
            with self.store.transaction():
                try:
                    labels = self._offered(command_id, command)
                    requests = self._record(command)
                    for query_id, label in labels.items():
                        frame_id = self.state.query(query_id).frame_id
                        self.store.add_label(query_id, frame_id, label)
                    outcome = "done"
                except (loop.CommandRefusedError, LabelError) as error:
                    outcome = str(error)
                self.store.finish_command(command_id, outcome)
            self._follow(requests)

    def _offered(self, command_id: int, command: ev.Command) -> dict[int, Label]:
        """Return query id -> label of those that came with a command."""
        if not isinstance(command, ev.ImportLabels):
            return {}
        rows = self.store.take_offered(command_id)
        loop.advance(self.state, command)  # raises where the command has no meaning
        if {row[0] for row in rows} != set(command.ids):
            raise loop.CommandRefusedError("The command came without the labels it names.")
        labels = {}
        for query_id, energy, forces, fingerprint, stress in rows:
            frame = self._frame(self.state.query(query_id).frame_id)
            structure = frame.of(self.structure)
            label = Label(structure, energy, forces, fingerprint, stress=stress)
            labels[query_id] = self.engine.accept(label)
        return labels

    # Dynamics

    def _run_dynamics(self) -> None:
        engine, state = self.engine, self.state
        why = engine.run(state, 1 / RATE_HZ)
        for event in engine.compiled():
            self.apply(event)
        step = engine.dynamics.step
        if why is not None:
            self.apply(ev.Broken(step=step, reason=why))
        elif engine.suspicious:
            self._check()
        elif step < state.next_stop:
            self._publish()
        elif step % state.stride and step < state.steps_total:
            self.sync()
        else:
            self._check()

    def _check(self) -> None:
        frame, event = self.engine.check(self.state, self.store.next_frame_id())
        with self.store.transaction(durable=bool(event.reasons)):
            self.store.add_frame(frame)
            requests = self._record(event)
            self._save_dynamics()
        self._follow(requests)

    def _save_dynamics(self) -> None:
        self.store.save_dynamics(self.engine.dynamics.step, self.engine.save_dynamics())

    def _rewind(self, request: loop.Rewind) -> None:
        self.engine.rewind(self._frame(request.frame_id), request)
        self._save_dynamics()

    def _restore_dynamics(self) -> None:
        stored = self.store.load_dynamics()
        if stored is not None:
            self.engine.load_dynamics(stored[1])
            self.engine.judged = st.read_last_frame(self.store.connection)
            self.engine.remember(st.read_sigma_forces(self.store.connection, REMEMBERED))
        if self.engine.dynamics.step != self.state.step:  # died between a rewind and its doing
            frame_id, step = self.state.anchor
            self._rewind(loop.Rewind(frame_id, step, fresh=step == 0))

    # Labels

    def _submit(self, request: loop.SubmitLabels) -> None:
        for query_id in request.ids:
            frame = self._frame(self.state.query(query_id).frame_id)
            self.engine.submit(query_id, frame.of(self.structure))
        self.apply(ev.LabelsSubmitted(ids=request.ids))

    def _cancel(self, request: loop.CancelLabels) -> None:
        self.engine.cancel(request.ids)

    def _collect_labels(self) -> None:
        for query_id, result in self.engine.poll():
            if isinstance(result, Failure):
                event: ev.Event = ev.LabelFailed(
                    query_id=query_id, failure=result.kind, message=result.message
                )
                self.apply(event)
            else:
                self._keep_label(query_id, result)

    def _keep_label(self, query_id: int, label: Label) -> None:
        with self.store.transaction():
            self.store.add_label(query_id, self.state.query(query_id).frame_id, label)
            requests = self._record(ev.LabelArrived(query_id=query_id, wall_s=label.wall_s))
        self._follow(requests)

    # Learning

    def _update(self, request: loop.UpdateModel) -> None:
        self._publish(force=True)
        known = {label.query_id for label in self.engine.knowledge.labels}
        usable = {q.id for q in self.state.queue if q.status in LABELLED} - known
        rows = [row for row in st.read_labels(self.store.connection) if row.query_id in usable]
        frames = [self._frame(row.frame_id) for row in rows]
        outcome = self.engine.update(self.state, rows, frames)
        requests = self._record_outcome(outcome)
        self._follow(requests)

    def _roll_back(self, request: loop.RestoreSnapshot) -> None:
        self._publish(force=True)
        snapshots = {s.id: s for s in st.read_snapshots(self.store.connection)}
        rows = self._learned(request.snapshot)
        frames = [self._frame(row.frame_id) for row in rows]
        outcome = self.engine.roll_back(
            snapshots[request.snapshot], rows, frames, max(snapshots) + 1
        )
        self._follow(self._record_outcome(outcome))

    def _learned(self, snapshot: int) -> list[st.LabelRow]:
        """Return the labels a snapshot has learned, in that order."""
        rows = {row.query_id: row for row in st.read_labels(self.store.connection)}
        return [rows[i] for i in self.state.learned[snapshot - 1]]

    def _record_outcome(self, outcome: Outcome) -> tuple[loop.Request, ...]:
        with self.store.transaction():
            for score in outcome.scores:
                self.store.score_label(**asdict(score), calibration=outcome.judged_by)
            self.store.set_meta("calibration", outcome.calibration)
            if outcome.snapshot is not None:
                self.store.add_snapshot(outcome.snapshot, outcome.learned)
            self._save_dynamics()
            return self._record(outcome.event)

    def _restore_knowledge(self) -> None:
        rows = st.read_labels(self.store.connection)
        for row in rows:
            if row.fingerprint != self.engine.fingerprint:
                raise CampaignError(
                    f"The labels of this campaign were computed with {row.fingerprint!r}, this "
                    f"machine would use {self.engine.fingerprint!r}; they must not be mixed. "
                    "Install the former version, or start a new campaign."
                )
        if self.state.snapshot == 0:
            return
        snapshot = st.read_snapshots(self.store.connection)[-1]
        learned = self._learned(snapshot.id)
        frames = [self._frame(row.frame_id) for row in learned]
        calibration = st.read_meta(self.store.connection, "calibration")
        self.engine.restore(snapshot, learned, frames, calibration)

    def _rescore(self, request: loop.Rescore) -> None:
        for query_id in request.ids:
            frame = self._frame(self.state.query(query_id).frame_id)
            structure = frame.of(self.structure)
            self.apply(self.engine.rescore(self.state, query_id, structure))

    def _judge(self, request: loop.JudgeFrames) -> None:
        found = [self.engine.judge_stored(self.state, self._frame(i)) for i in request.frame_ids]
        self.apply(ev.FramesJudged(frames=tuple(found)))

    def _select(self, request: loop.SelectBatch) -> None:
        queries = [self.state.query(i) for i in request.ids]
        structures = [self._frame(q.frame_id).of(self.structure) for q in queries]
        chosen = self.engine.select(structures, [q.sigma_force for q in queries], request.n)
        self.apply(ev.BatchProposed(ids=tuple(request.ids[i] for i in chosen)))

    def _reconfigure(self, request: loop.Reconfigure) -> None:
        self.engine.reconfigure(self.state)

    def _frame(self, frame_id: int) -> st.Frame:
        return st.read_frame(self.store.connection, frame_id)

    # The screen

    def _publish(self, *, force: bool = False) -> None:
        engine, seen = self.engine, self.engine.judged
        d, sigma = engine.dynamics, engine.sigma_energy
        unknown = np.full(len(d.positions), np.nan)
        probability = seen.probability if seen else np.nan
        bound = seen.energy_bound if seen else np.nan
        if np.isfinite(sigma):
            probability, bound = engine.energy_confidence(self.state, sigma)
        elif seen:
            sigma = seen.sigma_energy
        frame = LiveFrame(
            step=d.step, time=d.time_fs, energy=engine.energy, temperature=d.temperature_K,
            sigma_energy=sigma, probability=probability, energy_bound=bound,
            force_bound=seen.force_bound if seen else np.nan,
            steps_per_s=self._steps_per_s(), phase=self.state.phase, trusted=self.state.trusted,
            positions=d.positions, cell=d.cell, sigma_atoms=seen.sigma_atoms if seen else unknown,
        )  # fmt: skip
        self._live.write(frame, force=force)

    def _steps_per_s(self) -> float:
        began, step, rate = self._speed
        now = time.monotonic()
        if now - began >= 1.0:
            rate = max(self.engine.dynamics.step - step, 0) / (now - began)
            self._speed = (now, self.engine.dynamics.step, rate)
        return rate


_CARRY_OUT: dict[type, Callable[[Runner, Any], None]] = {
    loop.SubmitLabels: Runner._submit,
    loop.CancelLabels: Runner._cancel,
    loop.UpdateModel: Runner._update,
    loop.RestoreSnapshot: Runner._roll_back,
    loop.Rewind: Runner._rewind,
    loop.SelectBatch: Runner._select,
    loop.JudgeFrames: Runner._judge,
    loop.Rescore: Runner._rescore,
    loop.Reconfigure: Runner._reconfigure,
}
