"""The page: puts the panels together and keeps them fresh. `serve` offers it on this machine only.

Run by `flywise serve`, which calls `serve`, and by `panel serve app [--args DIRECTORY]`, which
runs this file once per page. The address says what a page shows: `?page=home`, `?page=new`,
`?campaign=NAME` with `&frame=ID`, and `&theme=dark`.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import panel as pn
import panel_material_ui as pmui
import param
from panel.io import hold
from panel.io.state import set_curdoc
from panel.reactive import Syncable
from panel.util import edit_readonly
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError

from app import theme, wording
from app.library import library
from app.notices import notices, tab_name
from app.pulse import Beat, Pulse
from app.seat import Seat
from app.selection import Selection
from app.state import CampaignState, Glance, campaign
from app.state import demo as open_demo
from app.views.calibration import Calibration
from app.views.controls import Controls
from app.views.exchange import Exchange
from app.views.finetuning import Finetuning
from app.views.home import Home
from app.views.learning import Learning
from app.views.log import Log
from app.views.map import Map
from app.views.queue import Queue
from app.views.scene import Scene
from app.views.settings import Settings
from app.views.setup import Setup
from app.views.sharing import SharingLine
from app.views.shortcuts import Shortcuts
from app.views.tour import Tour
from app.views.traces import Traces
from app.widgets.browser_tab import BrowserTab
from core.errors import FlywiseError, InputError

TITLE = "Flywise"
HOST = "127.0.0.1"
DESK_MS = 2000
"""Time between two looks at the list of campaigns."""
NOTICE_MS = 8000
"""Time that a notice stays."""
SLOW_S = 0.18
"""Time after which the rest of the screen follows the atoms."""
LATER_S = 1.0
"""Time after the page is shown when the tabs behind the first are made, one at a time."""

_SCREEN_CSS = """
:host { display: grid !important; box-sizing: border-box; gap: 12px; padding: 12px;
  background: var(--fw-page); width: 100%; height: 100%; min-height: 0; overflow: auto;
  grid-template-columns: minmax(0, 1.18fr) minmax(500px, 1fr);
  grid-template-rows: auto minmax(330px, 1fr) minmax(276px, 0.66fr);
  grid-template-areas: "controls controls" "scene tabs" "scene queue"; }
.scroll-button { display: none !important; }
.controls { grid-area: controls; } .scene { grid-area: scene; } .tabs { grid-area: tabs; }
.queue { grid-area: queue; } .hidden { display: none !important; }
.controls, .scene, .tabs, .queue { width: auto; height: auto; margin: 0; min-height: 0; }
@media (max-width: 980px) {
  :host { grid-template-columns: minmax(0, 1fr); align-content: start; gap: 10px; padding: 10px;
    grid-template-rows: max-content minmax(300px, 96vw) max-content 520px;
    grid-template-areas: "controls" "scene" "queue" "tabs"; }
  .scene { max-height: 640px; }
}
"""

_PLACE_CSS = ".scroll-button { display: none !important; } :host { min-height: 0; }"

_DESK_CSS = """
:host { background: var(--fw-page); width: 100%; height: 100%; overflow: auto; }
"""

_BAR_CSS = (
    ":host { margin: 0; flex: 1; min-width: 0; } .scroll-button { display: none !important; }"
)

_TITLE_CSS = """
.title { display: flex; align-items: baseline; gap: 14px; white-space: nowrap; overflow: hidden;
  color: var(--fw-text); }
.title b { font-size: 17px; font-weight: 650; letter-spacing: -0.01em; }
.title b i { color: var(--fw-accent); font-style: normal; }
.title a { color: inherit; text-decoration: none; }
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
    ".MuiAppBar-root .MuiLinearProgress-root": {"display": "none"},  # of busy, which is kept off
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
        self._looked = 0.0
        self._began: float | None = None
        self._told: Glance | None = None
        self._seat = Seat(shown, shown.lease, self._warn)
        self.selection = Selection()
        self._scene = Scene(shown, self.selection)
        self._controls = Controls(shown, self._seat)
        self._exchange = Exchange(shown, self._seat)
        self._queue = Queue(
            shown, self._seat, self.selection, self._exchange.button, self._exchange
        )  # fmt: skip
        self._sharing = SharingLine(self._seat)
        self._shortcuts, self._tour = Shortcuts(), Tour()
        self._tabs: dict[str, Any] = {
            "Traces": Traces(shown, self.selection),
        }
        self._later: dict[str, Callable[[], Any]] = {
            "Calibration": lambda: Calibration(shown),
            "Map": lambda: Map(shown, self.selection, self._seat),
            "Learning": lambda: Learning(shown, self._seat),
            "Fine-tune": lambda: Finetuning(shown, self._seat),
            "Settings": lambda: Settings(shown, self._seat.post),
            "Log": lambda: Log(shown),
        }
        self._places = {
            name: pn.Column(margin=0, sizing_mode="stretch_both", stylesheets=[_PLACE_CSS])
            for name in self._later
        }
        self._keys = {
            "a": self._queue.approve, "r": self._queue.reject, "s": self._queue.skip,
            "u": self._queue.undo, "j": lambda: self._queue.move(1),
            "k": lambda: self._queue.move(-1), "ArrowDown": lambda: self._queue.move(1),
            "ArrowUp": lambda: self._queue.move(-1), "p": self._controls.toggle,
            ".": self._controls.step_on, "l": lambda: self._queue.choose(0),
            "?": self._shortcuts.toggle,
        }  # fmt: skip
        self._tab = BrowserTab(
            self._press, self._seat.identify, keys=list(self._keys), css_classes=["hidden"]
        )
        self._tab_bar = pmui.Tabs(
            *self._tabs.items(), *self._places.items(), margin=0, sizing_mode="stretch_both",
            css_classes=["tabs"], color="primary",
        )  # fmt: skip
        self._tab_bar.param.watch(lambda _: self.tick(), "active")
        self._grid = pn.Column(
            self._controls, self._scene, self._tab_bar, self._queue,
            self._tab, self._shortcuts, self._tour,
            margin=0, sizing_mode="stretch_both",
        )  # fmt: skip
        self._title = pn.pane.HTML(
            "", margin=0, sizing_mode="stretch_width", stylesheets=[_TITLE_CSS]
        )
        self._bar = pn.Column(self._title, margin=0, sizing_mode="stretch_width")
        header = [self._bar, self._sharing, self._tour.button, self._shortcuts.button]
        self.page = _page(f"{shown.title} · {TITLE}", header, self._grid)
        self.page.param.watch(lambda event: self._paint(), "dark_theme")
        self._paint()
        self.tick()

    def tick(self) -> None:
        """Bring the screen up to date."""
        self.look()
        self._look_around()

    def look(self) -> Callable[[], None] | None:
        """Bring the atoms up to date; return what does so for the rest, where it is due."""
        self._scene.update(self._campaign.glance())
        return self._look_around if time.monotonic() - self._looked > SLOW_S else None

    def _look_around(self) -> None:
        glance = self._campaign.glance()
        self._looked = time.monotonic()
        self._make_later()
        self._seat.tick()
        for view in (self._controls, self._queue, self._exchange, self._shown_tab()):
            view.update(glance)
        self._sharing.update()
        self._tell(glance)
        self._title.object = _heading(self._campaign, glance.state.settings)

    def _tell(self, glance: Glance) -> None:
        self._tab.heading = tab_name(glance, self._campaign.title)
        if self._told is not None and pn.state.notifications is not None:
            for notice in notices(self._told, glance):
                tell = getattr(pn.state.notifications, notice.tone)
                tell(notice.text, duration=NOTICE_MS)
        self._told = glance

    def _shown_tab(self) -> Any:
        name = ("Traces", *self._places)[self._tab_bar.active]
        if name in self._later:
            self._make(name)
        return self._tabs[name]

    def _make_later(self) -> None:
        if not (self._later and pn.state.loaded):
            return
        if self._began is None:
            self._began = self._looked
        elif self._looked - self._began > LATER_S:
            self._make(next(iter(self._later)))

    def _make(self, name: str) -> None:
        """Fill a tab; the page is on the screen earlier without those that nobody sees yet."""
        view = self._later.pop(name)()
        if hasattr(view, "paint"):
            view.paint(theme.palette(bool(self.page.dark_theme)))
        self._tabs[name] = view
        self._places[name].objects = [view]

    def _press(self, key: str) -> None:
        self._keys[key]()

    def _warn(self, message: str) -> None:
        if pn.state.notifications is not None:
            pn.state.notifications.warning(message, duration=NOTICE_MS)

    def _paint(self) -> None:
        palette = theme.palette(bool(self.page.dark_theme))
        variables = theme.variables(palette)
        self._grid.stylesheets = [_SCREEN_CSS, variables]
        self._bar.stylesheets = [_BAR_CSS, variables]
        self._sharing.paint(palette)
        self._tour.paint(palette)
        self._scene.paint(palette)
        for view in self._tabs.values():
            if hasattr(view, "paint"):
                view.paint(palette)


class Desk:
    """A page without a campaign: the home page, or the set-up of a new campaign."""

    def __init__(self, view: Any, what: str) -> None:
        self._view = view
        self._frame = pn.Column(view, margin=0, sizing_mode="stretch_both")
        title = pn.pane.HTML(
            f'<div class="title">{_NAME}<span>{what}</span></div>',
            margin=0, sizing_mode="stretch_width", stylesheets=[_TITLE_CSS],
        )  # fmt: skip
        self._bar = pn.Column(title, margin=0, sizing_mode="stretch_width")
        self.page = _page(f"{what} · {TITLE}", [self._bar], self._frame)
        self.page.param.watch(lambda event: self._paint(), "dark_theme")
        self._paint()

    def tick(self) -> None:
        """Bring the page up to date."""
        self._view.update()

    def _paint(self) -> None:
        variables = theme.variables(theme.palette(bool(self.page.dark_theme)))
        self._frame.stylesheets = [_DESK_CSS, variables]
        self._bar.stylesheets = [_BAR_CSS, variables]


for _step in (Syncable._change_coroutine, Syncable._event_coroutine):
    # What a person does, Panel else answers without the document's lock where two things happened
    # within its 50 ms; Bokeh refuses changes of plots then, and the answer is lost midway.
    setattr(_step, "lock", True)  # noqa: B010  read by panel.io.server.async_execute


def _page(title: str, header: list[Any], main: Any) -> pmui.Page:
    shown = pmui.Page(
        title="",
        meta_title=title,
        header=header,
        main=[main],
        theme_config={"light": theme.material(theme.LIGHT), "dark": theme.material(theme.DARK)},
        busy_indicator=None,
        sx=_PAGE_SX,
        favicon=_FAVICON,
    )
    with edit_readonly(shown):
        shown.busy = False  # else every tick of any page updates it twice, 18 ms each
    return shown


_NAME = '<a href="?page=home" title="All campaigns"><b>Fly<i>wise</i></b></a>'


def _heading(shown: CampaignState, settings: Any) -> str:
    molecule = f"{escape(shown.title)} · {wording.formula(shown.structure.formula)}"
    return (
        f'<div class="title">{_NAME}<span>{molecule}</span>'
        f'<span class="muted">{escape(wording.conditions(settings))}</span></div>'
    )


def page(default: Callable[[], CampaignState]) -> pmui.Page:
    """Return what the address asks for; it looks after itself until it is closed.

    Args:
        default: opens the campaign that is shown where the address names none.
    """
    wanted = {key: values[0].decode() for key, values in pn.state.session_args.items() if values}
    if wanted.get("page") == "home":
        desk = Desk(Home(_open, lambda: _go("?page=new")), "Campaigns")
        _keep_up(desk.tick, DESK_MS)
        return _kept(desk.page)
    if wanted.get("page") == "new":
        return _kept(Desk(Setup(_open, lambda: _go("?page=home")), "New campaign").page)
    try:
        shown = (
            campaign(library().directory(name)) if (name := wanted.get("campaign")) else default()
        )
    except FlywiseError as error:
        return _kept(Desk(_lost(str(error)), "Not found").page)
    shown.warm()
    screen = Screen(shown)
    _follow(shown.pulse, screen)
    if pn.state.location is not None:
        pn.state.location.sync(screen.selection, {"frame": "frame"})
    return _kept(screen.page)


def _keep_up(tick: Callable[[], None], period: int) -> None:
    """Call `tick` every `period` ms once the browser shows the page, see `_follow`."""

    def begin() -> None:
        tick()
        pn.state.add_periodic_callback(tick, period=period)

    pn.state.onload(begin)


def _follow(pulse: Pulse, screen: Screen) -> None:
    """Let `screen` look whenever the pulse says so, once the browser shows the page.

    What changes between the page's being sent and the browser's being ready never reaches it:
    Panel takes it for part of the page, which was sent before (`panel.io.document.hold`).
    """

    def begin() -> None:
        screen.tick()
        document = pn.state.curdoc
        assert document is not None

        def beat(look: Beat = screen.look) -> Beat | None:
            with set_curdoc(document), hold():  # one message for all that changed
                rest = look()
            return rest and partial(beat, rest)

        pulse.join(document, beat)
        pn.state.on_session_destroyed(lambda _: pulse.leave(document))

    pn.state.onload(begin)


_ADDRESS_JS = """
const address = new URL(window.location)
address.searchParams.set("theme", cb_obj.dark_theme ? "dark" : "default")
window.history.replaceState(window.history.state, "", address)
"""


def _kept(shown: pmui.Page) -> pmui.Page:
    """Keep the theme of a page in its address; the page itself reads it from there.

    So does each component when it is drawn: the browser changes the address at once, since one
    drawn before the server's answer would turn the whole page back.
    """
    location = pn.state.location
    if location is not None:
        shown.jscallback(dark_theme=_ADDRESS_JS)

        def keep(event: param.parameterized.Event) -> None:
            location.update_query(theme="dark" if event.new else "default")  # type: ignore[arg-type]

        shown.param.watch(keep, "dark_theme")
    return shown


def _open(directory: Path) -> None:
    _go(f"?campaign={quote(directory.name)}")


def _go(search: str) -> None:
    """Go to another page of the app."""
    if pn.state.location is not None:
        pn.state.location.param.update(reload=True, search=search)


def _lost(message: str) -> pn.pane.HTML:
    text = f'<p>{escape(message)}</p><p><a href="?page=home">All campaigns</a></p>'
    return pn.pane.HTML(text, margin=24)


def serve(campaign_dir: Path | None = None, demo: str | None = None, port: int = 5006) -> None:
    """Offer the page on this machine until interrupted; a demo if no campaign is named.

    Raises:
        CampaignError: the directory holds no campaign.
        InputError: there is no such demo, or the port is taken.
    """
    shown = campaign(campaign_dir) if campaign_dir else open_demo(demo or "ethanol")

    def default() -> CampaignState:
        return shown if shown.directory.exists() else open_demo(demo or "ethanol")

    port = free_port(port)
    shown.warm()
    _extension()
    print(f"{TITLE} shows {shown.directory} on http://localhost:{port}", flush=True)
    print("Ctrl-C ends the page; a campaign that runs goes on.", flush=True)
    pn.serve(
        {"/": lambda: page(default)},
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
    page(lambda: campaign(sys.argv[1]) if len(sys.argv) > 1 else open_demo()).servable()
