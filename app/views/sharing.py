"""Who drives, when more than one page is open: a line in the header, and the hand-over."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape

import panel as pn
import panel_material_ui as pmui

from app import theme
from app.lease import Sharing
from app.seat import Seat

_CSS = """
:host { display: flex !important; align-items: center; gap: 8px; flex-wrap: nowrap; }
@media (max-width: 620px) {  /* no room in the header: a bar at the foot of the screen */
  :host { position: fixed !important; inset: auto 0 0 !important; width: auto !important;
    z-index: 10; padding: 8px 12px; background: var(--fw-surface);
    border-top: 1px solid var(--fw-line); }
  :host(.calm) { display: none !important; }
  .who { flex: 1; } }
"""
_TEXT_CSS = """
:host { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; font-size: 13px;
  color: var(--fw-muted); }
b { color: var(--fw-text); font-weight: 600; }
"""


class SharingLine(pn.viewable.Viewer):
    """Says who drives and lets a page ask, hand over or keep; empty while a page is alone."""

    def __init__(self, seat: Seat) -> None:
        super().__init__()
        self._seat = seat
        self._text = pn.pane.HTML("", margin=0, css_classes=["who"], stylesheets=[_TEXT_CSS])
        self._ask = _button("Ask to drive", seat.ask)
        self._give = _button("Hand over", lambda: seat.answer(yes=True))
        self._keep = _button("Keep", lambda: seat.answer(yes=False))
        self._layout = pn.Row(
            self._text, self._ask, self._give, self._keep, margin=0,
        )  # fmt: skip

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self) -> None:
        """Show how the lease stands."""
        now = self._seat.sharing
        self._text.object = say(now)
        wanted = now.driving and now.asking is not None
        self._ask.visible = bool(now.name) and not now.driving
        self._ask.disabled = now.asking is not None
        self._give.visible = self._keep.visible = wanted
        calm = now.driving and not wanted
        self._layout.css_classes = ["calm"] if calm or not self._text.object else []

    def paint(self, palette: theme.Palette) -> None:
        """Take the colours of a mode."""
        self._layout.stylesheets = [_CSS, theme.variables(palette)]
        for button in (self._ask, self._give, self._keep):
            button.sx = theme.in_header(palette)


def say(now: Sharing) -> str:
    """Return the line as HTML; empty while nobody else is there."""
    if not now.name or (now.driving and now.pages < 2):
        return ""
    if now.driving and now.asking is not None:
        return f"<b>{escape(now.asking)} asks to drive</b> ({math.ceil(now.answer_s)} s)"
    if now.driving:
        return f"<b>You drive</b> · {now.pages} pages are open"
    if now.asking == now.name:
        return f"<b>You watch</b> · {escape(now.driver or '')} was asked"
    return f"<b>You watch</b> · {escape(now.driver or 'nobody')} drives"


def _button(label: str, act: Callable[[], None]) -> pmui.Button:
    return pmui.Button(
        label=label, on_click=lambda _: act(), visible=False, size="small", variant="outlined",
        color="primary", margin=0,
    )  # fmt: skip
