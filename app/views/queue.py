"""The queue: flagged frames, why, how sure, what a label costs, and the decisions about them."""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui

from app import theme, wording
from app.deciding import asked, listed, swept, to_retry, undoable
from app.seat import Seat
from app.selection import Selection
from app.state import CampaignState, Glance
from app.widgets.form import action
from app.widgets.rows import Rows
from app.wording import kcal
from core.campaign import events as ev
from core.campaign.state import LABELLED, OUTSIDE, Query, State
from core.structures import rmsd
from core.units import GPA

MODE = "labelling.mode"
MODES_WIDTH = 262

_CSS = """
:host { display: grid !important; grid-template-columns: minmax(0, 1fr) minmax(0, 1.2fr);
  grid-template-rows: auto minmax(0, 1fr) auto auto; grid-template-areas: "head head" "list page"
  "sweep sweep" "exchange exchange"; }
.queue-head { grid-area: head; border-bottom: 1px solid var(--fw-line); padding: 4px 12px 4px 14px;
  display: grid !important; grid-template-columns: minmax(0, 1fr) auto auto; align-items: center;
  gap: 8px 12px; }
.queue-list { grid-area: list; border-right: 1px solid var(--fw-line); height: 100% !important;
  min-height: 0; }
.queue-page { grid-area: page; display: grid !important; grid-template-rows: minmax(0, 1fr) auto;
  gap: 6px; padding: 8px 16px 10px; min-height: 0; }
.queue-exchange { grid-area: exchange; border-top: 1px solid var(--fw-line);
  padding: 8px 16px 10px; }
.queue-sweep { grid-area: sweep; border-top: 1px solid var(--fw-line); padding: 4px 16px 6px;
  display: grid !important; grid-template-columns: minmax(120px, 1fr) minmax(0, 1.3fr) auto;
  align-items: center; gap: 18px; }
@media (max-width: 620px) {
  :host { grid-template-columns: minmax(0, 1fr); grid-template-rows: auto auto 190px auto auto;
    grid-template-areas: "head" "page" "list" "sweep" "exchange"; }
  .queue-head { grid-template-columns: minmax(0, 1fr) auto; }
  .queue-list { border-right: none; border-top: 1px solid var(--fw-line); }
  .queue-sweep { grid-template-columns: minmax(0, 1fr); gap: 4px; } }
"""

_HEAD_CSS = "@media (max-width: 620px) { .tally { grid-column: 1 / -1; } }"
_TEXT_CSS = """
:host { overflow: auto; min-height: 0; }
h2 { margin: 0; font-size: 14px; font-weight: 600; line-height: 1.4; display: flex; gap: 10px;
  align-items: baseline; }
h2 span { color: var(--fw-muted); font-size: 12px; font-weight: 400; }
p { margin: 2px 0 0; color: var(--fw-muted); font-size: 12.5px; line-height: 1.45; }
table { border-collapse: collapse; margin-top: 5px; font-size: 12.5px; line-height: 1.55;
  width: 100%; font-variant-numeric: tabular-nums; }
td { padding: 0 12px 0 0; white-space: nowrap; } td:last-child { width: 100%; padding: 0; }
td:first-child { color: var(--fw-muted); } .over { color: var(--fw-bad); font-weight: 600; }
small { color: var(--fw-muted); font-size: 12px; }
"""

_FIRST = "They set offset and calibration: trust begins here."
_BATCH = {
    "joint": "Each adds to the labels and to those before it.",
    "sigma": "Those of the largest σ of a force.",
}


class Queue(pn.viewable.Viewer):
    """List, details and buttons; a threshold swept over all waiting frames before it is applied.

    Args:
        files: a button beside the modes, for what it opens: `strip`, below the list.
    """

    def __init__(
        self,
        campaign: CampaignState,
        seat: Seat,
        selection: Selection,
        files: pn.viewable.Viewable,
        strip: pn.viewable.Viewer,
    ) -> None:
        super().__init__()
        self._campaign, self._seat, self._selection = campaign, seat, selection
        self._nearest = Nearest(campaign)
        self._following = False
        self._shown: Any = None
        self._head = _text("tally")
        modes = {word: mode for mode, word in wording.MODES.items()}
        self._mode = pmui.RadioButtonGroup(
            options=modes, value="threshold", color="primary", size="small", margin=0,
            width=MODES_WIDTH, sx={".MuiToggleButton-root": {"whiteSpace": "nowrap", "py": "4px"}},
        )  # fmt: skip
        self._mode.param.watch(self._change_mode, "value")
        self._rows = Rows(
            label="Flagged frames", css_classes=["queue-list"], margin=0,
            sizing_mode="stretch_both",
        )  # fmt: skip
        self._rows.param.watch(self._on_choice, "chosen")
        selection.param.watch(lambda event: self._follow(event.new), "query")
        self._text = _text()
        self._approve = action("Approve", "check", "contained", self.approve)
        self._reject = action("Reject", "close", "outlined", self.reject)
        self._skip = action("Skip", "redo", "outlined", self.skip)
        self._undo = action("Undo", "undo", "text", self.undo)
        self._batch = action("Propose a batch now", "auto_awesome", "outlined", self._propose)
        buttons = pn.Row(
            self._approve, self._reject, self._skip, self._undo, self._batch,
            margin=0, stylesheets=[":host { gap: 8px; flex-wrap: wrap; }"],
        )  # fmt: skip
        self._slider = pmui.FloatSlider(
            label="Label frames less likely within tolerance than", start=0.0, end=1.0, step=0.01,
            value=0.95, margin=0, size="small", sizing_mode="stretch_width", format="0%",
        )  # fmt: skip
        self._slider.param.watch(lambda _: self._preview(), "value")
        self._outlook = _text()
        self._apply = action("Apply", "done_all", "contained", self._sweep)
        self._strip = pn.Column(
            self._slider, self._outlook, self._apply, margin=0, css_classes=["queue-sweep"],
        )  # fmt: skip
        self._layout = pn.Column(
            pn.Column(
                self._head, self._mode, files,
                margin=0, css_classes=["queue-head"], stylesheets=[_HEAD_CSS],
            ),
            self._rows,
            pn.Column(self._text, buttons, margin=0, css_classes=["queue-page"]),
            strip,
            margin=0, css_classes=["queue"], stylesheets=[theme.CARD, _CSS],
        )  # fmt: skip

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    # ------------------------------------------------------------------ showing

    def update(self, glance: Glance) -> None:
        """Show a glance."""
        state = glance.state
        now = (
            state.queue, state.proposal, state.mode, state.phase, state.history, glance.label_s,
            self._seat.sharing.driving, self._selection.query,
        )  # fmt: skip
        if now == self._shown:
            return
        self._shown = now
        self._following = True
        try:
            self._mode.value = state.mode
        finally:
            self._following = False
        self._head.object = _tally(state)
        self._rows.param.update(
            rows=[self._row(glance, q) for q in listed(state)], empty=_nothing(glance)
        )
        self._detail(glance)
        sweeping = len(state.ids("waiting")) > 1 and state.trusted
        if sweeping != (self._strip in self._layout):
            (self._layout.append if sweeping else self._layout.remove)(self._strip)
        self._preview()

    def _detail(self, glance: Glance) -> None:
        state, driving = glance.state, self._seat.sharing.driving
        ids = asked(state, self._selection.query)
        chosen = self._selection.query
        query = state.query(ids[0] if ids else chosen) if ids or chosen else None
        near = self._nearest.say(state, query) if query is not None else ""
        self._text.object = _page(glance, ids, query, near)
        retry = to_retry(state, ids)
        many = f" all {len(ids)}" if len(ids) > 1 else ""
        withdrawn = retry and state.query(ids[0]).status == "withdrawn"
        word = "Learn again" if withdrawn else "Retry" if retry else "Approve"
        self._approve.param.update(label=word + many, disabled=not (ids and driving))
        self._reject.param.update(label="Reject" + many, disabled=not (ids and driving) or retry)
        skippable = bool(ids) and state.query(ids[0]).status not in _ASIDE
        self._skip.param.update(label="Skip" + many, disabled=not (skippable and driving))
        self._undo.disabled = not (undoable(state) and driving)
        self._mode.disabled = not driving
        waits = state.mode == "batch" and not state.proposal and not state.proposing
        self._batch.visible = waits and state.trusted and bool(state.ids("waiting"))
        self._batch.disabled = not driving

    def _row(self, glance: Glance, q: Query) -> dict[str, Any]:
        figure, over = _worst(glance.state, q)
        proposed = q.id in glance.state.proposal
        return {
            "id": q.id,
            "tone": _TONES[q.status],
            "status": "proposed" if proposed else q.status,
            "title": f"Step {wording.count(q.step)}",
            "figure": "" if "initial" in q.reasons else figure,
            "over": q.status == "waiting" and over,
            "detail": _short(q),
            "marked": proposed,
        }

    def _preview(self) -> None:
        glance = self._campaign.glance()
        state, threshold = glance.state, self._slider.value
        waiting = state.ids("waiting")
        taken = swept(state, threshold)
        left = len(waiting) - len(taken)
        cost = wording.cost(glance, len(taken)) if taken else "nothing"
        self._outlook.object = (
            f"<p><b>{len(taken)} of {len(waiting)}</b> waiting frames would be labelled "
            f"({cost}), {left} rejected.</p>"
        )
        self._apply.disabled = not waiting or not self._seat.sharing.driving

    # ------------------------------------------------------------------ choosing

    def _follow(self, query_id: int | None) -> None:
        self._rows.chosen = query_id or 0
        self.update(self._campaign.glance())

    def _on_choice(self, event: Any) -> None:
        if event.new != (self._selection.query or 0):
            self.choose(event.new)

    def choose(self, query_id: int) -> None:
        """Show one flagged frame here and in the view; 0 goes back to the present."""
        if not query_id:
            self._selection.param.update(query=None, frame=None)
            return
        state = self._campaign.glance().state
        if 1 <= query_id <= len(state.queue):
            self._selection.param.update(query=query_id, frame=state.query(query_id).frame_id)

    def move(self, by: int) -> None:
        """Choose the next row (+1) or the one before (-1)."""
        ids = [q.id for q in listed(self._campaign.glance().state)]
        if ids:
            here = ids.index(self._selection.query) if self._selection.query in ids else -1
            place = 0 if here < 0 else min(max(here + by, 0), len(ids) - 1)
            self.choose(ids[place])

    # ------------------------------------------------------------------ deciding

    def approve(self) -> None:
        """Label what is asked about, or try again where a label failed."""
        self._decide(lambda retry: ev.Retry if retry else ev.Approve)

    def reject(self) -> None:
        """Do without a label of what is asked about."""
        self._decide(lambda retry: None if retry else ev.Reject)

    def skip(self) -> None:
        """Leave what is asked about for later."""
        state = self._campaign.glance().state
        ids = asked(state, self._selection.query)
        if ids and state.query(ids[0]).status not in _ASIDE:
            self._post(ev.Skip(ids=ids))

    def undo(self) -> None:
        """Take the last decision back."""
        self._seat.post(ev.Undo())

    def _decide(self, command: Callable[[bool], Any]) -> None:
        state = self._campaign.glance().state
        ids = asked(state, self._selection.query)
        made = command(to_retry(state, ids)) if ids else None
        if made is not None:
            self._post(made(ids=ids))

    def _post(self, command: ev.Command) -> None:
        if self._seat.post(command):
            self.choose(0)

    def _propose(self) -> None:
        self._seat.post(ev.ProposeBatch())

    def _sweep(self) -> None:
        self._post(ev.ApplyThreshold(probability=float(self._slider.value)))

    def _change_mode(self, event: Any) -> None:
        if not self._following and event.new != self._campaign.glance().state.mode:
            self._shown = None
            self._seat.post(ev.ChangeSetting(path=MODE, value=event.new))


class Nearest:
    """The labelled frame nearest to another, as the root mean square distance of their atoms."""

    def __init__(self, campaign: CampaignState) -> None:
        self._campaign = campaign
        self._positions: dict[int, np.ndarray] = {}
        self._said: dict[tuple[int, int], str] = {}

    def say(self, state: State, query: Query) -> str:
        """Return the nearest label's step and distance; empty before the first label."""
        others = [q for q in state.queue if q.status in LABELLED and q.id != query.id]
        if not others:
            return ""
        key = (query.id, len(others))
        if key not in self._said:
            here = self._at(query)
            structure = self._campaign.structure
            apart = [rmsd(structure, here, self._at(q)) for q in others]
            k = int(np.argmin(apart))
            step = wording.count(others[k].step)
            self._said[key] = f"step {step}, {wording.figures(apart[k])} Å away"
        return self._said[key]

    def _at(self, query: Query) -> np.ndarray:
        if query.frame_id not in self._positions:
            frame = self._campaign.reader.frame(query.frame_id)
            self._positions[query.frame_id] = frame.positions
        return self._positions[query.frame_id]


_ASIDE = ("skipped", "withdrawn")
_TONES = {
    "waiting": "ask", "approved": "busy", "labelling": "busy", "labelled": "done",
    "trained": "done", "rejected": "idle", "skipped": "idle", "failed": "bad",
    "withdrawn": "idle",
}  # fmt: skip


def _text(*classes: str) -> pn.pane.HTML:
    return pn.pane.HTML(
        "", stylesheets=[_TEXT_CSS], margin=0, sizing_mode="stretch_width",
        css_classes=list(classes),
    )  # fmt: skip


def _tally(state: State) -> str:
    n = state.counts
    parts = [
        (n["waiting"], "waiting"), (n["failed"], "failed"),
        (n["approved"] + n["labelling"], "being labelled"),
        (n["trained"] + n["labelled"], "learned"), (n["rejected"], "rejected"),
        (n["withdrawn"], "set aside"),
    ]  # fmt: skip
    said = " · ".join(f"{k} {word}" for k, word in parts if k)
    return f"<h2>Queue<span>{said}</span></h2>"


def _nothing(glance: Glance) -> str:
    if glance.state.phase == "ready":
        return "Frames the model is unsure of will appear here."
    return f"No frame was flagged yet. {wording.MODE_HELP[glance.state.mode]}"


def _worst(state: State, q: Query) -> tuple[str, bool]:
    """Return the bound furthest beyond its tolerance, as text, and whether it is beyond."""
    bounds = [(q.energy_bound, q.energy_tolerance, kcal(1.0), "kcal/mol")]
    if q.force_tolerance is not None:
        bounds.append((q.force_bound, q.force_tolerance, 1.0, "eV/Å"))
    if q.stress_bound is not None and state.stress_tolerance is not None:
        bounds.append((q.stress_bound, state.stress_tolerance, 1 / GPA, "GPa"))
    known = [bound for bound in bounds if np.isfinite(bound[0])]
    if not known:
        return "", False
    bound, tolerance, scale, unit = max(known, key=lambda b: b[0] / b[1])
    return f"± {wording.figures(scale * bound)} {unit}", bound > tolerance


def _short(q: Query) -> str:
    if q.failure and q.status in ("failed", "skipped", "withdrawn"):
        return q.failure
    names = {"initial": "first frames", "periodic": "in turn", "chosen": "chosen on the map"}
    why = " and ".join(names.get(r, r) for r in q.reasons)
    if q.decided_by is None:
        return why
    at = time.strftime("%H:%M:%S", time.localtime(q.decided_at))
    return f"{why} · {wording.decider(q.decided_by)}, {at}"


def _page(glance: Glance, ids: tuple[int, ...], query: Query | None, near: str) -> str:
    if query is None:
        return _empty(glance)
    if len(ids) > 1:
        return _group(glance, query, len(ids))
    return _single(glance, query, near)


def _group(glance: Glance, query: Query, n: int) -> str:
    first = "initial" in query.reasons
    by = glance.state.settings.labelling.batch_by
    title, why = ("The first frames", _FIRST) if first else ("A batch", _BATCH[by])
    price = "cost not known yet" if glance.label_s is None else wording.cost(glance, n)
    return f"<h2>{title}<span>{n} frames · {price}</span></h2><p>{why}</p>"


def _single(glance: Glance, query: Query, near: str) -> str:
    head = f"<h2>Frame at step {wording.count(query.step)}<span>{query.status}</span></h2>"
    if query.failure and query.status in ("failed", "skipped"):
        return head + f"<p>The label failed: {escape(query.failure)}</p>"
    if query.failure and query.status == "withdrawn":
        return head + f"<p>{escape(query.failure[:1].upper() + query.failure[1:])}.</p>"
    return head + f"<p>{wording.reasons(query)}</p>" + _figures(glance, query, near)


def _figures(glance: Glance, q: Query, near: str) -> str:
    rows: list[tuple[str, str]] = []
    if "initial" not in q.reasons:
        wanted = glance.state.settings.trust.confidence
        likely = f"{100 * q.probability:.0f} % likely <small>wanted {100 * wanted:g} %</small>"
        rows = [
            ("Energy error", _bound(kcal(q.energy_bound), kcal(q.energy_tolerance), "kcal/mol")),
            ("Largest force error", _bound(q.force_bound, q.force_tolerance, "eV/Å")),
            ("Energy within", likely),
        ]
        if q.stress_bound is not None:
            tolerance = glance.state.stress_tolerance
            limit = None if tolerance is None else tolerance / GPA
            rows.insert(2, ("Largest stress error", _bound(q.stress_bound / GPA, limit, "GPa")))
    if q.novelty is not None and "initial" not in q.reasons:
        rows.append(("Distance from labels", _novelty(q.novelty)))
    rows.append(("Cost of a label", wording.cost(glance)))
    if near:
        rows.append(("Nearest label", near))
    return _table(rows)


def _novelty(value: float) -> str:
    if value > OUTSIDE:
        return f"<b>{value:.1f}</b> <small>outside what they cover</small>"
    return f"{value:.1f} <small>covered up to {OUTSIDE:g}</small>"


def _table(rows: list[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><td>{k}</td><td>{v}</td></tr>" for k, v in rows) + "</table>"


def _bound(value: float, tolerance: float | None, unit: str) -> str:
    shown = f"± {wording.beside(value, tolerance)} {unit}"
    if tolerance is None:
        return shown
    over = ' class="over"' if value > tolerance else ""
    return f"<span{over}>{shown}</span> <small>tolerance {wording.figures(tolerance)}</small>"


def _empty(glance: Glance) -> str:
    state = glance.state
    counts = state.counts
    text = wording.MODE_HELP[state.mode]
    if busy := counts["approved"] + counts["labelling"]:
        text = f"{busy} at {wording.method(state.settings.labelling.reference)}, being labelled."
    elif state.phase != "ready" and (waiting := counts["waiting"]):
        text = f"{waiting} collected. {text}"
    return f"<h2>Nothing to decide</h2><p>{text}</p>{_last(glance)}"


def _last(glance: Glance) -> str:
    """Say how far off the model was on the newest label, before it learned it."""
    row = glance.last_label
    if row is None or row.predicted is None:
        return ""
    query = glance.state.query(row.query_id)
    rows = [("Last label", f"step {wording.count(query.step)}")]
    if "initial" not in query.reasons:
        off = wording.figures(kcal(abs(row.energy - row.predicted)))
        rows.append(("Energy was off by", f"{off} kcal/mol"))
        rows.append(("The bound was", _bound(kcal(query.energy_bound), None, "kcal/mol")))
    return _table([*rows, ("Cost of a label", wording.cost(glance))])
