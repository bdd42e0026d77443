"""What a campaign is at one moment: frozen data, and the phase that follows from it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from core.settings import Settings

Phase = Literal[
    "ready", "running", "deciding", "labelling", "updating", "paused", "finished", "failed"
]
PHASES: tuple[Phase, ...] = (
    "ready", "running", "deciding", "labelling", "updating", "paused", "finished", "failed",
)  # fmt: skip

Status = Literal[
    "waiting",
    "approved",
    "labelling",
    "labelled",
    "trained",
    "rejected",
    "skipped",
    "failed",
    "withdrawn",
]
IN_FLIGHT = ("approved", "labelling")
LABELLED = ("labelled", "trained")
PAID = (*IN_FLIGHT, *LABELLED, "withdrawn")
"""Statuses of frames whose label was computed, or is being; withdrawn ones are not learned from."""
WITHOUT_LABEL: tuple[Status, ...] = ("waiting", "rejected", "skipped", "failed")
"""Statuses of frames that may be given a label computed elsewhere."""

POOL_FACTOR = 2
"""In batch mode this many times `batch_size` frames collect before a diverse batch is proposed."""


WINDOW = 50
"""Frames without a label of which the share is shown that is expected within all tolerances."""
OUTSIDE = 1.25
"""Novelty beyond which a bound is not to be relied on. Frames of the labels' own distribution reach
about 1.1 (ethanol at 300 K, 8 to 60 labels); an O-H bond stretched by 0.3 Å has 2."""


@dataclass(frozen=True)
class Query:
    """One frame that may deserve a label, with everything that was known when it was flagged.

    Attributes:
        frame_id: row of the frame in the store. key: content hash of its structure.
        reasons: any of "initial", "energy", "force", "stress", "periodic"; or "chosen", where a
            person asked for the label of a frame that was not flagged.
        sigma_energy, energy_bound: eV. sigma_force, force_bound: largest atom, eV/Å.
        sigma_stress, stress_bound: least certain component, eV/Å³; None where not learned from.
        novelty: see `core.acquisition.coverage`; None before there are labels.
        energy_tolerance, force_tolerance: in force when the frame was flagged.
        snapshot: number of the weights that judged it.
        taken_back: a person undid a decision, so a person decides again.
        by_hand: its label was computed elsewhere and imported; `decided_by` says by whom.
    """

    id: int
    step: int
    frame_id: int
    key: str
    reasons: tuple[str, ...]
    sigma_energy: float
    sigma_force: float
    probability: float
    energy_bound: float
    force_bound: float
    energy_tolerance: float
    force_tolerance: float | None
    snapshot: int
    at: float
    status: Status = "waiting"
    decided_by: str | None = None
    decided_at: float | None = None
    failure: str | None = None
    taken_back: bool = False
    by_hand: bool = False
    sigma_stress: float | None = None
    stress_bound: float | None = None
    novelty: float | None = None


@dataclass(frozen=True)
class Decision:
    """What one undo takes back: statuses before, and the proposal that was open."""

    before: tuple[tuple[int, Status], ...]
    proposal: tuple[int, ...] = ()


@dataclass(frozen=True)
class State:
    """Everything `advance` needs; rebuilt by replaying the journal.

    Attributes:
        settings: as started, with every live change since.
        step: length of the trajectory kept so far. steps_run: steps computed, rewound included.
        stop_at: step at which a `StepBy` ends.
        paused, failure: the reason, or None.
        trusted: the initial labels are in and the first update is done.
        proposal: ids of the batch a person is asked about. proposing: a selection is under way.
        choosing: ids of stored frames that a person, `chosen_by`, wants labelled and that have not
            been judged for it yet.
        fresh: labels that arrived since the last attempt to update.
        learned: of every snapshot the queries it has learned, in that order.
        restoring: snapshot that is being gone back to.
        anchor: (frame id, step) the dynamics rewind to. here: (frame id, step) of the last frame.
        broken_step, attempts: rewinds of the present segment.
        novelty: of the last frame judged, None before there are labels.
        within: P(all errors within their tolerances) of the last `WINDOW` frames without a label.
    """

    settings: Settings
    n_atoms: int
    step: int = 0
    steps_run: int = 0
    stop_at: int | None = None
    started: bool = False
    stopped: bool = False
    paused: str | None = None
    failure: str | None = None
    updating: bool = False
    trusted: bool = False
    queue: tuple[Query, ...] = ()
    proposal: tuple[int, ...] = ()
    proposing: bool = False
    choosing: tuple[int, ...] = ()
    chosen_by: str = ""
    history: tuple[Decision, ...] = ()
    fresh: int = 0
    snapshot: int = 0
    learned: tuple[tuple[int, ...], ...] = ()
    restoring: int | None = None
    updates_refused: int = 0
    refusals: int = 0
    failures: int = 0
    anchor: tuple[int, int] = (1, 0)
    here: tuple[int, int] = (1, 0)
    broken_step: int = -1
    attempts: int = 0
    rewinds: int = 0
    novelty: float | None = None
    within: tuple[float, ...] = ()

    @property
    def steps_total(self) -> int:
        """Steps the campaign runs."""
        return self.settings.dynamics.steps

    @property
    def mode(self) -> str:
        """Who decides: approve, threshold or batch."""
        return self.settings.labelling.mode

    @property
    def energy_tolerance(self) -> float:
        """Tolerance of the total energy, eV."""
        return self.settings.trust.energy_tolerance_for(self.n_atoms)

    @property
    def force_tolerance(self) -> float | None:
        """Tolerance of the largest atomic force error, eV/Å."""
        return self.settings.trust.force_tolerance

    @property
    def stress_tolerance(self) -> float | None:
        """Tolerance of the largest error of a stress component, eV/Å³; None without."""
        return self.settings.trust.stress_tolerance

    @property
    def counts(self) -> Counter[str]:
        """Number of queries by status."""
        return Counter(q.status for q in self.queue)

    @property
    def n_labels(self) -> int:
        """Labels that arrived and are in use, or will be at the next update."""
        return sum(q.status in LABELLED for q in self.queue)

    @property
    def collecting(self) -> bool:
        """True while frames for the initial labels are still to be found."""
        usable = ("waiting", *IN_FLIGHT, *LABELLED)
        found = sum(q.status in usable for q in self.queue)
        return not self.trusted and found < self.settings.trust.initial_labels

    @property
    def stride(self) -> int:
        """Steps from one check to the next."""
        if self.trusted:
            return self.settings.dynamics.check_every
        return self.settings.trust.initial_stride

    @property
    def next_stop(self) -> int:
        """Step up to which the dynamics may run before something has to be looked at."""
        check = (self.step // self.stride + 1) * self.stride
        ends = [check, self.steps_total]
        return min(ends if self.stop_at is None else [*ends, self.stop_at])

    @property
    def needs_decision(self) -> bool:
        """True while the dynamics hold for a person."""
        statuses = self.counts
        if statuses["failed"]:
            return True
        if self.mode == "batch" and self.trusted:
            return bool(self.proposal) or self.proposing
        return statuses["waiting"] > 0 and not self.collecting

    @property
    def phase(self) -> Phase:
        """What the campaign is doing."""
        in_flight = any(q.status in IN_FLIGHT for q in self.queue)
        at_end = self.step >= self.steps_total
        if self.failure is not None:
            return "failed"
        if not self.started:
            return "ready"
        if self.stopped:
            return "finished"
        if self.paused is not None:
            return "paused"
        if self.updating:
            return "updating"
        if self.needs_decision:
            return "deciding"
        if in_flight and (at_end or not self.collecting):
            return "labelling"
        return "finished" if at_end else "running"

    def query(self, query_id: int) -> Query:
        """Return one query by its id (they count from 1)."""
        return self.queue[query_id - 1]

    def with_queries(self, ids: tuple[int, ...], **changes: object) -> State:
        """Return the state with `changes` made to the queries `ids`."""
        queue = list(self.queue)
        for i in ids:
            queue[i - 1] = replace(queue[i - 1], **changes)  # type: ignore[arg-type]
        return replace(self, queue=tuple(queue))

    def ids(self, *statuses: str) -> tuple[int, ...]:
        """Return the ids of the queries with any of `statuses`, oldest first."""
        return tuple(q.id for q in self.queue if q.status in statuses)
