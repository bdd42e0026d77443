"""The flagged frame that waits for a person: why, how sure, what a label costs, and the buttons."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import panel as pn
import panel_material_ui as pmui

from app import theme, wording
from app.state import CampaignState, Glance
from app.wording import kcal
from core.campaign import events as ev
from core.campaign.state import Query, State

_CSS = """
:host { display: grid !important; grid-template-rows: 1fr auto; gap: 10px;
  padding: 12px 18px 14px; }
"""

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

_FIRST = "Their labels set the energy offset and the calibration: trust begins here."
_BATCH = "Chosen to differ from one another."


class Decision(pn.viewable.Viewer):
    """One decision at a time: a frame, the first frames together, or a proposed batch."""

    def __init__(self, campaign: CampaignState, posted: Callable[[int], None]) -> None:
        super().__init__()
        self._campaign, self._posted = campaign, posted
        self._text = pn.pane.HTML(
            "", stylesheets=[_TEXT_CSS], margin=0, sizing_mode="stretch_width"
        )
        self._approve = _button("Approve", "check", "contained", self._yes)
        self._reject = _button("Reject", "close", "outlined", self._no)
        self._skip = _button("Skip", "redo", "outlined", self._later)
        self._undo = _button("Undo", "undo", "text", self._back)
        buttons = pn.Row(
            self._approve, self._reject, self._skip, self._undo,
            margin=0, stylesheets=[":host { gap: 8px; flex-wrap: wrap; }"],
        )  # fmt: skip
        self._layout = pn.Column(
            self._text, buttons, margin=0, css_classes=["decision"], stylesheets=[theme.CARD, _CSS]
        )

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self, glance: Glance) -> None:
        """Show what is to be decided, if anything."""
        state = glance.state
        ids = asked(state)
        self._text.object = _page(glance, ids)
        failed = _has_failed(state, ids)
        many = f" all {len(ids)}" if len(ids) > 1 else ""
        verb = "Retry" if failed else "Approve"
        self._approve.param.update(label=verb + many, disabled=not ids)
        self._reject.param.update(label="Reject" + many, disabled=not ids or failed)
        self._skip.param.update(label="Skip" + many, disabled=not ids)
        self._undo.disabled = not undoable(state)

    def _yes(self, _: object) -> None:
        state = self._campaign.glance().state
        if ids := asked(state):
            retry = _has_failed(state, ids)
            self._posted(self._campaign.post(ev.Retry(ids=ids) if retry else ev.Approve(ids=ids)))

    def _no(self, _: object) -> None:
        if ids := asked(self._campaign.glance().state):
            self._posted(self._campaign.post(ev.Reject(ids=ids)))

    def _later(self, _: object) -> None:
        if ids := asked(self._campaign.glance().state):
            self._posted(self._campaign.post(ev.Skip(ids=ids)))

    def _back(self, _: object) -> None:
        self._posted(self._campaign.post(ev.Undo()))


def _button(label: str, icon: str, variant: str, act: Callable[[object], None]) -> pmui.Button:
    return pmui.Button(
        label=label, icon=icon, variant=variant, on_click=act, margin=0, size="small",
        disable_elevation=True,
    )  # fmt: skip


def asked(state: State) -> tuple[int, ...]:
    """Return the ids of the frames that one press decides: a batch, the first frames, or one."""
    if failed := state.ids("failed"):
        return failed[:1]
    if state.proposal:
        return state.proposal
    waiting = state.ids("waiting")
    if state.mode == "threshold":
        return tuple(i for i in waiting if state.query(i).taken_back)[:1]
    if state.collecting or (state.mode == "batch" and state.trusted):
        return ()
    first = tuple(i for i in waiting if "initial" in state.query(i).reasons)
    return first or waiting[:1]


def undoable(state: State) -> bool:
    """True while the last decision can still be taken back: nothing was learned from it."""
    if not state.history or state.updating:
        return False
    return all(state.query(i).status != "trained" for i, _ in state.history[-1].before)


def _has_failed(state: State, ids: tuple[int, ...]) -> bool:
    return bool(ids) and state.query(ids[0]).status == "failed"


def _page(glance: Glance, ids: tuple[int, ...]) -> str:
    if not ids:
        return _empty(glance)
    query = glance.state.query(ids[0])
    return _group(glance, query, len(ids)) if len(ids) > 1 else _single(glance, query)


def _group(glance: Glance, query: Query, n: int) -> str:
    first = "initial" in query.reasons
    title, why = ("The first frames", _FIRST) if first else ("A diverse batch", _BATCH)
    price = [("Cost together", wording.cost(glance, n))]
    return f"<h2>{title}<span>{n} frames</span></h2><p>{why}</p>" + _table(price)


def _single(glance: Glance, query: Query) -> str:
    others = len(glance.state.ids("waiting")) - 1
    more = f"<span>{others} more waiting</span>" if others > 0 else ""
    head = f"<h2>Frame at step {wording.count(query.step)}{more}</h2>"
    if query.status == "failed":
        return head + f"<p>The label failed: {escape(query.failure or 'no reason was given')}</p>"
    return head + f"<p>{wording.reasons(query)}</p>" + _figures(glance, query)


def _figures(glance: Glance, q: Query) -> str:
    wanted = glance.state.settings.trust.confidence
    likely = f"{100 * q.probability:.0f} % likely <small>wanted {100 * wanted:g} %</small>"
    rows = [
        ("Energy error", _bound(kcal(q.energy_bound), kcal(q.energy_tolerance), "kcal/mol")),
        ("Largest force error", _bound(q.force_bound, q.force_tolerance, "eV/Å")),
        ("Within tolerance", likely),
        ("Cost of a label", wording.cost(glance)),
    ]
    return _table(rows)


def _table(rows: list[tuple[str, str]]) -> str:
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
    text = wording.MODE_HELP[state.mode]
    if busy := counts["approved"] + counts["labelling"]:
        text = f"{busy} at {wording.method(state.settings.labelling.reference)}, being labelled."
    elif state.phase != "ready" and (waiting := counts["waiting"]):
        text = f"{waiting} collected. {text}"
    tally = f"{counts['trained']} learned · {counts['rejected']} rejected" if state.queue else ""
    return f"<h2>Nothing to decide<span>{tally}</span></h2><p>{text}</p>{_last(glance)}"


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
