"""Take the README's screenshot: the ethanol demo after some hundred steps.

Usage: python assets/screenshot.py [SETTINGS.toml] [--out FILE.png] [--steps N] [--dark] [--phone]
Needs a Chromium and playwright; runs a campaign of its own in a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from app import state
from app.main import free_port
from core import settings
from core.worker import WorkerHandle

HERE = Path(__file__).resolve().parent
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def main() -> None:
    """Make the campaign, open the page, wait for the step, take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="?", default=HERE.parent / "examples" / "ethanol.toml")
    parser.add_argument("--out", type=Path, default=HERE / "screenshot.png")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--phone", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / Path(given.settings).stem
        state.create(directory, settings.load(given.settings))
        port = free_port(0)
        server = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", str(directory), "--port", str(port)],
            env={**os.environ, "CI": "1"},
        )
        try:
            photograph(f"http://127.0.0.1:{port}", directory, given)
        finally:
            server.terminate()
            server.wait()
            WorkerHandle(directory).kill()


def photograph(address: str, directory: Path, given: argparse.Namespace) -> None:
    """Open the page at `address`, start the campaign, save the picture at the asked step."""
    size = {"width": 390, "height": 844} if given.phone else {"width": 1440, "height": 900}
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport=size)
        page.set_default_timeout(120_000)
        for _ in range(100):
            try:
                page.goto(address + ("/?theme=dark" if given.dark else ""))
                break
            except Exception:  # the server is not up yet
                time.sleep(0.3)
        page.get_by_role("button").filter(has_text="Start").click()
        shown = state.campaign(directory)
        while True:
            phase = shown.glance().state.phase
            if phase in ("finished", "failed"):
                break
            if shown.glance().step >= given.steps and phase == "running":
                break
            page.wait_for_timeout(200)
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)
        page.screenshot(path=given.out)
        browser.close()


if __name__ == "__main__":
    main()
