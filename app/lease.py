"""Who drives a campaign: one page at a time holds a lease, every other page watches.

The server enforces it: a page's commands go through its `app.seat.Seat`, which refuses those of a
viewer whatever the browser sends. A page is known by a secret that its browser tab keeps, so a
reload drives on; a lease that is not renewed ends by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from core.errors import FlywiseError

TERM_S = 10.0
"""A lease ends so long after the last sign of life of the page that holds it."""
ANSWER_S = 20.0
"""A driver who does not answer a request to drive within this time loses the lease."""


class NotDrivingError(FlywiseError):
    """A command from a page that only watches."""


@dataclass(frozen=True)
class Sharing:
    """What a page needs to know about the lease.

    Attributes:
        name: of this page, for people. driving: it may command. pages: open on the campaign.
        driver: name of the page that drives, None for none.
        asking: name of the page that wants to drive, None for none.
        answer_s: seconds the driver has left to answer.
    """

    name: str = ""
    driving: bool = False
    pages: int = 0
    driver: str | None = None
    asking: str | None = None
    answer_s: float = 0.0


class Lease:
    """The lease on one campaign; pages are known by their secrets. Safe for several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}
        self._seen: dict[str, float] = {}
        self._driver: str | None = None
        self._asking: tuple[str, float] | None = None

    def renew(self, page: str) -> Sharing:
        """Give a sign of life, the first of which takes a seat; return how things stand."""
        with self._lock:
            name = self._names.setdefault(page, f"page {len(self._names) + 1}")
            self._seen[page] = self._clock()
            self._settle()
            self._driver = self._driver or page
            asking, left = None, 0.0
            if self._asking is not None:
                asking = self._names[self._asking[0]]
                left = self._asking[1] + ANSWER_S - self._clock()
            return Sharing(
                name, self._driver == page, len(self._seen), self._names[self._driver], asking, left
            )

    def check(self, page: str) -> None:
        """Raise unless `page` drives.

        Raises:
            NotDrivingError: it does not; the message says who does and what to do.
        """
        with self._lock:
            self._settle()
            if self._driver is None or self._driver != page:
                who = "nobody" if self._driver is None else self._names[self._driver]
                raise NotDrivingError(
                    f"This page watches and {who} drives. Ask to drive before you decide."
                )

    def ask(self, page: str) -> None:
        """Ask for the lease; it passes when the driver agrees, is gone or does not answer."""
        with self._lock:
            self._settle()
            if page in self._seen and self._driver != page and self._asking is None:
                self._asking = (page, self._clock())
                self._settle()

    def answer(self, page: str, *, yes: bool) -> None:
        """Hand over to the page that asks, or keep driving; for the driver only."""
        with self._lock:
            self._settle()
            if self._driver == page and self._asking is not None:
                if yes:
                    self._driver = self._asking[0]
                self._asking = None

    def _settle(self) -> None:
        """Drop pages without a sign of life, and pass the lease on where it is due."""
        now = self._clock()
        self._seen = {p: at for p, at in self._seen.items() if now - at <= TERM_S}
        if self._asking is not None and self._asking[0] not in self._seen:
            self._asking = None
        if self._driver not in self._seen:
            self._driver = None
        if self._asking is not None:
            page, since = self._asking
            if self._driver is None or now - since > ANSWER_S:
                self._driver, self._asking = page, None
