"""A list drawn in the page: rows with a figure and a second line, one of them chosen."""

from __future__ import annotations

from pathlib import Path

import param
from panel.custom import JSComponent


class Rows(JSComponent):
    """Rows of text; choosing one sets `chosen` to its id.

    Each row is a dict: `id`, `tone` (colour of its dot), `status`, `title`, `figure` (set apart
    on the right, bold where `over`), `detail` (second line), `marked` (part of a proposal).
    """

    rows = param.List(item_type=dict)
    chosen = param.Integer(default=0, doc="Id of the chosen row, 0 for none.")
    label = param.String(doc="What the list holds, for screen readers.")
    empty = param.String(doc="Said where there is no row.")

    _esm = Path(__file__).parent / "rows.js"
