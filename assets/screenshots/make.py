"""Take the pictures of the README anew: `make screenshots`.

A real campaign (ethanol, the bundled model, GFN2-xTB) runs until a frame waits for a decision; then
a Chromium shows it in both modes, on a desk and on a phone, tab by tab. Takes a few minutes.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from core import settings, worker
from core.campaign import events as ev
from core.campaign.quality import ENOUGH
from core.campaign.state import State

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
sys.path.insert(0, str(ROOT / "tests" / "app"))
from conftest import CHROMIUM, FLAGS, served  # noqa: E402

DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
STEPS = 1500
"""Fewest steps before the campaign asks for decisions."""
FORCES = 0.12
"""Tolerance at first, eV/Å: narrow enough for labels that the plots of calibration need."""
COLOURS = 200


def campaign(home: Path) -> Path:
    """Run the ethanol demo until a frame waits for a person; return its directory."""
    directory = home / "campaigns" / "ethanol"
    directory.parent.mkdir(parents=True)
    given = settings.load(ROOT / "examples" / "ethanol.toml")
    worker.prepare(directory, given.with_value("trust.force_tolerance", FORCES))
    worker.run_inline(directory, until=_far_enough)
    ask = ev.ChangeSetting(path="labelling.mode", value="approve", who="Ada")
    stricter = ev.ChangeSetting(path="trust.force_tolerance", value=0.1, who="Ada")
    state = worker.run_inline(directory, [ask, stricter])
    if state.phase != "deciding":
        raise RuntimeError(f"the campaign ended {state.phase} before it asked for a decision")
    return directory


def _far_enough(state: State) -> bool:
    """Whether there is something to see: steps, and labels enough for the plots of calibration."""
    first = state.settings.trust.initial_labels
    return state.step >= STEPS and state.n_labels >= first + ENOUGH


def save(page: Page, name: str, *, full: bool = False) -> None:
    """Store what the page shows, with few colours and so few bytes."""
    page.wait_for_timeout(2500)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=full))).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)
    print(f"{name}.png", (FOLDER / f"{name}.png").stat().st_size // 1024, "kB", flush=True)


def show(page: Page, address: str, viewport: dict[str, int]) -> None:
    """Open a campaign and wait for its atoms."""
    page.set_viewport_size(viewport)
    page.goto(address)
    page.locator(".stage[data-engine]").wait_for()


def main() -> None:
    """Take all pictures."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        os.environ["HOME"] = folder  # shown on the home page as "~"
        home = Path(folder) / "flywise"
        directory = campaign(home)
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*FLAGS, "--hide-scrollbars"]
        )
        worker.WorkerHandle(directory).start()
        with served(directory, home) as address:
            page = browser.new_page()  # one tab for all pictures: it keeps the right to drive
            page.set_default_timeout(120_000)
            for mode in ("light", "dark"):
                theme = "dark" if mode == "dark" else "default"
                show(page, f"{address}/?theme={theme}", DESK)
                for tab in ("Traces", "Calibration", "Settings", "Log"):
                    page.get_by_role("tab", name=tab).click()
                    save(page, f"{tab.lower()}-{mode}")
                show(page, f"{address}/?theme={theme}", PHONE)
                save(page, f"phone-{mode}", full=True)
                page.set_viewport_size(DESK)
                for name, what, shown in (
                    ("home", "home", "Within interval"),
                    ("new", "set-up", "measured just now"),
                ):
                    page.goto(f"{address}/?page={name}&theme={theme}")
                    page.get_by_text(shown).first.wait_for()
                    save(page, f"{what}-{mode}")
        browser.close()


if __name__ == "__main__":
    main()
