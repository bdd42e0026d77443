"""The page: puts the panels together and keeps them fresh. `serve` offers it on this machine only.

Run by `flywise serve`, which calls `serve`, and by `panel serve app [--args DIRECTORY]`, which
runs this file once per page.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from html import escape
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui
from panel.util import edit_readonly
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError

from app import theme, wording
from app.state import CampaignState, campaign
from app.state import demo as open_demo
from app.views.controls import Controls
from app.views.decision import Decision
from app.views.scene import Scene
from app.views.traces import Traces
from app.views.tuning import Tuning
from core.errors import InputError

TITLE = "Flywise"
HOST = "127.0.0.1"
FAST_MS = 60
"""Time between two looks at the atoms."""
SLOW = 3
"""Every so many looks the rest of the screen follows too (about 5 a second)."""

_SCREEN_CSS = """
:host { display: grid !important; box-sizing: border-box; gap: 12px; padding: 12px;
  background: var(--fw-page); width: 100%; height: 100%; min-height: 0; overflow: auto;
  grid-template-columns: minmax(0, 1.32fr) minmax(430px, 1fr);
  grid-template-rows: auto minmax(260px, 1fr) 226px auto;
  grid-template-areas: "controls controls" "scene traces" "scene decision" "scene tuning"; }
.scroll-button { display: none !important; }
.controls { grid-area: controls; } .scene { grid-area: scene; } .traces { grid-area: traces; }
.decision { grid-area: decision; } .tuning { grid-area: tuning; }
.controls, .scene, .traces, .decision, .tuning { width: auto; height: auto; margin: 0; }
@media (max-width: 980px) {
  :host { grid-template-columns: minmax(0, 1fr); align-content: start; gap: 10px; padding: 10px;
    grid-template-rows: max-content 88vw max-content 430px max-content;
    grid-template-areas: "controls" "scene" "decision" "traces" "tuning"; }
  .scene { max-height: 620px; }
}
"""

_TITLE_CSS = """
:host { margin: 0; flex: 1; min-width: 0; }
.title { display: flex; align-items: baseline; gap: 14px; white-space: nowrap; overflow: hidden;
  color: var(--fw-text); }
.title b { font-size: 17px; font-weight: 650; letter-spacing: -0.01em; }
.title b i { color: var(--fw-accent); font-style: normal; }
.title span { font-size: 13.5px; overflow: hidden; text-overflow: ellipsis; }
.title .muted { color: var(--fw-muted); }
sub { font-size: 0.75em; line-height: 0; }
@media (max-width: 620px) { .title .muted { display: none; } }
"""

_PAGE_SX: dict[str, Any] = {
    ".MuiAppBar-root": {
        "backgroundColor": "background.paper",
        "color": "text.primary",
        "backgroundImage": "none",
        "boxShadow": "none",
        "borderBottom": "1px solid",
        "borderColor": "divider",
    },
    ".MuiToolbar-root": {"minHeight": "48px !important", "padding": "0 16px !important"},
    "main": {"backgroundColor": "background.default"},
}

_FAVICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E"
    "%3Cpath d='M9 21 20 11' stroke='%230f6e7c' stroke-width='4'/%3E"
    "%3Ccircle cx='9' cy='21' r='7' fill='%230f6e7c'/%3E"
    "%3Ccircle cx='22' cy='10' r='5' fill='%23efa257'/%3E%3C/svg%3E"
)


class Screen:
    """One open page on a campaign."""

    def __init__(self, shown: CampaignState) -> None:
        self._campaign = shown
        self._commands: list[int] = []
        self._ticks = 0
        post = self._commands.append
        self._scene, self._traces = Scene(shown), Traces(shown)
        controls, decision = Controls(shown, post), Decision(shown, post)
        tuning = Tuning(shown, post, self._warn)
        self._slow = (controls, self._traces, decision, tuning)
        self._grid = pn.Column(
            controls, self._scene, self._traces, decision, tuning,
            margin=0, sizing_mode="stretch_both",
        )  # fmt: skip
        self._title = pn.pane.HTML("", margin=0, sizing_mode="stretch_width")
        self.page = pmui.Page(
            title="",
            meta_title=f"{shown.title} · {TITLE}",
            header=[self._title],
            main=[self._grid],
            theme_config={"light": theme.material(theme.LIGHT), "dark": theme.material(theme.DARK)},
            busy_indicator=None,
            sx=_PAGE_SX,
            favicon=_FAVICON,
        )
        with edit_readonly(self.page):
            self.page.busy = False  # else every tick of any page redraws it twice, 18 ms each
        self.page.param.watch(lambda event: self._paint(), "dark_theme")
        self._paint()
        self.tick()

    def tick(self) -> None:
        """Bring the screen up to date; the atoms each time, the rest less often."""
        glance = self._campaign.glance()
        self._scene.update(glance)
        if self._ticks % SLOW == 0:
            for view in self._slow:
                view.update(glance)
            self._title.object = _heading(self._campaign, glance.state.settings)
            self._tell_refusals()
        self._ticks += 1

    def _tell_refusals(self) -> None:
        for command in list(self._commands):
            outcome = self._campaign.outcome(command)
            if outcome is not None:
                self._commands.remove(command)
                if outcome != "done":
                    self._warn(outcome)

    def _warn(self, message: str) -> None:
        if pn.state.notifications is not None:
            pn.state.notifications.warning(message, duration=8000)

    def _paint(self) -> None:
        palette = theme.palette(bool(self.page.dark_theme))
        self._grid.stylesheets = [_SCREEN_CSS, theme.variables(palette)]
        self._title.stylesheets = [_TITLE_CSS, theme.variables(palette)]
        self._scene.paint(palette)
        self._traces.paint(palette)


def _heading(shown: CampaignState, settings: Any) -> str:
    molecule = f"{escape(shown.title)} · {wording.formula(shown.structure.formula)}"
    return (
        f'<div class="title"><b>Fly<i>wise</i></b><span>{molecule}</span>'
        f'<span class="muted">{escape(wording.conditions(settings))}</span></div>'
    )


def page(shown: CampaignState) -> pmui.Page:
    """Return a page on a campaign; it looks after itself until it is closed."""
    shown.warm()
    screen = Screen(shown)
    pn.state.add_periodic_callback(screen.tick, period=FAST_MS)
    return screen.page


def serve(campaign_dir: Path | None = None, demo: str | None = None, port: int = 5006) -> None:
    """Offer the page on this machine until interrupted; a demo if no campaign is named.

    Raises:
        CampaignError: the directory holds no campaign.
        InputError: there is no such demo, or the port is taken.
    """
    shown = campaign(campaign_dir) if campaign_dir else open_demo(demo or "ethanol")
    port = free_port(port)
    shown.warm()
    _extension()
    print(f"{TITLE} shows {shown.directory} on http://localhost:{port}", flush=True)
    print("Ctrl-C ends the page; a campaign that runs goes on.", flush=True)
    pn.serve(
        {"/": lambda: page(shown)},
        address=HOST,
        port=port,
        title=TITLE,
        verbose=False,
        show=_has_browser(),
        websocket_origin=[f"localhost:{port}", f"{HOST}:{port}"],
    )


def free_port(port: int) -> int:
    """Return `port` if nobody listens there; any free one for 0.

    Raises:
        InputError: the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"Port {port} is in use or not allowed ({error.strerror}); name another one with "
                "--port, or 0 for any."
            ) from error
        return int(probe.getsockname()[1])


class _PageLeft(logging.Filter):
    """Keeps quiet about a page that was closed while it was being written to."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (WebSocketClosedError, StreamClosedError))


def _extension() -> None:
    logging.getLogger("asyncio").addFilter(_PageLeft())
    logging.getLogger("bokeh.server.views.ws").setLevel(logging.ERROR)
    pn.extension(reconnect=True, notifications=True)


def _has_browser() -> bool:
    if not sys.stdout.isatty() or os.environ.get("CI"):
        return False
    desktop = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in desktop)


if __name__.startswith("bokeh_app_"):  # run by `panel serve app`
    _extension()
    page(campaign(sys.argv[1]) if len(sys.argv) > 1 else open_demo()).servable()
