"""The pages scanned by axe-core for what keeps people with disabilities out, light and dark."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from .test_browser import opened

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
SERIOUS = ("serious", "critical")


def findings(page: Page) -> list[str]:
    """What axe-core calls serious or critical, one line each with the first element concerned."""
    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:160]} ({'; '.join(x['message'] for x in node['any'])[:160]})"
        for rule in found
        if rule["impact"] in SERIOUS
        for node in rule["nodes"][:3]
    ]


@pytest.mark.parametrize("theme", ["default", "dark"])
def test_the_screen_and_its_tabs(watched, serve, ran, theme):
    page = opened(watched, serve(ran) + f"/?theme={theme}")
    for tab in ("Traces", "Calibration", "Map", "Learning", "Fine-tune", "Settings", "Log"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(1500)
        assert findings(page) == [], tab


@pytest.mark.parametrize("theme", ["default", "dark"])
def test_home_and_setup(watched, serve, argon, theme):
    address = serve(argon())
    for name in ("home", "new"):
        watched.goto(f"{address}/?page={name}&theme={theme}")
        expect(watched.get_by_role("button").first).to_be_visible()
        watched.wait_for_timeout(1500)
        assert findings(watched) == [], name
