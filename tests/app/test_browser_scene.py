"""The 3D view and the traces in a Chromium: picks, measures, frames, camera, picture."""

import io
import re

import ase.data
import numpy as np
import pytest
from ase import Atoms
from PIL import Image
from playwright.sync_api import Page, expect

from app.widgets.molecule import element_color

from .test_browser import button, drawn, opened, pixels, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

CROWD = Atoms(
    "ONSClIP",  # no two of one colour; the second hides the first or is hidden by it
    [[0, 0, 0], [0.3, 0.1, 2.5], [3, 1, 0], [-3, 1, 1], [0, 3, 0.5], [0.4, -3, 1]],
)
SERVER = f"""
import sys
import numpy as np, panel as pn
from app.widgets.molecule import Molecule

def page():
    view = Molecule(sizing_mode="stretch_both", colour_by="element", camera_key="crowd")
    view.set_atoms(np.array({CROWD.numbers.tolist()}), np.array({CROWD.positions.tolist()}), None)
    view.view = [1.0, 0, 0, 0, 1, 0, 0, 0, 1]
    return pn.Column(view, width=600, height=500)

pn.serve(page, port=int(sys.argv[1]), address="127.0.0.1", show=False,
         websocket_origin=["127.0.0.1:" + sys.argv[1]])
"""


@pytest.fixture
def crowd(watched, serve, tmp_path) -> Page:
    """A page with nothing on it but six atoms of six elements."""
    script = tmp_path / "crowd.py"
    script.write_text(SERVER)
    return opened(watched, serve(tmp_path, str(script), "{port}"))


def place(page: Page, atom: int) -> dict[str, float]:
    """Where on the canvas an atom is: x, y, and pixels per Å there."""
    return page.locator(".stage").evaluate(
        "(el, i) => { const {x, y, pixels} = el.project(i); return {x, y, pixels}; }", atom
    )


def click(page: Page, x: float, y: float) -> None:
    page.locator(".stage canvas").click(position={"x": x, "y": y})


def test_a_click_picks_the_atom_that_is_drawn_there(crowd):
    picture = pixels(crowd)
    colors = np.array([element_color(z) for z in CROWD.numbers])
    colors /= np.linalg.norm(colors, axis=1, keepdims=True)
    seen = set()
    for atom, number in enumerate(CROWD.numbers):
        at = place(crowd, atom)
        x = at["x"] + 0.5 * (0.42 * ase.data.covalent_radii[number] + 0.1) * at["pixels"]
        color = picture[round(at["y"]), round(x)]
        shown = int(np.argmax(colors @ (color / np.linalg.norm(color))))
        click(crowd, x, at["y"])
        expect(crowd.locator(".measure")).to_contain_text(f"{CROWD.symbols[shown]}{shown + 1} ")
        crowd.keyboard.press("Escape")
        expect(crowd.locator(".measure")).to_be_hidden()
        seen.add(shown)
    assert len(seen) == 5  # of O and N only the nearer one


def test_two_three_and_four_atoms_are_measured(crowd):
    at = [place(crowd, i) for i in (2, 4, 3, 5)]
    known = [
        "", f"{CROWD.get_distance(2, 4):.3f} Å", f"{CROWD.get_angle(2, 4, 3):.1f} °",
        f"{(CROWD.get_dihedral(2, 4, 3, 5) + 180) % 360 - 180:.1f} °",
    ]  # fmt: skip
    for point, value in zip(at, known, strict=True):
        click(crowd, point["x"], point["y"])
        expect(crowd.locator(".measure")).to_contain_text(value)
    expect(crowd.locator(".measure")).to_contain_text("Dihedral S3–I5–Cl4–P6")
    assert crowd.locator(".picks circle").count() == 4
    click(crowd, at[0]["x"], at[0]["y"])  # once more: no longer picked
    assert crowd.locator(".picks circle").count() == 3


def test_the_camera_outlives_a_reload_and_can_be_reset(crowd):
    first = place(crowd, 2)
    box = crowd.locator(".stage").bounding_box()
    crowd.mouse.move(box["x"] + 40, box["y"] + 40)
    crowd.mouse.down()
    crowd.mouse.move(box["x"] + 160, box["y"] + 90, steps=4)
    crowd.mouse.up()
    turned = place(crowd, 2)
    assert abs(turned["x"] - first["x"]) > 20
    expect(crowd.locator(".measure")).to_be_hidden()  # a drag picks nothing
    crowd.wait_for_timeout(500)
    opened(crowd, crowd.url)
    assert place(crowd, 2)["x"] == pytest.approx(turned["x"], abs=1)
    crowd.get_by_role("button", name="Reset view").click()
    assert place(crowd, 2)["x"] == pytest.approx(first["x"], abs=1)


def test_a_picture_is_saved_at_twice_the_size(crowd):
    with crowd.expect_download() as download:
        crowd.get_by_role("button", name="Save picture").click()
    with open(download.value.path(), "rb") as file:
        picture = Image.open(io.BytesIO(file.read())).convert("RGB")
    box = crowd.locator(".stage canvas").bounding_box()
    assert picture.size == (2 * round(box["width"]), 2 * round(box["height"]))
    assert drawn(np.asarray(picture, dtype=int)) > 0.03
    assert drawn(pixels(crowd)) > 0.03  # the view itself stays as it was


def test_frames_are_scrubbed_visited_and_left_for_the_live_one(watched, serve, ran):
    page, said = opened(watched, serve(ran)), watched.locator(".said")
    expect(said).to_contain_text("live")
    page.get_by_role("button", name="Previous flagged frame").click()
    expect(said).to_contain_text("labelled")
    expect(page).to_have_url(re.compile("frame="))
    slider = page.get_by_role("slider", name="Stored frames")
    slider.press("Home")
    expect(said).to_contain_text("step 0 ")
    before = pixels(page)
    slider.press("PageDown")
    slider.press("PageUp")
    slider.press("ArrowRight")
    wait_for(lambda: np.abs(pixels(page) - before).max() > 60)
    page.get_by_role("button", name="Live").click()
    expect(said).to_contain_text("live")


def test_a_click_in_a_trace_shows_the_frame_and_a_zoom_can_be_undone(watched, serve, ran):
    page = opened(watched, serve(ran))
    expect(page.locator(".energy canvas").first).to_be_visible()
    box = page.locator(".energy canvas").first.bounding_box()

    def shown() -> bool:  # a click is lost before the server knows that the page is there
        page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])
        page.wait_for_timeout(1000)
        return bool(re.search(r"^step \d{3} ", page.locator(".said").inner_text()))

    wait_for(shown)
    expect(button(page, "Follow")).to_be_hidden()
    page.mouse.wheel(0, -300)
    expect(button(page, "Follow")).to_be_visible()
    button(page, "Follow").click()
    expect(button(page, "Follow")).to_be_hidden()


def test_a_measured_distance_is_traced_over_the_stored_frames(watched, serve, ran):
    page = opened(watched, serve(ran))
    for atom in (0, 7):
        at = place(page, atom)
        click(page, at["x"], at["y"])
    expect(page.locator(".measure")).to_contain_text("Distance")
    page.get_by_role("button", name="Trace", exact=True).click()
    expect(page.locator(".coordinate .head")).to_contain_text("Distance Ar")
    text = page.locator(".measure b").inner_text()
    expect(page.locator(".coordinate .now")).to_have_text(text)
    page.get_by_role("button", name="Stop trace").click()
    expect(page.locator(".coordinate")).to_be_hidden()
