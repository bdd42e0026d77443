"""A small argon campaign, a page served on it in a process of its own, and a watched browser."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ase.build import bulk
from ase.cluster import Icosahedron
from ase.io import write
from playwright.sync_api import Browser, Page, Route, sync_playwright

from app import state
from core import settings, worker
from core.worker import WorkerHandle

FLAGS = [
    "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-gpu-compositing",  # WebGL in software is slow enough: not the whole page as well
    "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PATIENCE_S = 60
"""Longest wait for something that takes a second on an idle machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = pytest.mark.skip(
        reason="no Chromium on this machine (chromium or google-chrome in PATH)"
    )
    for item in items:
        if CHROMIUM is None and item.get_closest_marker("browser"):
            item.add_marker(missing)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def run_async(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run in a thread of its own: in this one the loop of a browser may be running."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, coroutine).result()


def argon_campaign(
    folder: Path, mode: str = "threshold", energy: str = "0.2 kcal/mol", steps: int = 100_000
) -> Path:
    """Make a campaign of thirteen argon atoms, labelled by other Lennard-Jones parameters."""
    file = folder / "argon.xyz"
    write(file, Icosahedron("Ar", 2, latticeconstant=5.4), format="xyz")
    given = settings.from_dict(
        {
            "structure": {"file": str(file)},
            "potential": {"model": "lennard-jones"},
            "dynamics": {"temperature_K": 20, "timestep_fs": 5, "steps": steps},
            "trust": {"energy_tolerance": energy, "force_tolerance": 0.02},
            "posterior": {"noise_energy": 0.003, "noise_force": 0.03},
            "labelling": {"reference": "teacher:lennard-jones:0.0110:3.36", "mode": mode},
        }
    )
    state.create(folder / "argon", given)
    return folder / "argon"


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a campaign that ran some hundred steps to its end; do not change it."""
    folder = tmp_path_factory.mktemp("ran")
    directory = argon_campaign(folder, energy="0.05 kcal/mol", steps=800)
    ended = worker.run_inline(directory)
    assert ended.phase == "finished", ended.paused
    return directory


@pytest.fixture(scope="session")
def breathed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of an argon crystal that ran under pressure, learning stress; leave it."""
    folder = tmp_path_factory.mktemp("breathed")
    write(folder / "argon.extxyz", bulk("Ar", cubic=True).repeat((2, 2, 2)))
    given = settings.from_dict(
        {
            "structure": {"file": str(folder / "argon.extxyz")},
            "potential": {"model": "lennard-jones"},
            "dynamics": {
                "ensemble": "npt", "pressure": "0.3 GPa", "temperature_K": 20, "timestep_fs": 5,
                "steps": 600,
            },
            "trust": {
                "energy_tolerance": "2 kcal/mol", "force_tolerance": 0.02,
                "stress_tolerance": "0.05 GPa",
            },
            "labelling": {"reference": "teacher:lennard-jones:0.0110:3.36", "mode": "threshold"},
        }
    )  # fmt: skip
    state.create(folder / "crystal", given)
    ended = worker.run_inline(folder / "crystal")
    assert ended.phase == "finished" and ended.trusted, ended.paused
    return folder / "crystal"


@contextlib.contextmanager
def served(directory: Path, home: Path, *command: str) -> Iterator[str]:
    """Serve a page in a process of its own; yield its address; end it and the worker after."""
    server, address = launched(directory, home, *command)
    try:
        yield address
    finally:
        server.terminate()
        server.wait(20)
        WorkerHandle(directory).kill()


def launched(directory: Path, home: Path, *command: str) -> tuple[subprocess.Popen, str]:
    """Start a server; return its process and its address once it answers."""
    port, log = free_port(), home / "server.log"
    line = command or ("-m", "app", "serve", str(directory), "--port", "{port}")
    with open(log, "w") as out:
        server = subprocess.Popen(
            [sys.executable, *[part.format(port=port) for part in line]],
            stdout=out, stderr=out, env={**os.environ, "FLYWISE_HOME": str(home)},
        )  # fmt: skip
    return server, answering(f"http://127.0.0.1:{port}", server, log)


@pytest.fixture
def launch(tmp_path: Path) -> Callable[[Path], tuple[subprocess.Popen, str]]:
    """A server that the test ends itself, however rudely."""
    return lambda directory: launched(directory, tmp_path)


@pytest.fixture
def argon(tmp_path: Path) -> Callable[..., Path]:
    return lambda *given: argon_campaign(tmp_path, *given)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., str]]:
    with contextlib.ExitStack() as ends:
        yield lambda directory, *command: ends.enter_context(served(directory, tmp_path, *command))


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page on a campaign that nobody starts."""
    folder = tmp_path_factory.mktemp("ready")
    with served(argon_campaign(folder), folder) as address:
        yield address


def answering(address: str, server: subprocess.Popen, log: Path) -> str:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 1).close()
            return address
        time.sleep(0.1)
    pytest.fail(f"the server does not answer:\n{log.read_text()}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def watched_pages(chromium: Browser, serve: Callable[..., str]) -> Iterator[Callable[[], Page]]:
    """Opens pages that may reach this machine only; their consoles must stay free of errors."""
    wrong: list[str] = []
    pages: list[Page] = []

    def guard(route: Route) -> None:
        if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            wrong.append(f"asked for {route.request.url}")
            route.abort()

    def make() -> Page:
        page = chromium.new_page(viewport={"width": 1440, "height": 900})
        page.route("**/*", guard)
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.set_default_timeout(1000 * PATIENCE_S)
        pages.append(page)
        return page

    yield make
    for page in (p for p in pages if not p.is_closed()):
        page.unroute_all(behavior="ignoreErrors")
        page.close()
    assert wrong == []


@pytest.fixture
def watched(watched_pages: Callable[[], Page]) -> Page:
    """One such page."""
    return watched_pages()
