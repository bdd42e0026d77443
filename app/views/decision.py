"""The flagged frame that waits for a person: why, how sure, what a label costs, and the buttons."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import panel as pn
import panel_material_ui as pmui

from app import theme, wording
from app.state import CampaignState, Glance
from core.campaign import events as ev
from core.campaign.state import Query, State
from core.units import KCAL_PER_MOL

_CSS = """
:host { display: grid !important; grid-template-rows: 1fr auto; padding: 12px 18px 14px; gap: 10px; }
"""

_FIRST = "Their labels set the energy offset and the calibration: trust begins here."

_TEXT_CSS = """
h2 { margin: 0; font-size: 15px; font-weight: 600; line-height: 1.4; display: flex; gap: 10px;
  align-items: baseline; }
h2 span { color: var(--fw-muted); font-size: 12px; font-weight: 400; }
p { margin: 2px 0 0; color: var(--fw-muted); font-size: 13px; line-height: 1.45; }
table { border-collapse: collapse; margin-top: 6px; font-size: 13px; line-height: 1.6; width: 100%;
  font-variant-numeric: tabular-nums; }
td { padding: 0 12px 0 0; white-space: nowrap; } td:last-child { width: 100%; padding: 0; }
td:first-child { color: var(--fw-muted); } .over { color: var(--fw-bad); font-weight: 600; }
small { color: var(--fw-muted); font-size: 12px; }
"""


class Decision(pn.viewable.Viewer):
    """One decision at a time: a frame, the first frames together, or a proposed batch."""

    def __init__(self, campaign: CampaignState, posted: Callable[[int], None]) -> None:
        super().__init__()
        self._campaign, self._posted = campaign, posted
        self._text = pn.pane.HTML("", stylesheets=[_TEXT_CSS], margin=0, sizing_mode="stretch_width")
        make = {"margin": 0, "size": "small", "disable_elevation": True}
        self._approve = pmui.Button(label="Approve", icon="check", on_click=self._yes, **make)
        self._reject = pmui.Button(label="Reject", icon="close", variant="outlined", on_click=self._no, **make)
        self._skip = pmui.Button(label="Skip", icon="redo", variant="outlined", on_click=self._later, **make)
        self._undo = pmui.Button(label="Undo", icon="undo", variant="text", on_click=self._back, **make)
        self._buttons = pn.Row(
            self._approve, self._reject, self._skip, self._undo, margin=0,
            stylesheets=[":host { gap: 8px; flex-wrap: wrap; }"],
        )  # fmt: skip
        self._layout = pn.Column(
            self._text, self._buttons, margin=0, css_classes=["decision"],
            stylesheets=[theme.CARD, _CSS],
        )  # fmt: skip

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self, glance: Glance) -> None:
        """Show what is to be decided, if anything."""
        state = glance.state
        ids = asked(state)
        self._text.object = _page(glance, ids)
        failed = bool(ids) and state.query(ids[0]).status == "failed"
        many = f" all {len(ids)}" if len(ids) > 1 else ""
        self._approve.param.update(
            label=("Retry" if failed else "Approve") + many, disabled=not ids,
        )  # fmt: skip
        self._reject.param.update(label="Reject" + many, disabled=not ids or failed)
        self._skip.param.update(label="Skip" + many, disabled=not ids)
        self._undo.disabled = not undoable(state)

    def _yes(self, _: object) -> None:
        state = self._campaign.glance().state
        if ids := asked(state):
            failed = state.query(ids[0]).status == "failed"
            self._posted(self._campaign.post(ev.Retry(ids=ids) if failed else ev.Approve(ids=ids)))

    def _no(self, _: object) -> None:
        if ids := asked(self._campaign.glance().state):
            self._posted(self._campaign.post(ev.Reject(ids=ids)))

    def _later(self, _: object) -> None:
        if ids := asked(self._campaign.glance().state):
            self._posted(self._campaign.post(ev.Skip(ids=ids)))

    def _back(self, _: object) -> None:
        self._posted(self._campaign.post(ev.Undo()))


def asked(state: State) -> tuple[int, ...]:
    """Return the ids of the frames that one press decides: a batch, the first frames, or one."""
    if failed := state.ids("failed"):
        return failed[:1]
    if state.mode == "threshold":
        return tuple(i for i in state.ids("waiting") if state.query(i).taken_back)[:1]
    if state.proposal:
        return state.proposal
    waiting = state.ids("waiting")
    if state.mode == "batch" and state.trusted:
        return ()
    if state.collecting:
        return ()
    first = tuple(i for i in waiting if "initial" in state.query(i).reasons)
    return first or waiting[:1]


def undoable(state: State) -> bool:
    """True while the last decision can still be taken back: nothing was learned from it."""
    if not state.history or state.updating:
        return False
    return all(state.query(i).status != "trained" for i, _ in state.history[-1].before)


def _page(glance: Glance, ids: tuple[int, ...]) -> str:
    state = glance.state
    if not ids:
        return _empty(glance)
    query = state.query(ids[0])
    waiting = len(state.ids("waiting"))
    if len(ids) > 1:
        title = "The first frames" if "initial" in query.reasons else "A diverse batch"
        why = _FIRST if "initial" in query.reasons else "Chosen to differ from one another."
        return (
            f"<h2>{title}<span>{len(ids)} frames</span></h2><p>{why}</p>"
            f"<table><tr><td>Cost together</td><td>{wording.cost(glance, len(ids))}</td></tr></table>"
        )
    more = f"<span>{waiting - 1} more waiting</span>" if waiting > 1 else ""
    head = f"<h2>Frame at step {wording.count(query.step)}{more}</h2>"
    if query.status == "failed":
        return head + f"<p>The label failed: {escape(query.failure or 'no reason was given')}</p>"
    return head + f"<p>{wording.reasons(query)}</p>" + _figures(glance, query)


def _figures(glance: Glance, q: Query) -> str:
    wanted = glance.state.settings.trust.confidence
    rows = [
        ("Energy error", _bound(q.energy_bound / KCAL_PER_MOL, q.energy_tolerance / KCAL_PER_MOL, "kcal/mol")),
        ("Largest force error", _bound(q.force_bound, q.force_tolerance, "eV/Å")),
        ("Within tolerance", f"{100 * q.probability:.0f} % likely <small>wanted {100 * wanted:g} %</small>"),
        ("Cost of a label", wording.cost(glance)),
    ]  # fmt: skip
    return "<table>" + "".join(f"<tr><td>{k}</td><td>{v}</td></tr>" for k, v in rows) + "</table>"


def _bound(value: float, tolerance: float | None, unit: str) -> str:
    shown = f"± {wording.figures(value)} {unit}"
    if tolerance is None:
        return shown
    over = ' class="over"' if value > tolerance else ""
    return f"<span{over}>{shown}</span> <small>tolerance {wording.figures(tolerance)}</small>"


def _empty(glance: Glance) -> str:
    state = glance.state
    counts = state.counts
    learned = counts["trained"]
    if state.phase == "ready":
        text = wording.MODE_HELP[state.mode]
    elif busy := counts["approved"] + counts["labelling"]:
        text = f"{busy} being labelled by {wording.method(state.settings.labelling.reference)}."
    elif waiting := counts["waiting"]:
        text = f"{waiting} collected. {wording.MODE_HELP[state.mode]}"
    else:
        text = wording.MODE_HELP[state.mode]
    tally = f"<span>{learned} learned · {counts['rejected']} rejected</span>" if state.queue else ""
    return f"<h2>Nothing to decide{tally}</h2><p>{text}</p>{_last(glance)}"


def _last(glance: Glance) -> str:
    """Say how far off the model was on the newest label, before it learned it."""
    row = glance.last_label
    if row is None or row.predicted is None:
        return ""
    query = glance.state.query(row.query_id)
    first = "initial" in query.reasons
    off = abs(row.energy - row.predicted) / KCAL_PER_MOL
    rows = [
        ("Last label", f"step {wording.count(query.step)}"),
        ("Energy was off by", "set the energy offset" if first else f"{wording.figures(off)} kcal/mol"),
        ("The bound was", "–" if first else _bound(query.energy_bound / KCAL_PER_MOL, None, "kcal/mol")),
        ("Cost of a label", wording.cost(glance)),
    ]  # fmt: skip
    return "<table>" + "".join(f"<tr><td>{k}</td><td>{v}</td></tr>" for k, v in rows) + "</table>"
