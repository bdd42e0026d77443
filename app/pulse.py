"""When the open pages of a campaign look again: at once for a new frame, else now and then.

One task watches the frames for all pages, so that a page costs nothing between two of them. Frames
are merged, never queued: a page that is still at the last one is not asked again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from bokeh.document import Document

WATCH_S = 0.008
"""Time between two looks whether a frame is new."""
FASTEST_S = 0.04
"""Shortest time between two looks of a page."""
SLOWEST_S = 0.2
"""Longest time between two looks of a page."""
SHARE = 0.8
"""Of the server's time, at most this much goes to the pages of one campaign."""

Beat = Callable[[], Any]
"""Looks, and returns the `Beat` that can wait until what it found was sent, or None."""


class Pulse:
    """Calls each page's `beat` in its document.

    Args:
        newest: changes whenever there is a new frame; asked often, so cheap.
    """

    def __init__(self, newest: Callable[[], object]) -> None:
        self._newest = newest
        self._beats: dict[Document, Beat] = {}
        self._busy: set[Document] = set()
        self._spent = 0.0
        self._task: asyncio.Task[None] | None = None

    def join(self, document: Document, beat: Beat) -> None:
        """Call `beat` from now on until `leave`; to be called in the server's event loop."""
        self._beats[document] = beat
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._watch())

    def leave(self, document: Document) -> None:
        """Forget a page that was closed."""
        self._beats.pop(document, None)
        self._busy.discard(document)

    async def _watch(self) -> None:
        seen, last = self._newest(), 0.0
        while self._beats:
            await asyncio.sleep(WATCH_S)
            gap = time.monotonic() - last
            if gap < max(FASTEST_S, self._spent / SHARE):
                continue
            newest = self._newest()
            if newest != seen or gap > SLOWEST_S:
                seen, last, self._spent = newest, time.monotonic(), 0.0
                for document in self._beats.keys() - self._busy:
                    self._call(document)

    def _call(self, document: Document) -> None:
        self._busy.add(document)
        self._soon(document, self._beats[document])

    def _soon(self, document: Document, beat: Beat) -> None:
        def timed() -> None:
            began, rest = time.monotonic(), None
            try:
                rest = beat() if document in self._beats else None
            finally:
                self._spent += time.monotonic() - began
                if rest is None:
                    self._busy.discard(document)
            if rest is not None:
                self._soon(document, rest)

        try:
            document.add_next_tick_callback(timed)
        except RuntimeError:  # the page was closed just now
            self.leave(document)
