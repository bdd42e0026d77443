"""The page under load: how old a frame is on the screen, how quick a click, and what stays flat.

    flywise bench app [--soak MINUTES]

A campaign of 1,000 argon atoms runs, another keeps the remaining core busy, and a Chromium shows
the first. A frame is as old as the time between the worker's writing it and the second animation
frame after it was drawn. All clocks are this machine's. `--soak` runs for 30 minutes unless told
otherwise, and watches the memory of server and page.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from ase.build import bulk
from ase.io import write
from common import cell, context, machine, table
from playwright.sync_api import Page, sync_playwright
from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import websocket_connect

from core import settings, worker
from core.campaign import events as ev
from core.campaign.reader import CampaignReader, Commander

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "app"))
from conftest import CHROMIUM, FLAGS, launched  # noqa: E402

WATCH_S, VIEWERS, REPEATS = 20.0, 20, 10

RECORD = """(stage) => {
  const models = [...Bokeh.documents[0]._all_models.values()];
  const data = models.find((m) => m.data?.positions !== undefined).data;
  const seen = (window.__seen = []);
  new MutationObserver(() => {
    const raw = data.positions, at = raw.byteOffset ?? 0;
    const key = Array.from(new Float32Array((raw.buffer ?? raw).slice(at, at + 36))).join();
    requestAnimationFrame(() => requestAnimationFrame(() => seen.push([key, Date.now()])));
  }).observe(stage, { attributes: true, attributeFilter: ["data-frames"] });
}"""


def crystal(folder: Path, name: str, repeat: tuple[int, int, int], threads: int) -> Path:
    """Make a campaign of a block of argon that runs as long as it is let."""
    file = folder / f"{name}.xyz"
    block = bulk("Ar", "fcc", a=5.4, cubic=True).repeat(repeat)
    block.pbc = False
    block.rattle(0.02, seed=1)
    write(file, block, format="xyz")
    given = settings.from_dict(
        {
            "structure": {"file": str(file)},
            "potential": {"model": "lennard-jones", "threads": threads},
            "dynamics": {"temperature_K": 10, "timestep_fs": 5, "steps": 10_000_000},
            "trust": {"initial_labels": 2, "initial_stride": 10_000},  # later than is watched
            "labelling": {"reference": "teacher:lennard-jones:0.0104:3.40"},
        }
    )
    worker.prepare(folder / name, given)
    return folder / name


@contextlib.contextmanager
def server(directory: Path, home: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serve the page in a process of its own."""
    process, address = launched(directory, home)
    try:
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


class Writer(threading.Thread):
    """Notes when each live frame was written, by its first three atoms."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.written: dict[str, float] = {}
        self.steps_per_s = 0.0
        self._reader, self._ends = CampaignReader(directory), threading.Event()

    def run(self) -> None:
        """Look at the live file until told to end."""
        while not self._ends.wait(0.008):
            live = self._reader.live()
            if live is not None:
                self.written.setdefault(key(live.positions), live.timestamp)
                self.steps_per_s = live.steps_per_s

    def end(self) -> None:
        """Stop looking."""
        self._ends.set()
        self.join()


def key(positions: np.ndarray) -> str:
    """The first nine float32 numbers as JavaScript joins them: each as the nearest double."""
    return ",".join(_number(float(x)) for x in positions[:3].ravel())


def _number(x: float) -> str:
    return repr(int(x)) if x == int(x) else repr(x)


def ages(page: Page, directory: Path, seconds: float = WATCH_S) -> dict[str, float]:
    """Return the age of frames on the screen, ms, over some seconds of a running campaign."""
    writer = Writer(directory)
    writer.start()
    page.locator(".stage").evaluate(RECORD)
    psutil.cpu_percent()
    time.sleep(seconds)
    busy = psutil.cpu_percent()
    writer.end()
    seen = page.evaluate("window.__seen")
    known = [1000 * (at / 1000 - writer.written[k]) for k, at in seen if k in writer.written]
    if len(known) < 0.5 * len(seen) or not known:
        raise RuntimeError(f"only {len(known)} of {len(seen)} frames on the screen were recognised")
    return {
        "median_ms": float(np.median(known)),
        "p95_ms": float(np.percentile(known, 95)),
        "written_hz": len(writer.written) / seconds,
        "shown_hz": len(seen) / seconds,
        "steps_per_s": writer.steps_per_s,
        "machine_busy_percent": busy,
    }


def opened(page: Page, address: str) -> float:
    """Open the page; return the seconds until the first atoms are drawn."""
    began = time.perf_counter()
    page.goto(address)
    page.wait_for_function(DRAWN, polling=20)
    return time.perf_counter() - began


DRAWN = """() => {
  const find = (root) => {
    for (const el of root.querySelectorAll("*")) {
      if (el.classList.contains("stage") && Number(el.dataset.frames) > 0) return true;
      if (el.shadowRoot && find(el.shadowRoot)) return true;
    }
    return false;
  };
  return find(document);
}"""

SHOWN = """(target, selector) => new Promise((resolve) => {
  const find = (root) => {
    for (const el of root.querySelectorAll("*")) {
      if (el.matches(selector)) return el;
      const inside = el.shadowRoot && find(el.shadowRoot);
      if (inside) return inside;
    }
  };
  const began = performance.now();
  target.click();
  const look = () => {
    if (find(document)?.getBoundingClientRect().width > 0) resolve(performance.now() - began);
    else requestAnimationFrame(look);
  };
  look();
})"""


def turn(page: Page, tab: str, content: str) -> float:
    """Click a tab; return the ms until its content has a place on the screen."""
    return float(page.get_by_role("tab", name=tab).evaluate(SHOWN, content))


def stopping(page: Page, directory: Path) -> tuple[float, float]:
    """Pause by a click; return the ms until the page says so and until no step is made any more."""
    with CampaignReader(directory) as reader:
        began = time.perf_counter()
        target = page.get_by_role("button").filter(has_text=re.compile("Pause$")).first
        target.click()
        while reader.state().phase != "paused":
            time.sleep(0.002)
        halted = 1000 * (time.perf_counter() - began)
    page.locator(".state").filter(has_text="Paused").wait_for()
    return 1000 * (time.perf_counter() - began), halted


READY = (
    '{"msgid": "1", "msgtype": "PATCH-DOC"}', "{}",
    '{"events": [{"kind": "MessageSent", "msg_type": "bokeh_event", "msg_data": {"type": "event", '
    '"name": "document_ready", "values": {"type": "map", "entries": []}}}]}',
)  # fmt: skip
"""What a browser says when it shows the page (Bokeh's protocol); frames are sent from then on."""


async def _watch(address: str, n: int, received: list[int], end: asyncio.Event) -> None:
    """Open `n` sessions as a browser does, and read what the server sends them."""
    client = AsyncHTTPClient()

    async def viewer(index: int) -> None:
        body = (await client.fetch(address, request_timeout=120)).body.decode()
        token = re.search(r'"token":"([^"]+)"', body)
        assert token is not None
        socket = await websocket_connect(
            address.replace("http", "ws") + "/ws", subprotocols=["bokeh", token.group(1)]
        )
        await socket.read_message()  # the server's word that it listens
        for part in READY:
            await socket.write_message(part)
        while not end.is_set() and await socket.read_message() is not None:
            received[index] += 1
        socket.close()

    viewers = [asyncio.create_task(viewer(i)) for i in range(n)]
    await end.wait()
    for task in viewers:
        task.cancel()
    await asyncio.gather(*viewers, return_exceptions=True)


@contextlib.contextmanager
def viewers(address: str, n: int) -> Iterator[list[int]]:
    """Keep `n` further pages connected; yields the messages each has received."""
    received, loops = [0] * n, {}
    ready = threading.Event()

    async def run() -> None:
        loops["loop"], loops["end"] = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        await _watch(address, n, received, loops["end"])

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    ready.wait()
    deadline = time.monotonic() + 180
    while min(received) < 50 and time.monotonic() < deadline:
        time.sleep(0.2)
    if min(received) < 50:
        raise RuntimeError(f"a viewer was sent nothing: {received}")
    try:
        yield received
    finally:
        loops["loop"].call_soon_threadsafe(loops["end"].set)
        thread.join(20)


@contextlib.contextmanager
def stage() -> Iterator[tuple[Page, str, psutil.Process, Path]]:
    """Two running campaigns on two cores, a server and a page on the first."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ends:
        home = Path(folder)
        shown = crystal(home, "argon", (5, 5, 10), threads=1)
        other = worker.WorkerHandle(crystal(home, "other", (4, 4, 4), threads=1))
        first = worker.WorkerHandle(shown)
        ends.callback(first.kill)
        ends.callback(other.kill)
        address, process = ends.enter_context(server(shown, home))
        browser = ends.enter_context(sync_playwright()).chromium.launch(
            executable_path=CHROMIUM, args=[*FLAGS, "--enable-precise-memory-info"]
        )
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(120_000)
        opened(page, address)
        Commander(other.directory).post(ev.Start())
        other.start()
        page.get_by_role("button").filter(has_text=re.compile("Start$")).first.click()
        with CampaignReader(shown) as reader:
            while (live := reader.live()) is None or live.step < 20:
                time.sleep(0.1)
        yield page, address, process, shown
        browser.close()


def frames() -> dict[str, float]:
    """Measure the age of frames on one page."""
    with stage() as (page, _, _, directory):
        return ages(page, directory)


def clicks() -> dict[str, Any]:
    """Measure pauses, turns between tabs, and reloads."""
    with stage() as (page, address, _, directory):
        said, halted = [], []
        for _ in range(REPEATS):
            a, b = stopping(page, directory)
            said.append(a)
            halted.append(b)
            page.get_by_role("button").filter(has_text=re.compile("Start$")).click()
            page.get_by_role("button").filter(has_text=re.compile("Pause$")).wait_for()
            time.sleep(0.5)
        turns = []
        for _ in range(REPEATS):
            turns += [turn(page, "Log", ".log"), turn(page, "Traces", ".traces")]
        reloads = [opened(page, address) for _ in range(5)]
    return {
        "pause_shown_ms": _spread(said),
        "halted_ms": _spread(halted),
        "tab_ms": _spread(turns),
        "reload_s": _spread(reloads),
    }


def crowd() -> dict[str, float]:
    """Measure the age of frames on one page while nineteen others watch."""
    with stage() as (page, address, process, directory), viewers(address, VIEWERS - 1) as received:
        process.cpu_percent()
        before = list(received)
        found = ages(page, directory)
        rates = (np.array(received) - before) / WATCH_S
        return {
            **found,
            "server_percent_of_a_core": process.cpu_percent(),
            "slowest_viewer_messages_hz": float(rates.min()),
            "server_MB": process.memory_info().rss / 2**20,
        }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "worst": max(values),
    }


def soak(minutes: float) -> dict[str, Any]:
    """Watch server memory and page heap, MB, once a minute while a campaign runs."""
    with stage() as (page, _, process, directory):
        session = page.context.new_cdp_session(page)
        samples = []
        began = time.monotonic()
        while time.monotonic() - began < 60 * minutes:
            session.send("HeapProfiler.collectGarbage")
            heap = session.send("Runtime.getHeapUsage")["usedSize"]
            samples.append(
                {
                    "minute": (time.monotonic() - began) / 60,
                    "server_MB": process.memory_info().rss / 2**20,
                    "heap_MB": heap / 2**20,
                }
            )
            time.sleep(30)
        with CampaignReader(directory) as reader:
            steps = reader.state().step
    return {"minutes": minutes, "steps": steps, "samples": samples}


def trend(samples: list[dict[str, float]], what: str) -> dict[str, float]:
    """Return start, end and slope (MB per hour) of the samples after the first five minutes."""
    late = [s for s in samples if s["minute"] >= 5] or samples
    slope = np.polyfit([s["minute"] / 60 for s in late], [s[what] for s in late], 1)[0]
    return {"start": late[0][what], "end": late[-1][what], "MB_per_hour": float(slope)}


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(prog="flywise bench app")
    parser.add_argument("--soak", type=float, default=30.0, metavar="MINUTES")
    minutes = parser.parse_args().soak
    alone, quick = cell("app", "frames", frames), cell("app", "clicks", clicks)
    many = cell("app", "crowd", crowd)
    columns = ("median_ms", "p95_ms", "written_hz", "shown_hz", "machine_busy_percent")
    print(
        table(
            "Frame to screen, 1,000 atoms, both cores busy",
            ("pages", *columns),
            [
                (name, *(row[c] for c in columns))
                for name, row in (("1", alone), (str(VIEWERS), many))
            ],
        )
    )
    rows = [
        (name, *quick[what].values())
        for name, what in (
            ("Pause clicked to Paused shown, ms", "pause_shown_ms"),
            ("Pause clicked to no further step, ms", "halted_ms"),
            ("tab clicked to shown, ms", "tab_ms"),
            ("reload to atoms, s", "reload_s"),
        )
    ]
    print(table("Clicks and reload", ("what", "median", "95th percentile", "worst"), rows))
    if minutes > 0:
        run = cell("app", f"soak-{minutes:g}", lambda: soak(minutes))
        kinds = {w: trend(run["samples"], w) for w in ("server_MB", "heap_MB")}
        print(
            table(
                f"Soak, {run['minutes']:g} minutes, {run['steps']:,} steps, from minute 5 on",
                ("memory", "start", "end", "MB per hour"),
                [(w, *kinds[w].values()) for w in kinds],
            )
        )
    print(machine(context(threads=1, seeds="positions 1")))


if __name__ == "__main__":
    main()
