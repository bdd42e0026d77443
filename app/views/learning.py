"""What the model learned: what moved, errors before and after, what it forgot, and the way back.

Every update leaves a snapshot with its receipt; any of them can be put in force again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import panel as pn
import panel_material_ui as pmui

from app import theme, wording
from app.seat import Seat
from app.state import CampaignState, Glance
from app.widgets.rows import Rows
from core.campaign import events as ev
from core.campaign.state import State
from core.campaign.store import Snapshot

_CSS = """
:host { display: grid !important; grid-template-columns: minmax(0, 1.15fr) minmax(0, 1fr);
  gap: 0 16px; height: 100%; padding: 12px 0 0 16px; box-sizing: border-box; overflow-y: auto; }
.receipt { padding-bottom: 10px; }
.snapshots { border-left: 1px solid var(--fw-line); height: 100%; min-height: 220px; }
@media (max-width: 620px) {
  :host { grid-template-columns: minmax(0, 1fr); height: auto; }
  .receipt { padding-right: 16px; }
  .snapshots { border-left: none; border-top: 1px solid var(--fw-line); max-height: 360px; }
}
"""
_SNAPSHOTS_CSS = """
.list { min-height: 0; }
.back { padding: 8px 12px 12px; border-top: 1px solid var(--fw-line); }
"""
_TEXT_CSS = """
:host { color: var(--fw-text); }
h2 { font-size: 13px; font-weight: 600; margin: 0 0 4px; line-height: 1.4; }
h2 span { font-weight: 400; color: var(--fw-muted); font-size: 12px; margin-left: 8px; }
p { margin: 2px 0 8px; line-height: 1.5; font-size: 12.5px; color: var(--fw-muted); }
table { border-collapse: collapse; font-size: 12.5px; line-height: 1.6; width: 100%;
  margin-bottom: 10px; font-variant-numeric: tabular-nums; }
th { color: var(--fw-muted); font-weight: 400; text-align: right; padding: 0 0 0 8px;
  white-space: nowrap; }
td { text-align: right; padding: 0 0 0 8px; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding: 0; color: var(--fw-muted); }
.meter { height: 6px; border-radius: 3px; background: var(--fw-raised); margin: 4px 0 2px;
  overflow: hidden; }
.meter i { display: block; height: 100%; background: var(--fw-accent); }
.meter i.much { background: var(--fw-warn); }
"""
_NOTHING = (
    "<h2>Nothing learned yet</h2><p>With the first labels the model takes its first step. Here "
    "stands then what moved, how the errors changed, and how to go back.</p>"
)
_PARTS = {
    "embedding": "Elements", "interaction": "Messages", "product": "Many-body terms",
    "readout": "Readouts",
}  # fmt: skip
_FULL_METER = 2.0
"""The meter is full where forces elsewhere have changed by twice the tolerance."""


class Learning(pn.viewable.Viewer):
    """The receipt of the weights in force or of a chosen snapshot, and the list of snapshots."""

    def __init__(self, campaign: CampaignState, seat: Seat) -> None:
        super().__init__()
        self._campaign, self._seat = campaign, seat
        self._snapshots: dict[int, Snapshot] = {}
        self._seen: Any = None
        self._receipt = _text(_NOTHING)
        self._rows = Rows(
            label="Snapshots", empty="", css_classes=["list"], margin=0,
            sizing_mode="stretch_both",
        )  # fmt: skip
        self._rows.param.watch(lambda _: self._show(), "chosen")
        self._consequence = _text("")
        self._back = pmui.Button(
            label="Go back", icon="history", variant="outlined", size="small", margin=0,
            color="primary", on_click=lambda _: self._go_back(), disabled=True,
        )  # fmt: skip
        self._layout = pn.Column(
            pn.Column(self._receipt, margin=0, css_classes=["receipt"]),
            pn.Column(
                self._rows,
                pn.Column(self._consequence, self._back, margin=0, css_classes=["back"]),
                margin=0, css_classes=["snapshots"], stylesheets=[_SNAPSHOTS_CSS],
            ),
            margin=0, css_classes=["learning"], stylesheets=[theme.CARD, _CSS],
        )  # fmt: skip

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self, glance: Glance) -> None:
        """Show what is new."""
        state = glance.state
        now = (state.snapshot, state.updating, self._seat.sharing.driving)
        if now == self._seen:
            return
        if self._seen is None or self._seen[0] != state.snapshot:
            self._snapshots = {s.id: s for s in self._campaign.reader.snapshots()}
            self._rows.rows = [
                _row(s, s.id == state.snapshot) for s in reversed(self._snapshots.values())
            ]
        self._seen = now
        self._show()

    def _chosen(self) -> int:
        return self._rows.chosen or self._campaign.glance().state.snapshot

    def _show(self) -> None:
        state = self._campaign.glance().state
        chosen = self._chosen()
        if chosen not in self._snapshots:
            return
        self._receipt.object = receipt(
            self._snapshots[chosen], list(self._snapshots.values()), state
        )
        here = chosen == state.snapshot
        self._consequence.object = f"<p>{consequence(state, chosen)}</p>"
        self._back.param.update(
            label="In force" if here else f"Go back to snapshot {chosen}",
            disabled=here or state.updating or not self._seat.sharing.driving,
        )

    def _go_back(self) -> None:
        if self._seat.post(ev.RollBack(snapshot=self._chosen())):
            self._rows.chosen = 0


def consequence(state: State, chosen: int) -> str:
    """Say what going back to a snapshot would do."""
    if chosen == state.snapshot:
        return "Choose an earlier snapshot to go back to it."
    if not 1 <= chosen <= len(state.learned):
        return ""
    then, now = set(state.learned[chosen - 1]), set(state.ids("trained"))
    lost, gained = len(now - then), len(then - now)
    parts = ["The simulation goes on with these weights and their calibration."]
    if lost:
        labels = "1 label" if lost == 1 else f"{lost} labels"
        parts.append(
            f"{labels} learned since then {'is' if lost == 1 else 'are'} set aside, not lost: "
            "the queue can have them learned again."
        )
    if gained:
        parts.append(f"{gained} set aside before {'comes' if gained == 1 else 'come'} back.")
    return " ".join(parts)


def receipt(snapshot: Snapshot, every: Sequence[Snapshot], state: State) -> str:
    """Return the receipt of one snapshot as HTML."""
    by_id = {s.id: s for s in every}
    shown, restored = snapshot, snapshot.info.get("restored")
    while shown.info.get("restored") in by_id:
        shown = by_id[shown.info["restored"]]
    labels = "1 label" if snapshot.n_labels == 1 else f"{wording.count(snapshot.n_labels)} labels"
    place = "in force" if snapshot.id == state.snapshot else _clock(snapshot.at)
    head = f"<h2>Snapshot {snapshot.id}<span>{labels} · {place}</span></h2>"
    if restored is not None:
        head += f"<p>The weights of snapshot {shown.id} again.</p>"
    given = shown.info.get("receipt")
    if given is None:
        return head + "<p>It was made by an earlier version, which wrote no receipt.</p>"
    return head + _errors(given) + _moved(given) + _forgotten(given, state)


def _errors(given: dict[str, Any]) -> str:
    rows = []
    for name, title in (("new", "New labels"), ("old", "Labels known before")):
        if name not in given["errors"]:
            continue
        found = given["errors"][name]
        force = " → ".join(f"{1e3 * x:.0f}" for x in found["force"])
        energy = " → ".join(wording.figures(wording.kcal(x)) for x in found["energy"])
        energy = energy if found["n"] > 1 else "–"
        rows.append(
            f"<tr><td>{title}</td><td>{found['n']}</td><td>{force}</td><td>{energy}</td></tr>"
        )
    return (
        "<table><tr><th>Error before → after</th><th>frames</th><th>meV/Å</th>"
        f"<th>kcal/mol</th></tr>{''.join(rows)}</table>"
    )


def _moved(given: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{_PARTS.get(part, part)}</td><td>{found['moved']} of {found['blocks']}</td>"
        f"<td>{100 * found['step']:.2g} %</td><td>{100 * found['since_foundation']:.2g} %</td></tr>"
        for part, found in given["moved"].items()
    )
    return (
        "<table><tr><th>Weights that moved</th><th>blocks</th><th>this time</th>"
        f"<th>in all</th></tr>{rows}</table>"
    )


def _forgotten(given: dict[str, Any], state: State) -> str:
    if given["forgotten"] is None:
        return "<p>No other molecules to measure forgetting with.</p>"
    scale = state.force_tolerance or 0.15
    share = min(given["forgotten"] / (_FULL_METER * scale), 1.0)
    much = ' class="much"' if given["forgotten"] > scale else ""
    return (
        f"<h2>Other molecules<span>forces changed by {1e3 * given['forgotten']:.0f} meV/Å</span>"
        f"</h2><div class='meter'><i{much} style='width:{100 * share:.0f}%'></i></div>"
        f"<p>On {given['probes']} molecules of the pretraining, since the foundation. The model is "
        "learning one system; what it knew of others fades.</p>"
    )


def _row(s: Snapshot, in_force: bool) -> dict[str, Any]:
    labels = "1 label" if s.n_labels == 1 else f"{wording.count(s.n_labels)} labels"
    restored = s.info.get("restored")
    given = s.info.get("receipt", {}).get("errors", {}).get("new")
    figure = "" if given is None else f"{1e3 * given['force'][1]:.0f} meV/Å"
    origin = f"snapshot {restored} again" if restored is not None else labels
    return {
        "id": s.id, "tone": "done" if in_force else "idle", "title": f"Snapshot {s.id}",
        "status": "in force" if in_force else "", "figure": figure, "over": False,
        "detail": f"{origin} · {_clock(s.at)}", "marked": False,
    }  # fmt: skip


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _text(html: str) -> pn.pane.HTML:
    return pn.pane.HTML(html, stylesheets=[_TEXT_CSS], margin=0, sizing_mode="stretch_width")
