"""What the campaign is doing, the buttons that drive it, and its figures."""

from __future__ import annotations

from html import escape

import panel as pn
import panel_material_ui as pmui

from app import theme, wording
from app.seat import Seat
from app.state import CampaignState, Glance
from core.campaign import events as ev
from core.campaign.state import LABELLED

STEP = 10
"""Steps that one press of the step button runs."""

_CSS = """
:host { display: grid !important; grid-template-columns: minmax(300px, 1fr) auto auto;
  align-items: center; gap: 8px 32px; padding: 12px 20px 14px; position: relative; }
.controls-state, .controls-buttons, .figures { align-self: center !important; }
@media (max-width: 1180px) { :host { grid-template-columns: 1fr auto; }
  .figures { grid-column: 1 / -1; } }
@media (max-width: 620px) {
  :host { grid-template-columns: 1fr; gap: 12px; padding: 12px 16px 14px; } }
"""

_STATE_CSS = """
.state { display: flex; align-items: center; gap: 10px; font-size: 19px; font-weight: 600;
  letter-spacing: -0.01em; line-height: 1.3; }
.dot { width: 10px; height: 10px; border-radius: 50%; flex: none; background: var(--fw-muted); }
.busy { background: var(--fw-accent); } .ask { background: var(--fw-warn); }
.bad { background: var(--fw-bad); } .done { background: var(--fw-good); }
.badge { font-size: 11px; font-weight: 600; letter-spacing: 0.06em; padding: 2px 7px;
  border-radius: 4px; color: var(--fw-warn); border: 1px solid var(--fw-warn); }
.detail { color: var(--fw-muted); font-size: 13px; line-height: 1.45; min-height: 1.45em;
  padding-left: 20px; }
"""

_FIGURES_CSS = """
dl { display: flex; gap: 24px; margin: 0; flex-wrap: wrap; }
dl > div { min-width: 64px; }
dt { color: var(--fw-muted); font-size: 12px; line-height: 1.4; }
dd { margin: 0; font-size: 15px; font-weight: 550; line-height: 1.45; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
dd small { color: var(--fw-muted); font-weight: 400; font-size: 13px; }
.step { min-width: 116px; } .speed { min-width: 88px; } .age { min-width: 74px; }
.labels { min-width: 84px; } .within { min-width: 104px; } .left { min-width: 76px; }
@media (max-width: 620px) {
  dl { display: grid; grid-template-columns: 1fr 1fr 1fr; gap: 10px 12px; }
  dl > div { min-width: 0; } }
"""

_BAR_CSS = """
:host { position: absolute !important; left: 0; right: 0; bottom: 0; height: 3px; width: auto;
  background: var(--fw-line); }
.bar { height: 3px; background: var(--fw-accent); transition: width 0.3s linear; }
"""


class Controls(pn.viewable.Viewer):
    """State word, start, pause, step and stop, and the figures of the run."""

    def __init__(self, campaign: CampaignState, seat: Seat) -> None:
        super().__init__()
        self._campaign, self._seat = campaign, seat
        self._state = pn.pane.HTML(
            "", stylesheets=[_STATE_CSS], margin=0, css_classes=["controls-state"]
        )
        self._figures = pn.pane.HTML(
            "", stylesheets=[_FIGURES_CSS], margin=0, css_classes=["figures"]
        )
        self._bar = pn.pane.HTML("", stylesheets=[_BAR_CSS], margin=0)
        self._main = pmui.Button(
            label="Start", icon="play_arrow", color="primary", width=112, margin=0,
            disable_elevation=True, on_click=lambda _: self.toggle(),
        )  # fmt: skip
        self._step = pmui.Button(
            label=f"{STEP} steps", icon="skip_next", variant="outlined", color="primary", margin=0,
            width=104, on_click=lambda _: self.step_on(),
        )  # fmt: skip
        self._stop = pmui.Button(
            label="Stop", icon="stop", variant="outlined", color="primary", margin=0, width=88,
            on_click=lambda _: self._end(),
        )  # fmt: skip
        buttons = pn.Row(
            self._main, self._step, self._stop, margin=0, css_classes=["controls-buttons"],
            stylesheets=[":host { gap: 8px; flex-wrap: wrap; }"],
        )  # fmt: skip
        self._layout = pn.Column(
            self._state, buttons, self._figures, self._bar, margin=0,
            css_classes=["controls"], stylesheets=[theme.CARD, _CSS],
        )  # fmt: skip

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self, glance: Glance) -> None:
        """Show a glance."""
        said = wording.status(glance)
        badge = "" if glance.state.trusted else '<span class="badge">UNTRUSTED</span>'
        self._state.object = (
            f'<div class="state" role="status"><span class="dot {said.tone}"></span>'
            f"{escape(said.word)}{badge}</div><div class='detail'>{escape(said.detail)}</div>"
        )
        self._figures.object = _figures(glance)
        done = 100 * glance.step / max(glance.state.steps_total, 1)
        self._bar.object = f'<div class="bar" style="width:{min(done, 100):.1f}%"></div>'
        self._enable(glance)

    def _enable(self, glance: Glance) -> None:
        phase = glance.state.phase
        still = phase in ("ready", "paused", "finished", "failed") or glance.orphaned
        over = phase == "finished" and not glance.state.stopped
        word = "Try again" if phase == "failed" else "Start" if still else "Pause"
        watching = not self._seat.sharing.driving
        icon = "play_arrow" if still else "pause"
        self._main.param.update(label=word, icon=icon, disabled=over or watching)
        self._step.disabled = watching or phase not in ("ready", "paused", "running")
        self._stop.disabled = watching or phase in ("ready", "finished", "failed")

    def toggle(self) -> None:
        """Start, go on, or pause: what the first button says."""
        glance = self._campaign.glance()
        phase = glance.state.phase
        if glance.orphaned:
            self._seat.wake()
        elif phase in ("ready", "paused", "finished", "failed"):
            self._seat.go()
        else:
            self._seat.post(ev.Pause())

    def step_on(self) -> None:
        """Run a few steps."""
        self._seat.step_by(STEP)

    def _end(self) -> None:
        self._seat.post(ev.Stop())


def _figures(glance: Glance) -> str:
    state, live = glance.state, glance.live
    speed = f"{live.steps_per_s:.0f}" if glance.moving and live is not None else "0"
    bought = sum(q.status in LABELLED for q in state.queue)
    share = f" <small>{100 * bought / state.steps_run:.1f} %</small>" if state.steps_run else ""
    done, total = wording.count(glance.step), wording.count(state.steps_total)
    rows = {
        "step": ("Step", f"{done} <small>/ {total}</small>"),
        "speed": ("Speed", f"{speed} <small>steps/s</small>"),
        "age": ("Last frame", wording.age(glance.age if state.started else None)),
        "labels": ("Labels bought", f"{bought}{share}"),
        "within": ("Expected within", wording.expected_within(state)),
        "left": ("Time left", wording.duration(glance.seconds_left)),
    }  # fmt: skip
    return (
        "<dl>"
        + "".join(f'<div class="{k}"><dt>{t}</dt><dd>{d}</dd></div>' for k, (t, d) in rows.items())
        + "</dl>"
    )
