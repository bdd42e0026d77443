"""Home and set-up in a Chromium, mounted in a page of their own. Non-local requests are blocked."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from .test_browser import button, pixels, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
expect.set_options(timeout=60_000)

PAGE = """
import sys
import panel as pn
import panel_material_ui as pmui
from app import main, theme
from app.views.home import Home
from app.views.setup import Setup

def page():
    place = pn.Column(margin=0, sizing_mode="stretch_width")
    def home(made=None):
        place.objects = [Home(print, lambda: place.param.update(objects=[Setup(home, home)]))]
    shown = pmui.Page(
        title="", header=[], main=[place], busy_indicator=None, sx=main._PAGE_SX,
        theme_config={"light": theme.material(theme.LIGHT), "dark": theme.material(theme.DARK)},
    )
    def paint(_=None):
        place.stylesheets = [theme.variables(theme.palette(bool(shown.dark_theme)))]
    shown.param.watch(paint, "dark_theme")
    paint()
    home()
    return shown

main._extension()
port = int(sys.argv[1])
pn.serve({"/": page}, port=port, address="127.0.0.1", show=False,
         websocket_origin=[f"127.0.0.1:{port}"])
"""


@pytest.fixture
def address(serve, tmp_path):
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {root!r})\n" + PAGE
    return serve(tmp_path, "-c", code.replace("{", "{{").replace("}", "}}"), "{port}")


def test_a_campaign_is_set_up_created_deleted_and_brought_back(watched, address, tmp_path):
    page = watched
    page.goto(address)
    expect(page.locator(".empty")).to_contain_text("No campaigns yet")
    expect(page.locator(".note")).to_be_hidden()
    button(page, "New campaign").click()
    expect(page.locator(".setup .picture circle")).to_have_count(9)
    expect(page.locator(".summary")).to_contain_text("measured just now")
    page.get_by_role("button", name="File", exact=True).click()
    page.locator("input[type=file]").set_input_files(
        {"name": "mace.model", "mimeType": "", "buffer": b"\x80\x04"}
    )
    expect(page.locator(".setup")).to_contain_text("mace.model is a pickle")
    expect(button(page, "Create campaign")).to_be_disabled()
    water = b"3\n\nO 0 0 0\nH 0.76 0 0.59\nH -0.76 0 0.59\n"
    file = {"name": "water.xyz", "mimeType": "", "buffer": water}
    for _ in range(5):  # while the former file is still being shown the next one is not taken
        page.locator("input[type=file]").set_input_files(file)
        with contextlib.suppress(AssertionError):
            expect(page.locator(".summary .formula")).to_contain_text("3 atoms", timeout=10_000)
            break
    expect(page.locator(".summary .formula")).to_contain_text("3 atoms")
    page.get_by_role("button", name="Accuracy").click()
    wanted = page.get_by_label("Confidence")
    wanted.fill("2")
    wanted.press("Enter")
    expect(page.locator(".form")).to_contain_text(["less than 1"])
    expect(button(page, "Create campaign")).to_be_disabled()
    wanted.fill("0.9")
    wanted.press("Enter")
    button(page, "Create campaign").click()
    card = page.locator(".campaign")
    expect(card).to_contain_text("Ready")
    assert (tmp_path / "campaigns" / "water" / "structure.xyz").read_bytes() == water
    button(page, "Delete").click()
    expect(page.locator(".note")).to_contain_text("water deleted.")
    expect(card).to_have_count(0)
    button(page, "Undo").click()
    expect(card).to_contain_text("Ready")


def test_home_and_setup_fit_a_phone_and_the_dark(watched, address):
    page = watched
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(address + "/?theme=dark")
    button(page, "New campaign").click()
    expect(page.locator(".setup .picture circle")).to_have_count(9)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wait_for(lambda: np.median(pixels(page, ".summary")) < 60)
    choices, summary = (page.locator(part).bounding_box() for part in (".choices", ".summary"))
    assert choices and summary and summary["y"] >= choices["y"] + choices["height"]
