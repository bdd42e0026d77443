"""What one page looks at: a frame, a query, a coordinate. The panels of the page share it."""

from __future__ import annotations

from typing import Any

import param

from core.campaign.state import Query


class Selection(param.Parameterized):
    """The frame, the query and the coordinate that a page has chosen."""

    frame: Any = param.Integer(None, allow_None=True, doc="Stored frame on show; None: live.")
    query: Any = param.Integer(None, allow_None=True, doc="Row of the queue that is chosen.")
    coordinate: Any = param.ClassSelector(
        class_=tuple, default=(), doc="Two to four atoms whose coordinate is traced; or none."
    )

    def show_frame(self, frame_id: int, queue: tuple[Query, ...] = ()) -> None:
        """Show a stored frame; where it is in `queue`, choose its row too."""
        query = next((q.id for q in queue if q.frame_id == frame_id), self.query)
        self.param.update(frame=frame_id, query=query)

    def show_query(self, query: Query) -> None:
        """Choose a row of the queue and show its frame."""
        self.param.update(frame=query.frame_id, query=query.id)

    def go_live(self) -> None:
        """Return to the newest frame; the row of the queue stays chosen."""
        self.frame = None
