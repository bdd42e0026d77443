"""The settings of a campaign: what may be changed while it runs as a form, the rest as it was set.

A change is posted as a command and shown once the worker took it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from html import escape

import panel as pn
import panel_material_ui as pmui

from app import theme
from app.state import CampaignState, Glance
from app.widgets.form import (
    FIELDS,
    SECTIONS,
    Form,
    applies,
    label_of,
    said_of,
    text_of,
    tried,
    value_at,
)
from core import settings as schema
from core.campaign import events as ev
from core.errors import SettingsError

_CSS = """
:host { padding: 16px 18px 18px; gap: 14px; overflow: auto; display: flex !important; }
.scroll-button { display: none !important; } .part, .form { flex: none !important;
  max-height: none !important; }
"""
_TEXT_CSS = """
h2 { margin: 0; font-size: 15px; font-weight: 600; line-height: 1.4; }
p { margin: 2px 0 0; color: var(--fw-muted); font-size: 13px; line-height: 1.45; }
h3 { margin: 12px 0 2px; font-size: 12.5px; font-weight: 600; color: var(--fw-muted); }
dl { margin: 0; font-size: 13px; line-height: 1.45; display: grid; gap: 3px 16px;
  grid-template-columns: minmax(0, 1fr) minmax(64px, max-content); }
dt { color: var(--fw-text); } dd { margin: 0; text-align: right; overflow-wrap: anywhere;
  max-width: 260px; font-variant-numeric: tabular-nums; }
"""

LIVE = tuple(path for path, entry in FIELDS.items() if entry["live"])
FIXED = tuple(path for path, entry in FIELDS.items() if not entry["live"])


class Settings(pn.viewable.Viewer):
    """Live fields as inputs, fixed ones as text, and all of them as a file.

    Args:
        post: given a command for the worker; returns False where this page may not command.
    """

    def __init__(
        self,
        campaign: CampaignState,
        post: Callable[[ev.Command], object],
    ) -> None:
        super().__init__()
        self._campaign, self._post = campaign, post
        self._shown = campaign.glance().state.settings
        self._form = Form(self._shown, LIVE, self._change)
        self._fixed = pn.pane.HTML(
            fixed(self._shown), stylesheets=[_TEXT_CSS], margin=0, sizing_mode="stretch_width",
            css_classes=["part"],
        )  # fmt: skip
        self._download = pmui.FileDownload(
            callback=self._file, filename=f"{campaign.title}.toml", label="Download as TOML",
            size="small", margin=0,
            stylesheets=[":host { align-self: flex-start; }"],
        )  # fmt: skip
        self._download.variant = "outlined"  # given at once, panel-material-ui 0.16 warns
        self._layout = pn.Column(
            _text("<h2>Can be changed now</h2><p>A change takes effect at the next step.</p>"),
            self._form,
            self._fixed,
            self._download,
            margin=0, css_classes=["settings"], stylesheets=[theme.CARD, _CSS],
        )  # fmt: skip

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self, glance: Glance) -> None:
        """Follow the campaign's settings, whoever changed them."""
        now = glance.state.settings
        if now is not self._shown:
            self._shown = now
            self._form.follow(now)

    def _change(self, path: str, text: str) -> str | None:
        current = self._campaign.glance().state.settings
        try:
            value = value_at(tried(current, path, text), path)
        except SettingsError as error:
            return str(error)
        if value == value_at(current, path) or text == text_of(path, value_at(current, path)):
            return None
        if self._post(ev.ChangeSetting(path=path, value=value)) is False:
            self._form.reset(current)
        return None

    def _file(self) -> io.BytesIO:
        return io.BytesIO(self._campaign.glance().state.settings.to_toml().encode())


def _text(html: str) -> pn.pane.HTML:
    return pn.pane.HTML(
        html, stylesheets=[_TEXT_CSS], margin=0, sizing_mode="stretch_width", css_classes=["part"]
    )


def fixed(given: schema.Settings) -> str:
    """Return what was set for good at the start, section by section, as HTML."""
    parts = [
        "<h2>Set at the start</h2><p>These belong to the campaign. A duplicate of it, or a new "
        "campaign, can have others.</p>"
    ]
    for section, heading in SECTIONS.items():
        rows = [
            f"<dt>{escape(label_of(FIELDS[path]))}</dt>"
            f"<dd>{escape(said_of(path, value_at(given, path)))}</dd>"
            for path in FIXED
            if path.startswith(f"{section}.")
            and value_at(given, path) is not None
            and applies(path, lambda other: text_of(other, value_at(given, other)))
        ]
        if rows:
            parts.append(f"<h3>{heading}</h3><dl>{''.join(rows)}</dl>")
    return "".join(parts)
