"""The home page: a person's campaigns as cards, and the ways to start another one."""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape
from pathlib import Path

import panel as pn
import panel_material_ui as pmui

from app import state as state_
from app import theme, wording
from app.library import Campaign, Library, library
from app.widgets.picture import svg
from app.wording import abbreviated, count
from core.errors import FlywiseError

SHOWN = 24
"""Cards shown before a person asks for more."""

_CSS = """
:host { display: flex !important; flex-direction: column; gap: 16px; padding: 24px;
  box-sizing: border-box; width: 100%; max-width: 1180px; margin: 0 auto; }
.scroll-button { display: none !important; }
@media (max-width: 620px) { :host { padding: 14px 12px; gap: 12px; } }
"""
_HEAD_CSS = """
:host { display: flex !important; flex-flow: row wrap !important; gap: 10px 12px;
  align-items: center; }
.scroll-button { display: none !important; } .grow { flex: 1 1 220px; }
"""
_TITLE_CSS = """
h1 { margin: 0; font-size: 22px; font-weight: 650; letter-spacing: -0.01em; line-height: 1.3;
  color: var(--fw-text); }
p { margin: 2px 0 0; font-size: 13px; color: var(--fw-muted); overflow-wrap: anywhere; }
"""
_NOTE_CSS = """
:host { align-items: center; gap: 12px; padding: 6px 14px; }
.scroll-button { display: none !important; }
"""
_GRID_CSS = """
:host { display: grid !important; gap: 14px; grid-auto-rows: max-content;
  grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); }
.scroll-button { display: none !important; }
"""
_CARD_CSS = """
:host { display: flex !important; flex-direction: column; padding: 14px 16px 10px; gap: 8px; }
.text { flex: 1; }
"""
_ACTIONS_CSS = """
:host { display: flex !important; align-items: center; gap: 2px; }
.scroll-button { display: none !important; } .open { margin-right: auto !important; }
"""
_TEXT_CSS = """
.top { display: flex; gap: 14px; align-items: center; }
.picture { flex: none; width: 132px; height: 96px; } .picture svg { display: block; }
.about { min-width: 0; }
h2 { margin: 0; font-size: 15px; font-weight: 600; line-height: 1.35; overflow-wrap: anywhere; }
.formula { font-size: 13px; } sub { font-size: 0.75em; line-height: 0; }
.muted, dt { color: var(--fw-muted); font-size: 12px; line-height: 1.45; }
.state { display: flex; align-items: center; gap: 7px; font-size: 13px; margin-top: 3px; }
.dot { width: 8px; height: 8px; border-radius: 50%; flex: none; background: var(--fw-muted); }
.busy { background: var(--fw-accent); } .ask { background: var(--fw-warn); }
.bad { background: var(--fw-bad); } .done { background: var(--fw-good); }
dl { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; margin: 10px 0 0; }
dd { margin: 0; font-size: 14px; font-weight: 550; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
dd small { font-weight: 400; color: var(--fw-muted); font-size: 12px; }
p { margin: 4px 0 0; font-size: 13px; line-height: 1.45; color: var(--fw-muted);
  overflow-wrap: anywhere; }
"""
_EMPTY = """<h2>No campaigns yet</h2>
<p>A campaign is one simulation with the model that learns from it. The ethanol demo needs nothing
else and moves within ten seconds; a new campaign starts from your molecule.</p>"""


class Home(pn.viewable.Viewer):
    """Cards of all campaigns, and buttons for new ones.

    Args:
        open_campaign: called with the directory of the campaign to show.
        new_campaign: called when a person wants to set one up.
    """

    def __init__(
        self, open_campaign: Callable[[Path], None], new_campaign: Callable[[], None]
    ) -> None:
        super().__init__()
        self._open, self._new = open_campaign, new_campaign
        self._library: Library = library()
        self._cards: dict[str, _Card] = {}
        self._limit = SHOWN
        self._deleted: str | None = None
        self._title = _html(_TITLE_CSS, css_classes=["grow"])
        head = pn.Column(
            self._title,
            _button("Ethanol demo", "play_arrow", "outlined", self._demo),
            _button("New campaign", "add", "contained", lambda _: self._new()),
            margin=0, stylesheets=[_HEAD_CSS],
        )  # fmt: skip
        self._note = _html(_TITLE_CSS, css_classes=["grow"])
        self._undo = _button("Undo", "undo", "text", self._restore)
        self._note_row = pn.Row(
            self._note, self._undo, margin=0, visible=False, css_classes=["note"],
            stylesheets=[theme.CARD, _NOTE_CSS, ".grow { flex: 1; }"],
        )  # fmt: skip
        self._empty = pn.Column(
            _html(_TEXT_CSS, _EMPTY), margin=0, visible=False, css_classes=["empty"],
            stylesheets=[theme.CARD, ":host { padding: 28px 24px; }"],
        )  # fmt: skip
        self._grid = pn.Column(margin=0, css_classes=["campaigns"], stylesheets=[_GRID_CSS])
        self._more = _button("Show more", "expand_more", "text", self._show_more)
        self._layout = pn.Column(
            head, self._note_row, self._empty, self._grid, self._more,
            margin=0, css_classes=["home"], stylesheets=[_CSS],
        )  # fmt: skip
        self.update()

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self) -> None:
        """Follow the folder; cheap where nothing changed, once a second is often enough."""
        found = self._library.campaigns()
        byname = {campaign.name: campaign for campaign in found}
        kept = [name for name in self._cards if name in byname]
        fresh = [campaign.name for campaign in found if campaign.name not in self._cards]
        if fresh or len(kept) < len(self._cards):
            made = {name: _Card(self, byname[name]) for name in fresh}
            self._cards = {**made, **{name: self._cards[name] for name in kept}}
            self._place()
        for name, card in list(self._cards.items())[: self._limit]:
            card.show(byname[name])
        said = "1 campaign" if len(found) == 1 else f"{count(len(found))} campaigns"
        folder = escape(abbreviated(self._library.folder))
        self._title.object = f"<h1>Campaigns</h1><p>{said} in {folder}</p>"
        self._empty.visible = not found

    def _place(self) -> None:
        cards = list(self._cards.values())
        self._grid.objects = [card.panel for card in cards[: self._limit]]
        self._more.visible = len(cards) > self._limit

    def _show_more(self, _: object) -> None:
        self._limit += SHOWN
        self._place()
        self.update()

    def open(self, campaign: Campaign) -> None:
        """Show a campaign."""
        self._open(campaign.directory)

    def duplicate(self, campaign: Campaign) -> None:
        """Make another campaign of the same settings and structure."""
        self._do(
            lambda: self._library.duplicate(campaign.name).name,
            lambda made: f"{campaign.name} duplicated as {made}, ready to start.",
        )

    def delete(self, campaign: Campaign) -> None:
        """Move a campaign to the trash, from where Undo brings it back."""

        def delete() -> str:
            self._deleted = self._library.delete(campaign.name)
            return campaign.name

        self._do(delete, lambda name: f"{name} deleted.", undo=True)

    def rename(self, campaign: Campaign, name: str) -> bool:
        """Give a campaign another name; False, with a note, where that is not possible."""
        return self._do(
            lambda: self._library.rename(campaign.name, name).name,
            lambda new: f"{campaign.name} is now {new}.",
        )

    def _restore(self, _: object) -> None:
        token, self._deleted = self._deleted, None
        if token is not None:
            self._do(lambda: self._library.restore(token).name, lambda name: f"{name} is back.")

    def _demo(self, _: object) -> None:
        try:
            campaign = state_.demo()
        except FlywiseError as error:
            self._say(str(error))
            return
        self._open(campaign.directory)

    def _do(self, act: Callable[[], str], said: Callable[[str], str], undo: bool = False) -> bool:
        try:
            result = act()
        except (FlywiseError, OSError) as error:
            self._say(str(error))
            return False
        self._say(said(result), undo=undo)
        self.update()
        return True

    def _say(self, text: str, *, undo: bool = False) -> None:
        self._note.object = f'<p role="status">{escape(text)}</p>'
        self._undo.visible = undo
        self._note_row.visible = True


class _Card:
    """One campaign; asks the page for what its buttons do."""

    def __init__(self, home: Home, campaign: Campaign) -> None:
        self._home, self._campaign = home, campaign
        self._picture = _picture(campaign)
        self._text = _html(_TEXT_CSS, css_classes=["text"])
        self._name = pmui.TextInput(
            label="Name", value=campaign.name, visible=False, size="small", margin=0,
            sizing_mode="stretch_width",
        )  # fmt: skip
        self._name.param.watch(self._renamed, "value")
        self._acts = [
            _small("Open", lambda _: home.open(self._campaign), "outlined"),
            _small("Rename", self._edit),
            _small("Duplicate", lambda _: home.duplicate(self._campaign)),
            _small("Delete", lambda _: home.delete(self._campaign)),
        ]
        actions = pn.Row(*self._acts, margin=0, stylesheets=[_ACTIONS_CSS])
        self.panel = pn.Column(
            self._text, self._name, actions, margin=0, css_classes=["campaign"],
            stylesheets=[theme.CARD, _CARD_CSS],
        )  # fmt: skip

    def show(self, campaign: Campaign) -> None:
        """Follow the campaign."""
        if campaign.structure is not self._campaign.structure:
            self._picture = _picture(campaign)
        self._campaign = campaign
        for button in self._acts[::2]:  # those that need to read it
            button.disabled = campaign.problem is not None
        self._text.object = card(campaign, self._picture, time.time())

    def _edit(self, _: object) -> None:
        self._name.visible = not self._name.visible

    def _renamed(self, event: object) -> None:
        name = self._name.value.strip()
        if name == self._campaign.name or not self._name.visible:
            return
        if self._home.rename(self._campaign, name):
            self._name.visible = False


def card(campaign: Campaign, picture: str, now: float) -> str:
    """Return what a card says, as HTML."""
    said = campaign.status
    if campaign.state is None or campaign.structure is None:
        return (
            f"<h2>{escape(campaign.name)}</h2>"
            f'<div class="state"><span class="dot bad"></span>{said.word}</div>'
            f"<p>{escape(said.detail)}</p>"
        )
    state = campaign.state
    about = (
        f"<h2>{escape(campaign.name)}</h2>"
        f'<div class="formula">{wording.formula(campaign.structure.formula)}</div>'
        f'<div class="muted">{escape(wording.conditions(state.settings))}</div>'
        f'<div class="state"><span class="dot {said.tone}"></span>{escape(said.word)}</div>'
    )
    figures = {
        "Steps": f"{count(state.step)} <small>/ {count(state.steps_total)}</small>",
        "Labels": count(state.n_labels),
        "Within interval": _coverage(campaign),
    }
    rows = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in figures.items())
    return (
        f'<div class="top"><div class="picture">{picture}</div>'
        f'<div class="about">{about}</div></div>'
        f"<dl>{rows}</dl><p>Last change {_ago(now - campaign.changed)}</p>"
    )


def _coverage(campaign: Campaign) -> str:
    if not campaign.checked:
        return "– <small>no label yet</small>"
    share = 100 * campaign.inside / campaign.checked
    return f"{share:.0f} % <small>of {count(campaign.checked)}</small>"


def _ago(seconds: float) -> str:
    """Return an age in the largest unit that fits."""
    for size, word in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {word}{'' if number == 1 else 's'} ago"
    return "just now"


def _html(css: str, text: str = "", **more: list[str]) -> pn.pane.HTML:
    return pn.pane.HTML(text, stylesheets=[css], margin=0, sizing_mode="stretch_width", **more)


def _button(label: str, icon: str, variant: str, act: Callable[[object], None]) -> pmui.Button:
    return pmui.Button(
        label=label, icon=icon, variant=variant, on_click=act, margin=0, color="primary",
        disable_elevation=True,
    )  # fmt: skip


def _small(label: str, act: Callable[[object], None], variant: str = "text") -> pmui.Button:
    return pmui.Button(
        label=label, variant=variant, on_click=act, margin=0, color="primary", size="small",
        css_classes=[label.lower()],
    )  # fmt: skip


def _picture(campaign: Campaign) -> str:
    return "" if campaign.structure is None else svg(campaign.structure)
