"""The sheet of keyboard shortcuts, opened by its button or by the question mark."""

from __future__ import annotations

import panel as pn
import panel_material_ui as pmui

KEYS = (
    ("A", "approve the frame, the batch or the retry asked about"),
    ("R", "reject it"),
    ("S", "skip it for now"),
    ("U", "undo the last decision"),
    ("J / K", "next or previous row of the queue (also the arrow keys)"),
    ("L", "back to the live view"),
    ("P", "start or pause"),
    (".", "run ten steps"),
    ("Esc", "forget the picked atoms"),
    ("?", "show or hide this sheet"),
)

_CSS = """
table { border-collapse: collapse; font-size: 14px; line-height: 2; }
td { padding: 0 18px 0 0; } p { color: var(--fw-muted); font-size: 13px; margin: 10px 0 0; }
kbd { font: inherit; font-weight: 600; padding: 1px 7px; border: 1px solid var(--fw-line);
  border-radius: 5px; background: var(--fw-raised); white-space: nowrap; }
"""
_BUTTON_CSS = "@media (max-width: 620px) { :host { display: none !important; } }"


class Shortcuts(pn.viewable.Viewer):
    """The sheet, and the button that opens it (`button`)."""

    def __init__(self) -> None:
        super().__init__()
        rows = "".join(f"<tr><td><kbd>{key}</kbd></td><td>{what}</td></tr>" for key, what in KEYS)
        text = f"<table>{rows}</table><p>Keys are off while you type in a field.</p>"
        self._sheet = pmui.Dialog(
            pn.pane.HTML(text, stylesheets=[_CSS], margin=0), title="Keyboard shortcuts",
            open=False, close_on_click=True, show_close_button=True,
        )  # fmt: skip
        self.button = pmui.IconButton(
            icon="keyboard", margin=0, size="small", description="Keyboard shortcuts (?)",
            on_click=lambda _: self.toggle(), stylesheets=[_BUTTON_CSS],
        )  # fmt: skip

    def __panel__(self) -> pn.viewable.Viewable:
        return self._sheet

    def toggle(self) -> None:
        """Show the sheet, or hide it."""
        self._sheet.open = not self._sheet.open
