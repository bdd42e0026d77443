"""A short tour of the screen: five notes, one at a time, opened by its button."""

from __future__ import annotations

import panel as pn
import panel_material_ui as pmui

from app import theme

STEPS = (
    (
        "What happens here",
        "A simulation runs with a quick model of the forces. The model was trained on one level "
        "of theory and is asked for another, so at first it is wrong. Press <b>Start</b>: the "
        "atoms move at once, and whatever the model says is <b>untrusted</b> until its first "
        "labels are in.",
    ),
    (
        "How sure the model is",
        "Every few steps the model says how far off it may be. Atoms are coloured by the bound on "
        "their force error: blue is well known, pale is at the tolerance, red is beyond it. The "
        "traces show the same bounds along the run, with the tolerance drawn in.",
    ),
    (
        "Where a calculation is worth its price",
        "A frame whose bound is beyond a tolerance is <b>flagged</b> and joins the queue with its "
        "reason, its price and the nearest frame already labelled. <i>Ask me</i> leaves each one "
        "to you, <i>Automatic</i> labels them all, <i>In batches</i> proposes a few that differ.",
    ),
    (
        "How a decision is taken back",
        "<b>Undo</b> (key U) takes back the last decision, or the last batch, until its label has "
        "been learned. Rejected and skipped frames stay in the list. Nothing is lost when the page "
        "is closed: the engine goes on and the journal is on the disk.",
    ),
    (
        "Whether to believe it",
        "Each label is compared with what the model had said <i>before</i> it learned it. The tab "
        "<b>Calibration</b> shows whether the bounds hold, and what another tolerance would have "
        "cost. Press <b>?</b> for the keys.",
    ),
)

_CSS = "p { font-size: 14px; line-height: 1.55; margin: 0; max-width: 46ch; min-height: 8.5em; }"


class Tour(pn.viewable.Viewer):
    """The notes, and the button that opens them (`button`)."""

    def __init__(self) -> None:
        super().__init__()
        self._at = 0
        self._text = pn.pane.HTML("", stylesheets=[_CSS], margin=0)
        self._back = pmui.Button(label="Back", variant="text", margin=0)
        self._next = pmui.Button(label="Next", margin=0, disable_elevation=True)
        self._back.on_click(lambda _: self._move(-1))
        self._next.on_click(lambda _: self._move(1))
        self._sheet = pmui.Dialog(
            self._text, pn.Row(self._back, self._next, margin=(16, 0, 0, 0)), open=False,
            show_close_button=True,
        )  # fmt: skip
        self.button = pmui.Button(
            label="Tour", variant="text", size="small", margin=0, color="primary",
            on_click=lambda _: self.open(),
        )  # fmt: skip
        self._show()

    def __panel__(self) -> pn.viewable.Viewable:
        return self._sheet

    def paint(self, palette: theme.Palette) -> None:
        """Take the colours of a mode."""
        self.button.sx = theme.in_header(palette)

    def open(self) -> None:
        """Begin at the first note."""
        self._at = 0
        self._show()
        self._sheet.open = True

    def _move(self, by: int) -> None:
        self._at += by
        if self._at >= len(STEPS):
            self._sheet.open = False
            self._at = 0
        self._show()

    def _show(self) -> None:
        title, text = STEPS[self._at]
        self._sheet.title = f"{title} · {self._at + 1} of {len(STEPS)}"
        self._text.object = f"<p>{text}</p>"
        self._back.disabled = self._at == 0
        self._next.label = "Done" if self._at == len(STEPS) - 1 else "Next"
