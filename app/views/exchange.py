"""Frames to a file for labelling elsewhere, and labels computed by hand back in, from the page."""

from __future__ import annotations

import io
import tempfile
from html import escape
from pathlib import Path

import panel as pn
import panel_material_ui as pmui

from app import wording
from app.seat import Seat
from app.state import CampaignState, Glance
from core.campaign import exchange, labels
from core.errors import FlywiseError

MAX_UPLOAD_MB = labels.MAX_FILE_BYTES >> 20

_CSS = """
:host { display: grid !important; grid-template-columns: minmax(0, 1fr) auto minmax(150px, 240px);
  gap: 6px 12px; align-items: center; }
.exchange-said { grid-column: 1 / -1; }
@media (max-width: 620px) { :host { grid-template-columns: minmax(0, 1fr); } }
"""
_TEXT_CSS = """
p { margin: 0; color: var(--fw-muted); font-size: 12.5px; line-height: 1.45; }
p.bad { color: var(--fw-bad); max-height: 6em; overflow: auto; overflow-wrap: anywhere; }
p.good { color: var(--fw-text); }
"""


class Exchange(pn.viewable.Viewer):
    """A download of the frames that wait, and a place to drop the file that comes back.

    Attributes:
        button: shows and hides it.
    """

    def __init__(self, campaign: CampaignState, seat: Seat) -> None:
        super().__init__()
        self._campaign, self._seat = campaign, seat
        self._help = _text()
        self._said = _text("exchange-said")
        self._download = pmui.FileDownload(
            callback=self._file, filename=f"{campaign.title}-waiting.extxyz", label="Download",
            size="small", margin=0, embed=False,
        )  # fmt: skip
        self._download.variant = "outlined"  # given at once, panel-material-ui 0.16 warns
        self._upload = pmui.FileInput(
            label="Import labels", accept=".extxyz,.xyz", max_file_size=MAX_UPLOAD_MB << 20,
            size="small", variant="outlined", color="primary", margin=0,
            sizing_mode="stretch_width",
        )  # fmt: skip
        self._upload.param.watch(lambda event: self._take(event.new), "value")
        self.button = pmui.IconButton(
            icon="swap_vert", size="small", margin=0, color="primary",
            description="Label elsewhere: download frames, import labels",
            on_click=lambda _: self._toggle(),
        )  # fmt: skip
        self._posted: int | None = None
        parts = pn.Column(
            self._help, self._download, self._upload, self._said,
            margin=0, sizing_mode="stretch_width", stylesheets=[_CSS],
        )  # fmt: skip
        self._layout = pn.Column(
            parts, margin=0, css_classes=["queue-exchange"], visible=False
        )  # fmt: skip

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def _toggle(self) -> None:
        self._layout.visible = not self._layout.visible

    def update(self, glance: Glance) -> None:
        """Show how many frames wait, and what became of an import."""
        n = len(glance.state.ids("waiting"))
        level = escape(wording.method(glance.state.settings.labelling.reference))
        self._help.object = (
            f"<p>{n} waiting frame{'s' * (n != 1)} as extended XYZ. Add energy and forces of "
            f"{level} to the file, keep the rest, and import it here.</p>"
        )
        self._download.disabled = not n
        self._upload.disabled = not self._seat.sharing.driving
        if self._posted is not None:
            outcome = self._campaign.outcome(self._posted)
            if outcome is not None:
                self._posted = None
                self._say("Taken in." if outcome == "done" else outcome, good=outcome == "done")

    def _file(self) -> io.BytesIO:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "waiting.extxyz"
            exchange.export_frames(self._campaign.reader, path)
            return io.BytesIO(path.read_bytes())

    def _take(self, data: bytes | None) -> None:
        """Check a file and hand its labels to the worker; all of them or none."""
        if not data:
            return
        name = str(self._upload.filename or "labels")
        try:
            offer = exchange.read_labels(self._campaign.reader, data, name)
        except FlywiseError as error:
            self._say(str(error), good=False)
            return
        finally:
            self._upload.clear()
        number = self._seat.offer(offer)
        if number is not None:
            n = len(offer.ids)
            self._posted = number
            self._say(f"{n} label{'s' * (n != 1)} of {name} fit; handed over.", good=True)

    def _say(self, text: str, *, good: bool) -> None:
        self._said.object = f'<p class="{"good" if good else "bad"}">{escape(text)}</p>'


def _text(name: str = "") -> pn.pane.HTML:
    return pn.pane.HTML(
        "", stylesheets=[_TEXT_CSS], margin=0, sizing_mode="stretch_width",
        css_classes=[name] if name else [],
    )  # fmt: skip
