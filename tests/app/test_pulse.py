"""When pages look again. Times are told with room, for machines that have other work."""

import asyncio
import time

from app.pulse import FASTEST_S, SHARE, SLOWEST_S, Pulse
from tests.app.conftest import run_async


class Page:
    """A document whose next tick comes at once, and the looks taken at it."""

    def __init__(self, work_s=0.0, later=False):
        self.looks, self.rests, self._work_s, self._later = [], 0, work_s, later

    def add_next_tick_callback(self, callback):
        asyncio.get_running_loop().call_soon(callback)

    def beat(self):
        self.looks.append(time.monotonic())
        time.sleep(self._work_s)
        return self._rest if self._later else None

    def _rest(self):
        self.rests += 1


def watch(seconds, *pages, frames_s=None):
    """Let a pulse beat for `pages`, with a new frame every `frames_s` seconds."""

    async def run():
        began = time.monotonic()
        pulse = Pulse(lambda: frames_s and (time.monotonic() - began) // frames_s)
        for page in pages:
            pulse.join(page, page.beat)
        await asyncio.sleep(seconds)
        for page in pages:
            pulse.leave(page)
        told = [len(page.looks) for page in pages]
        await asyncio.sleep(2 * SLOWEST_S)
        assert told == [len(page.looks) for page in pages]  # closed pages are left alone

    run_async(run())


def test_without_frames_a_page_looks_now_and_then():
    page = Page()
    watch(1.0, page)
    assert 2 <= len(page.looks) <= 1.0 / SLOWEST_S + 1


def test_new_frames_are_looked_at_soon_but_not_too_often():
    slow, fast = Page(), Page()
    watch(1.0, slow, frames_s=0.1)
    watch(1.0, fast, frames_s=0.001)
    assert len(slow.looks) > 1.5 / SLOWEST_S
    assert len(slow.looks) < len(fast.looks) <= 1.0 / FASTEST_S + 1


def test_many_pages_share_the_servers_time():
    pages = [Page(work_s=0.02) for _ in range(5)]
    watch(1.5, *pages, frames_s=0.001)
    looks = [len(page.looks) for page in pages]
    assert max(looks) - min(looks) <= 1 and 2 <= max(looks) <= 1.5 * SHARE / (5 * 0.02) + 2


def test_what_can_wait_comes_after():
    page = Page(later=True)
    watch(0.5, page, frames_s=0.05)
    assert 2 <= page.rests <= len(page.looks) <= page.rests + 1
