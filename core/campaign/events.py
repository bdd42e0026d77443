"""Everything that can happen to a campaign, as plain frozen data that survives a trip through JSON.

Commands are what people ask for; facts are what the worker saw. Both are journalled in order,
and replaying them through `core.campaign.loop.advance` gives the same state again.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from core.errors import CampaignError


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events; `at` is the time it happened, seconds since 1970."""

    at: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Command(Event):
    """What someone asks for; `who` is the name shown beside the decision."""

    who: str = "person"


@dataclass(frozen=True, kw_only=True)
class Start(Command):
    """Begin, or go on after a pause or a stop."""


@dataclass(frozen=True, kw_only=True)
class Pause(Command):
    """Hold the dynamics; labels already running finish."""


@dataclass(frozen=True, kw_only=True)
class Resume(Command):
    """Go on after a pause or a stop."""


@dataclass(frozen=True, kw_only=True)
class StepBy(Command):
    """Run this many steps, then pause."""

    steps: int


@dataclass(frozen=True, kw_only=True)
class Stop(Command):
    """End the run and the worker; running labels are cancelled. `Resume` goes on from here."""


@dataclass(frozen=True, kw_only=True)
class ChangeSetting(Command):
    """Set a live field of the settings ("trust.confidence") to `value`."""

    path: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class Approve(Command):
    """Label these waiting frames."""

    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Reject(Command):
    """Never label these waiting frames; the dynamics go on."""

    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Skip(Command):
    """Put these waiting or failed frames aside; `Retry` brings them back."""

    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Retry(Command):
    """Label failed or skipped frames after all."""

    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ImportLabels(Command):
    """Take labels of these frames that were computed elsewhere; `source` names their file.

    The numbers are posted with the command, see `core.campaign.reader.Commander.offer`.
    """

    ids: tuple[int, ...]
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class ApplyThreshold(Command):
    """Approve waiting frames less likely than `probability` to be right, reject the others."""

    probability: float


@dataclass(frozen=True, kw_only=True)
class LabelFrames(Command):
    """Label these stored frames of the trajectory, whether they were flagged or not."""

    frame_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ProposeBatch(Command):
    """Propose a diverse batch of the frames collected so far."""


@dataclass(frozen=True, kw_only=True)
class RollBack(Command):
    """Put an earlier snapshot in force; labels it had not learned are set aside."""

    snapshot: int


@dataclass(frozen=True, kw_only=True)
class Undo(Command):
    """Take back the last decision, or the whole last batch."""


@dataclass(frozen=True, kw_only=True)
class Fact(Event):
    """What the worker saw."""


@dataclass(frozen=True, kw_only=True)
class WorkerStarted(Fact):
    """A worker opened the campaign; whatever was under way has to be taken up again.

    `device` is why the model computes where it does, empty where there was no choice.
    """

    pid: int
    device: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkerFailed(Fact):
    """The worker met an error it does not know how to treat."""

    traceback: str


@dataclass(frozen=True, kw_only=True)
class StepCompiled(Fact):
    """Steps are compiled from `step` on, milliseconds before and after; or why they are not."""

    step: int
    before_ms: float = 0.0
    after_ms: float = 0.0
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class FrameChecked(Fact):
    """The dynamics reached `step` and the frame was judged; σ in eV and eV/Å.

    `reasons` is empty for a trusted frame; else any of "initial", "energy", "force", "stress",
    "periodic". Stress, in eV/Å³, is None where it is not learned from; `novelty` (see
    `core.acquisition.coverage`) and `within`, P(all errors within their tolerances), before there
    are labels.
    """

    frame_id: int
    step: int
    key: str
    snapshot: int
    reasons: tuple[str, ...] = ()
    sigma_energy: float = 0.0
    sigma_force: float = 0.0
    probability: float = 0.0
    energy_bound: float = 0.0
    force_bound: float = 0.0
    sigma_stress: float | None = None
    stress_bound: float | None = None
    novelty: float | None = None
    within: float | None = None


@dataclass(frozen=True, kw_only=True)
class StepsDone(Fact):
    """The dynamics stopped at `step`, between two checks."""

    step: int


@dataclass(frozen=True, kw_only=True)
class Broken(Fact):
    """The dynamics went over the reset limit at `step` (atoms too close, exploding, not finite)."""

    step: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class LabelsSubmitted(Fact):
    """These frames were handed to the reference."""

    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LabelArrived(Fact):
    """The label of query `query_id` is in the store."""

    query_id: int
    wall_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LabelFailed(Fact):
    """No usable label for `query_id`; `failure` as in `core.contracts.Failure.kind`."""

    query_id: int
    failure: str
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class BatchProposed(Fact):
    """The diverse subset asked for."""

    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Updated(Fact):
    """New weights passed the canary and are in force; `seconds` from label to dynamics."""

    snapshot: int
    n_labels: int
    weights: str
    seconds: float = 0.0
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RolledBack(Fact):
    """The weights of snapshot `to` are in force again, as snapshot `snapshot`."""

    snapshot: int
    to: int
    weights: str
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class UpdateRefused(Fact):
    """New weights failed the canary and were rolled back.

    The labels of the queries `contradicting` are at fault: they are set aside.
    """

    reason: str
    seconds: float = 0.0
    contradicting: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rescored(Fact):
    """A waiting frame under the new weights; without reasons it needs no label any more."""

    query_id: int
    reasons: tuple[str, ...]
    sigma_energy: float
    sigma_force: float
    probability: float
    energy_bound: float
    force_bound: float
    sigma_stress: float | None = None
    stress_bound: float | None = None
    novelty: float | None = None


@dataclass(frozen=True, kw_only=True)
class FramesJudged(Fact):
    """Stored frames that a person wants labelled, under the weights in force.

    Attributes:
        frames: of each, what `core.campaign.state.Query` keeps of a frame when it is flagged.
    """

    frames: tuple[dict[str, Any], ...]


def _leaves(base: type) -> list[type]:
    below: list[type] = base.__subclasses__()
    return [leaf for sub in below for leaf in _leaves(sub)] if below else [base]


KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in _leaves(Event)}
"""Name -> class of every event."""


def to_json(event: Event) -> str:
    """Return the event as one JSON object with its `kind`."""
    return json.dumps({"kind": type(event).__name__, **asdict(event)})


def from_json(text: str) -> Event:
    """Read what `to_json` wrote.

    Raises:
        CampaignError: an event this version does not know.
    """
    data = json.loads(text)
    kind = data.pop("kind")
    if kind not in KINDS:
        raise CampaignError(
            f"The journal holds an event {kind!r} that this version of Flywise does not know; "
            "open the campaign with the version that wrote it."
        )
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return KINDS[kind](**values)
