"""The stored frames on one line: a slider with ticks where one is flagged, labelled or rewound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import param
from panel.custom import JSComponent


class Timeline(JSComponent):
    """Chooses a stored frame, or the live one; `turn` is called with -1 or 1 by two buttons."""

    last = param.Integer(1, bounds=(1, None), doc="The newest frame; they count from 1.")
    value = param.Integer(0, bounds=(0, None), doc="Frame on show; 0 for the live one.")
    flagged = param.List(item_type=int, doc="Frames to mark.")
    labelled = param.List(item_type=int, doc="Frames to mark.")
    rewound = param.List(item_type=int, doc="Frames to mark.")
    text = param.String(doc="What is said of the frame on show.")

    _esm = Path(__file__).parent / "timeline.js"

    def __init__(self, turn: Callable[[int], None], **params: Any) -> None:
        self._turn = turn
        super().__init__(**params)

    def _handle_msg(self, data: Any) -> None:
        if data in (-1, 1):
            self._turn(data)
