"""The log of a campaign: its journal in a chemist's words, newest first, a line for each event.

Frames that were checked and found trusted are left out: the traces show them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import panel as pn
import panel_material_ui as pmui

from app import theme, wording
from app.state import CampaignState, Glance
from app.widgets.form import FIELDS, LABEL_HIDDEN, label_of, said_of
from app.wording import count, duration
from core.campaign import events as ev
from core.campaign.state import Query
from core.units import GPA

SLICE = 400
"""Events read at one look, so that a long journal does not hold up the page."""
KEPT = 5000
"""Lines kept; older ones are in the journal only."""
PAGE = 50
"""Lines shown at once."""
TAIL = 25
"""Lines of the worker's log that are shown after a failure."""

TOPICS = {
    "All": None, "Decisions": "decisions", "Labels": "labels", "Learning": "updates",
    "Problems": "problems",
}  # fmt: skip
"""What the filter offers."""

_CSS = """
:host { display: flex !important; padding: 14px 18px 12px; gap: 10px; }
.scroll-button { display: none !important; }
.lines { flex: 1 1 auto; min-height: 120px; overflow: auto; }
"""
_LINES_CSS = """
ol { list-style: none; margin: 0; padding: 0; font-size: 13px; line-height: 1.45; }
li { display: grid; grid-template-columns: 66px minmax(0, 1fr) auto; gap: 2px 12px;
  padding: 5px 0; border-bottom: 1px solid var(--fw-line); }
li:last-child { border-bottom: 0; }
time { color: var(--fw-muted); font-variant-numeric: tabular-nums; }
.who { color: var(--fw-muted); white-space: nowrap; }
.problems .what { color: var(--fw-bad); } .what { overflow-wrap: anywhere; }
p { margin: 0; color: var(--fw-muted); font-size: 13px; line-height: 1.5; }
details { margin: 0 0 8px; font-size: 12.5px; } summary { cursor: pointer; color: var(--fw-bad); }
pre { margin: 6px 0 0; padding: 8px 10px; background: var(--fw-raised); border-radius: 6px;
  font-size: 11.5px; line-height: 1.45; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; color: var(--fw-text); }
@media (max-width: 620px) { li { grid-template-columns: 58px minmax(0, 1fr); }
  .who { grid-column: 2; font-size: 12px; } }
"""
_PAGER_CSS = ":host { align-items: center; gap: 8px; } .scroll-button { display: none; }"
_COUNT_CSS = "p { margin: 0; font-size: 12px; line-height: 30px; color: var(--fw-muted); }"


@dataclass(frozen=True)
class Line:
    """One line: when, what happened, who decided ("" for nobody), and its topic."""

    at: float
    text: str
    who: str
    topic: str


class Log(pn.viewable.Viewer):
    """Lines, a filter, and buttons to older and newer ones."""

    def __init__(self, campaign: CampaignState) -> None:
        super().__init__()
        self._campaign = campaign
        self._read = _Reading(campaign)
        self._page = 0
        self._drawn: tuple[Any, ...] | None = None
        self._topic = pmui.RadioButtonGroup(
            options=list(TOPICS), value="All", size="small", color="primary", margin=0,
            label="Show", css_classes=["topics"], stylesheets=[LABEL_HIDDEN],
        )  # fmt: skip
        self._topic.param.watch(self._choose, "value")
        self._lines = pn.pane.HTML(
            "", stylesheets=[_LINES_CSS], margin=0, sizing_mode="stretch_width",
            css_classes=["lines"],
        )  # fmt: skip
        self._newer = _button("Newer", "chevron_left", lambda _: self._turn(-1))
        self._older = _button("Older", "chevron_right", lambda _: self._turn(1))
        self._count = pn.pane.HTML("", stylesheets=[_COUNT_CSS], margin=0)
        pager = pn.Row(self._newer, self._older, self._count, margin=0, stylesheets=[_PAGER_CSS])
        self._layout = pn.Column(
            self._topic, self._lines, pager, margin=0, css_classes=["log"],
            stylesheets=[theme.CARD, _CSS],
        )  # fmt: skip

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self, glance: Glance) -> None:
        """Read on in the journal, and draw where something new came."""
        self._read.on(glance.state.queue)
        failed = glance.state.phase == "failed" or glance.stuck is not None or glance.orphaned
        self._draw(self._campaign.worker_log(TAIL) if failed else "")

    def _choose(self, _: object) -> None:
        self._page = 0
        self._draw(self._drawn[-1] if self._drawn else "")

    def _turn(self, pages: int) -> None:
        self._page += pages
        self._draw(self._drawn[-1] if self._drawn else "")

    def _draw(self, tail: str) -> None:
        now = (self._read.version, self._topic.value, self._page, tail)
        if now == self._drawn:
            return
        wanted = TOPICS[self._topic.value]
        lines = [line for line in self._read.lines if wanted in (None, line.topic)]
        last = max(0, (len(lines) - 1) // PAGE)
        self._page = min(max(self._page, 0), last)
        first = self._page * PAGE
        shown = lines[first : first + PAGE]
        self._lines.object = _tail(tail) + _list(shown)
        self._newer.disabled, self._older.disabled = self._page == 0, self._page == last
        range_ = f"{first + 1}–{first + len(shown)} of {count(len(lines))}" if shown else ""
        self._count.object = f"<p>{range_}</p>"
        self._drawn = (self._read.version, self._topic.value, self._page, tail)


class _Reading:
    """Follows the journal and the commands; `version` grows with the lines."""

    def __init__(self, campaign: CampaignState) -> None:
        self._reader = campaign.reader
        self.lines: deque[Line] = deque(maxlen=KEPT)
        self.version = 0
        self._event = self._command = 0
        self._pending: list[int] = []

    def on(self, queue: Sequence[Query]) -> None:
        """Read what is new, a slice of it; `queue` names the frames."""
        frames = by_step(queue)
        found = self._reader.events_since(self._event, SLICE)
        for self._event, event in found:
            if topic := topic_of(event):
                self._add(Line(event.at, describe(event, frames), who(event), topic))
        self._refusals(frames)

    def _refusals(self, frames: Names) -> None:
        posted = self._reader.commands_since(self._command)
        for row in [*map(self._reader.command, self._pending), *posted]:
            if row.outcome is None and row.id not in self._pending:
                self._pending.append(row.id)
            elif row.outcome is not None and row.id in self._pending:
                self._pending.remove(row.id)
            if row.outcome not in (None, "done"):
                text = f"Refused: {describe(row.command, frames)} {row.outcome}"
                self._add(Line(row.handled_at or row.posted_at, text, who(row.command), "problems"))
        if posted:
            self._command = posted[-1].id

    def _add(self, line: Line) -> None:
        """Put a line where its time says, newest first."""
        later = 0
        while later < len(self.lines) and self.lines[later].at > line.at:
            later += 1
        if len(self.lines) == KEPT:
            self.lines.pop()
        self.lines.insert(later, line)
        self.version += 1


def _button(label: str, icon: str, act: Callable[[object], None]) -> pmui.Button:
    return pmui.Button(
        label=label, icon=icon, variant="text", size="small", margin=0, on_click=act,
        color="primary", disabled=True,
    )  # fmt: skip


def _list(lines: list[Line]) -> str:
    if not lines:
        return "<p>Nothing yet. What happens in the campaign is written down here.</p>"
    return '<ol tabindex="0" aria-label="Log, newest first">' + "".join(map(_line, lines)) + "</ol>"


def _line(line: Line) -> str:
    return (
        f'<li class="{line.topic}"><time>{_clock(line.at)}</time>'
        f'<span class="what">{escape(line.text)}</span><span class="who">{escape(line.who)}</span>'
        "</li>"
    )


def _clock(at: float) -> str:
    day, today = (time.strftime("%d %b", time.localtime(t)) for t in (at, time.time()))
    clock = time.strftime("%H:%M:%S", time.localtime(at))
    return clock if day == today else f"{day}<br>{clock}"


def _tail(text: str) -> str:
    if not text:
        return ""
    return (
        "<details open><summary>The last the engine wrote</summary>"
        f"<pre>{escape(text)}</pre></details>"
    )


def topic_of(event: ev.Event) -> str | None:
    """Return under which topic an event is listed, None for what is not worth a line."""
    if isinstance(event, ev.FrameChecked) and not event.reasons:
        return None
    if isinstance(event, ev.StepsDone | ev.Rescored):
        return None
    return _TOPIC_OF.get(type(event), "decisions" if isinstance(event, ev.Command) else "run")


_TOPIC_OF: dict[type[ev.Event], str] = {
    ev.LabelsSubmitted: "labels",
    ev.LabelArrived: "labels",
    ev.LabelFailed: "problems",
    ev.Updated: "updates",
    ev.RolledBack: "updates",
    ev.UpdateRefused: "problems",
    ev.Broken: "problems",
    ev.WorkerFailed: "problems",
    ev.FrameChecked: "labels",
}


def who(event: ev.Event) -> str:
    """Return who decided, "" for what nobody did."""
    return event.who if isinstance(event, ev.Command) else ""


Names = Callable[[tuple[int, ...]], str]
"""What queries are called: ids -> "frame 3", "the frame at step 120", "8 frames"."""


def describe(event: ev.Event, frames: Names | None = None) -> str:
    """Say what happened, in one sentence."""
    if type(event) in _SENTENCES:
        return _SENTENCES[type(event)](event, frames or by_number)
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in type(event).__name__)
    return f"{words.strip().capitalize()}."


def by_number(ids: tuple[int, ...]) -> str:
    """Name queries by their number."""
    return f"frame {ids[0]}" if len(ids) == 1 else f"{count(len(ids))} frames"


def by_step(queue: Sequence[Query]) -> Names:
    """Return names of queries by the step they were flagged at."""

    def names(ids: tuple[int, ...]) -> str:
        if len(ids) == 1 and 0 < ids[0] <= len(queue):
            return f"the frame at step {count(queue[ids[0] - 1].step)}"
        return by_number(ids)

    return names


def _setting(event: Any, frames: Names) -> str:
    if event.path not in FIELDS:
        return f"{event.path} set to {event.value}."
    entry = FIELDS[event.path]
    text = "none" if event.value is None else said_of(event.path, event.value)
    if event.path == "labelling.mode":
        text = wording.MODES[event.value].lower()
    return f"{label_of(entry)} set to {text}."


def _checked(event: Any, frames: Names) -> str:
    step = f"Frame at step {count(event.step)}"
    if not event.reasons:
        return f"{step} was checked and is trusted."
    if "initial" in event.reasons:
        return f"{step} chosen as one of the first to be labelled."
    if "periodic" in event.reasons:
        return f"{step} is due for a label."
    energy, force = wording.kcal(event.energy_bound), event.force_bound
    bounds = {
        "energy": f"energy ± {wording.figures(energy)} kcal/mol",
        "force": f"largest force ± {wording.figures(force)} eV/Å",
        "stress": f"stress ± {wording.figures((event.stress_bound or 0) / GPA)} GPa",
    }
    return f"{step} flagged: {', '.join(bounds[reason] for reason in event.reasons)}."


def _compiled(event: Any, frames: Names) -> str:
    if event.problem:
        return f"The steps stay as they were, they could not be compiled: {event.problem}."
    faster = f"{event.before_ms:.2g} → {event.after_ms:.2g} ms"
    return f"Steps are compiled from step {count(event.step)} on: {faster} each."


def _updated(event: Any, frames: Names) -> str:
    labels = "1 label" if event.n_labels == 1 else f"{count(event.n_labels)} labels"
    return f"The model learned: {labels} in all, in {duration(event.seconds)}."


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no reason was given"


_SENTENCES: dict[type[ev.Event], Callable[[Any, Names], str]] = {
    ev.Start: lambda e, frames: "Started.",
    ev.Pause: lambda e, frames: "Paused.",
    ev.Resume: lambda e, frames: "Went on.",
    ev.StepBy: lambda e, frames: f"Asked for {count(e.steps)} steps.",
    ev.Stop: lambda e, frames: "Stopped.",
    ev.ChangeSetting: _setting,
    ev.Approve: lambda e, frames: f"Approved {frames(e.ids)} for labelling.",
    ev.Reject: lambda e, frames: f"Rejected {frames(e.ids)}.",
    ev.Skip: lambda e, frames: f"Put {frames(e.ids)} aside.",
    ev.Retry: lambda e, frames: f"Labelling of {frames(e.ids)} asked for again.",
    ev.ImportLabels: lambda e, frames: (
        f"Took in labels of {frames(e.ids)} computed elsewhere"
        + (f" ({e.source})." if e.source else ".")
    ),
    ev.ApplyThreshold: lambda e, frames: (
        f"Waiting frames less than {100 * e.probability:g} % likely approved, the others rejected."
    ),
    ev.LabelFrames: lambda e, frames: (
        f"Asked to label {wording.frames(len(e.frame_ids))} chosen on the map."
    ),
    ev.FramesJudged: lambda e, frames: f"Judged {wording.frames(len(e.frames))} chosen on the map.",
    ev.ProposeBatch: lambda e, frames: "A batch asked for.",
    ev.Undo: lambda e, frames: "The last decision was taken back.",
    ev.WorkerStarted: lambda e, frames: f"The engine started (process {e.pid}). {e.device}".strip(),
    ev.WorkerFailed: lambda e, frames: f"The engine stopped by an error: {_last_line(e.traceback)}",
    ev.StepCompiled: _compiled,
    ev.FrameChecked: _checked,
    ev.StepsDone: lambda e, frames: f"The simulation reached step {count(e.step)}.",
    ev.Broken: lambda e, frames: f"Broken at step {count(e.step)} and rewound: {e.reason}",
    ev.LabelsSubmitted: lambda e, frames: f"Labelling of {frames(e.ids)} began.",
    ev.LabelArrived: lambda e, frames: f"Labelled {frames((e.query_id,))} in {duration(e.wall_s)}.",
    ev.LabelFailed: lambda e, frames: (
        f"No label for {frames((e.query_id,))} ({e.failure}): {e.message or 'no reason given'}"
    ),
    ev.BatchProposed: lambda e, frames: f"A batch of {frames(e.ids)} proposed.",
    ev.Updated: _updated,
    ev.RollBack: lambda e, frames: f"Asked to go back to snapshot {e.snapshot}.",
    ev.RolledBack: lambda e, frames: (
        f"The weights of snapshot {e.to} are in force again, as snapshot {e.snapshot}; labels "
        "learned since then are set aside."
    ),
    ev.UpdateRefused: lambda e, frames: f"New weights were refused and rolled back: {e.reason}",
    ev.Rescored: lambda e, frames: (
        f"Judged {frames((e.query_id,))} again: "
        + ("it still exceeds the tolerances." if e.reasons else "it needs no label any more.")
    ),
}
