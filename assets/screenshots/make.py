"""Take the pictures of the README anew: `make screenshots`.

A real campaign (ethanol, the bundled model, GFN2-xTB) runs until a frame waits for a decision; then
a Chromium shows it in both modes, on a desk and on a phone, tab by tab. Takes a few minutes.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from core import settings, worker
from core.campaign import events as ev

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
STEPS = 400
"""Steps before the campaign asks for decisions."""
FLAGS = [
    "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-gpu-compositing", "--hide-scrollbars",
]  # fmt: skip
COLOURS = 200


def campaign(home: Path) -> Path:
    """Run the ethanol demo until a frame waits for a person; return its directory."""
    directory = home / "campaigns" / "ethanol"
    directory.parent.mkdir(parents=True)
    worker.prepare(directory, settings.load(ROOT / "examples" / "ethanol.toml"))
    worker.run_inline(directory, until=lambda state: state.step >= STEPS)
    ask = ev.ChangeSetting(path="labelling.mode", value="approve", who="Ada")
    stricter = ev.ChangeSetting(path="trust.force_tolerance", value=0.1, who="Ada")
    state = worker.run_inline(directory, [ask, stricter])
    if state.phase != "deciding":
        raise RuntimeError(f"the campaign ended {state.phase} before it asked for a decision")
    return directory


@contextlib.contextmanager
def server(directory: Path, home: Path) -> Iterator[str]:
    """Serve the page; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve", str(directory), "--port", str(port)],
        cwd=ROOT, env={**os.environ, "FLYWISE_HOME": str(home)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
        worker.WorkerHandle(directory).kill()


def save(page: Page, name: str, *, full: bool = False) -> None:
    """Store what the page shows, with few colours and so few bytes."""
    page.wait_for_timeout(2500)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=full))).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)
    print(f"{name}.png", (FOLDER / f"{name}.png").stat().st_size // 1024, "kB", flush=True)


def opened(browser: Browser, address: str, viewport: dict[str, int]) -> Page:
    """Open a campaign and wait for its atoms."""
    page = browser.new_page(viewport=viewport)
    page.set_default_timeout(120_000)
    page.goto(address)
    page.locator(".stage[data-engine]").wait_for()
    return page


def main() -> None:
    """Take all pictures."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home = Path(folder)
        directory = campaign(home)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        worker.WorkerHandle(directory).start()
        with server(directory, home) as address:
            for mode in ("light", "dark"):
                theme = "dark" if mode == "dark" else "default"
                page = opened(browser, f"{address}/?theme={theme}", DESK)
                for tab in ("Traces", "Calibration", "Settings", "Log"):
                    page.get_by_role("tab", name=tab).click()
                    save(page, f"{tab.lower()}-{mode}")
                page.close()
                page = opened(browser, f"{address}/?theme={theme}", PHONE)
                save(page, f"phone-{mode}", full=True)
                page.close()
                page = browser.new_page(viewport=DESK)
                for name, what in (("home", "home"), ("new", "set-up")):
                    page.goto(f"{address}/?page={name}&theme={theme}")
                    page.wait_for_timeout(5000)
                    save(page, f"{what}-{mode}")
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
