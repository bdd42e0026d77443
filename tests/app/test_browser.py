"""The page in a Chromium, each test on a campaign of its own. Non-local requests are blocked."""

import io
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from core.campaign import events as ev
from core.campaign.loop import replay
from core.campaign.reader import CampaignReader
from core.campaign.state import State
from core.reference import make as make_reference
from core.structures import from_atoms
from core.worker import WorkerHandle

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
expect.set_options(timeout=60_000)


def pixels(page: Page, part: str = ".stage") -> np.ndarray:
    """What is drawn in a part of the page, (H, W, 3)."""
    image = Image.open(io.BytesIO(page.locator(part).first.screenshot()))
    return np.asarray(image.convert("RGB"), dtype=int)


def drawn(picture: np.ndarray) -> float:
    """The share of a picture that differs from its commonest colour."""
    colors, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    background = colors[np.argmax(counts)]
    return float((np.abs(picture - background).sum(axis=-1) > 30).mean())


def wait_for(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def opened(page: Page, address: str) -> Page:
    page.goto(address)
    expect(page.locator(".stage[data-engine]")).to_be_visible()
    wait_for(lambda: int(page.locator(".stage").get_attribute("data-frames") or 0) > 0)
    return page


def button(page: Page, name: str):
    return page.get_by_role("button").filter(has_text=re.compile(rf"{name}$"))


def able(target: Locator) -> bool:
    return target.is_visible() and target.is_enabled()


def step(page: Page) -> int:
    text = page.locator(".step dd").inner_text().split("/")[0]
    return int("".join(c for c in text if c.isdigit()))


def test_atoms_move_after_one_click_and_hold_when_told(watched, serve, argon):
    page = opened(watched, serve(argon()))
    expect(page.locator(".state")).to_contain_text("Ready")
    assert page.locator(".stage").get_attribute("data-engine") == "ngl"
    still = pixels(page)
    assert drawn(still) > 0.05
    button(page, "Start").click()
    wait_for(lambda: np.abs(pixels(page) - still).max() > 60, 20)
    expect(page.locator(".badge")).to_have_count(0)  # trusted after the first labels
    button(page, "Pause").click()
    expect(page.locator(".state")).to_contain_text("Paused")
    before = step(page)
    button(page, "10 steps").click()
    wait_for(lambda: step(page) == before + 10)
    button(page, "Stop").click()
    expect(page.locator(".state")).to_contain_text("Stopped")
    button(page, "Start").click()
    wait_for(lambda: step(page) > before + 20)


def test_flagged_frames_are_decided_by_button_and_by_key(watched, serve, argon):
    directory = argon("approve", "0.02 kcal/mol")
    page = opened(watched, serve(directory))
    button(page, "Start").click()
    expect(page.locator(".badge")).to_have_text("UNTRUSTED")
    button(page, "Approve all 8").click()
    expect(page.locator(".queue-page h2")).to_contain_text("Frame at step")
    expect(page.locator(".queue-page .over").first).to_be_visible()
    button(page, "Reject").click()
    expect(button(page, "Undo")).to_be_enabled()
    with CampaignReader(directory) as reader:
        wait_for(lambda: reader.state().counts["rejected"] == 1)
        button(page, "Undo").click()
        wait_for(lambda: reader.state().counts["rejected"] == 0)
        button(page, "Approve").click()
        wait_for(lambda: reader.state().counts["trained"] == 9)
        for key, status in (("r", "rejected"), ("s", "skipped")):
            wait_for(lambda: reader.state().counts["waiting"] > 0)
            expect(button(page, "Approve")).to_be_enabled()
            page.keyboard.press(key)
            wait_for(lambda status=status: reader.state().counts[status] == 1)
            page.keyboard.press("u")
            wait_for(lambda status=status: reader.state().counts[status] == 0)
        expect(button(page, "Approve")).to_be_enabled()
        page.keyboard.press("a")
        wait_for(lambda: reader.state().counts["trained"] == 10)
        assert {q.decided_by for q in reader.state().queue if q.decided_by} == {"page 1"}


def test_a_batch_is_proposed_approved_and_taken_back_as_one(watched, serve, argon):
    directory = argon("batch", "0.005 kcal/mol")
    page = opened(watched, serve(directory))
    button(page, "Start").click()
    button(page, "Approve all 8").click()
    with CampaignReader(directory) as reader:
        wait_for(lambda: len(reader.state().proposal) > 1)
        size = len(reader.state().proposal)
        expect(page.locator(".queue-page h2")).to_contain_text("A batch")
        button(page, f"Reject all {size}").click()
        wait_for(lambda: reader.state().counts["rejected"] == size)
        button(page, "Undo").click()
        wait_for(lambda: len(reader.state().proposal) == size)
        button(page, f"Approve all {size}").click()
        wait_for(lambda: reader.state().counts["trained"] == 8 + size)


def test_one_page_drives_and_a_forged_click_of_a_viewer_is_refused(watched_pages, serve, argon):
    directory = argon()
    address = serve(directory)
    driver = opened(watched_pages(), address)
    expect(button(driver, "Start")).to_be_enabled()
    viewer = opened(watched_pages(), address)
    expect(viewer.locator(".who")).to_contain_text("page 1 drives")
    expect(button(viewer, "Start")).to_be_disabled()
    button(viewer, "Start").evaluate(
        """async (start) => { for (const m of Bokeh.documents[0]._all_models.values())
             if (m.data?.label === "Start") m.data.disabled = false;
           for (let k = 0; k < 500 && start.disabled; k++)
             await new Promise((done) => setTimeout(done, 5));
           start.click(); }"""  # at once: the server disables it again
    )
    expect(viewer.get_by_text("This page watches and page 1 drives")).to_be_visible()
    with CampaignReader(directory) as reader:
        assert reader.commands_since(0) == [] and reader.state().phase == "ready"
    driver.reload()
    expect(button(driver, "Start")).to_be_enabled()  # the same tab drives on
    button(viewer, "Ask to drive").click()
    button(driver, "Hand over").click()
    expect(button(viewer, "Start")).to_be_enabled()
    expect(button(driver, "Start")).to_be_disabled()
    viewer.close()
    expect(button(driver, "Start")).to_be_enabled(timeout=90_000)  # the lease ends by itself


def test_a_reload_in_mid_run_shows_the_same_frame_again(watched, serve, argon):
    directory = argon("approve", "0.02 kcal/mol")
    page = opened(watched, serve(directory))
    button(page, "Start").click()
    button(page, "Approve all 8").click()
    row = page.get_by_role("option").filter(has_text="waiting").first
    row.click()
    page.wait_for_url(re.compile(r"frame=\d+"))
    before = step(page)
    page.reload()
    opened_again = page.locator(".stage[data-engine]")
    expect(opened_again).to_be_visible()
    page.wait_for_url(re.compile(r"frame=\d+"))
    wait_for(lambda: step(page) >= before)


def arrived(reader: CampaignReader) -> int:
    """Return how many labels have come, whether they have been learned or not."""
    counts = reader.state().counts
    return counts["labelled"] + counts["trained"]


def unsettled(reader: CampaignReader) -> int:
    """Return how many of the first eight labels have neither come nor been given up."""
    state = reader.state()
    return 8 - arrived(reader) - len(state.ids("failed")) - len(state.ids("skipped"))


def test_a_failed_label_is_shown_and_tried_again(watched, serve, argon):
    directory = argon("approve", "0.02 kcal/mol")
    page = opened(watched, serve(directory))
    page.get_by_role("tab", name="Settings").click()
    last, after = page.get_by_label("Resume from"), page.get_by_text("Set at the start")
    expect(after).to_be_visible()
    form, fixed = last.bounding_box(), after.bounding_box()
    assert form and fixed and form["y"] + form["height"] <= fixed["y"]  # one below the other
    limit = page.get_by_label("Time limit of a label")
    limit.fill("0.001")
    limit.press("Enter")
    button(page, "Start").click()
    button(page, "Approve all 8").click()
    expect(page.get_by_role("option").filter(has_text="failed").first).to_be_visible()
    expect(page.locator(".queue-page")).to_contain_text("The label failed")
    limit.fill("60")
    limit.press("Enter")
    with CampaignReader(directory) as reader:
        wait_for(lambda: reader.state().settings.labelling.time_limit_s == 60)
        wait_for(lambda: not unsettled(reader))  # others were given up after the first
        for _ in range(8):
            given_up = [*reader.state().ids("failed"), *reader.state().ids("skipped")]
            if not given_up:
                break
            rows = page.get_by_role("option").filter(has_text=re.compile("failed|skipped"))
            expect(rows).to_have_count(len(given_up))  # else the page still shows the last one
            rows.first.click()
            expect(page).to_have_url(re.compile(r"[?&]frame=\d"))  # the choice has come back
            button(page, "Retry").click()
            labelled = 9 - len(given_up)
            wait_for(lambda n=labelled: arrived(reader) >= n)
        if reader.state().phase == "paused":
            button(page, "Start").click()
        wait_for(lambda: reader.state().counts["trained"] == 8)


def test_labels_computed_by_hand_are_refused_and_accepted(watched, serve, argon):
    directory = argon("approve", "0.02 kcal/mol")
    page = opened(watched, serve(directory))
    button(page, "Start").click()
    expect(button(page, "Approve all 8")).to_be_enabled()
    page.get_by_role("button", name="Label elsewhere").click()
    with page.expect_download() as download:
        page.locator(".queue-exchange").get_by_role("button", name="Download").click()
    frames = ase.io.read(download.value.path(), ":", format="extxyz")
    assert len(frames) == 8
    teacher = make_reference("teacher:lennard-jones:0.0110:3.36")

    def file(factor: float) -> dict:
        out = io.StringIO()
        for atoms in frames:
            label = teacher.compute(from_atoms(atoms))
            atoms.calc = SinglePointCalculator(
                atoms, energy=label.energy, forces=factor * label.forces
            )
            ase.io.write(out, atoms, format="extxyz")
        text = out.getvalue().encode()
        return {"name": "labels.extxyz", "mimeType": "", "buffer": text}

    upload = page.locator(".queue-exchange input[type=file]")
    with CampaignReader(directory) as reader:
        upload.set_input_files(file(-1.0))
        expect(page.locator(".queue-exchange .bad")).to_contain_text("nothing was imported")
        expect(page.locator(".queue-exchange .bad")).to_contain_text("look like gradients")
        assert reader.state().counts["waiting"] == 8
        upload.set_input_files(file(1.0))
        expect(page.locator(".queue-exchange .good")).to_contain_text("Taken in")
        wait_for(lambda: reader.state().counts["trained"] == 8)
        assert {q.decided_by for q in reader.state().queue[:8]} == {"page 1"}
    expect(page.locator(".badge")).to_have_count(0)  # trusted, without a label bought


SLOW_ANSWERS = """
from panel.io.state import _state
from panel.reactive import Syncable
Syncable._debounce = 1500
_state._unblocked = lambda self, doc: False
from app.__main__ import main
main()
"""
"""A server that answers late, its messages still on their way: two things happen before."""
HAS_MAP = """() => Bokeh.documents.some(d => d.roots().some(r =>
    [...r.references()].some(m => m.css_classes && m.css_classes.includes("map"))))"""


def test_a_key_pressed_right_after_a_tab_leaves_both_answered(watched, serve, ran):
    address = serve(ran, "-c", SLOW_ANSWERS, "serve", str(ran), "--port", "{port}")
    page = opened(watched, address)
    wait_for(lambda: page.evaluate(HAS_MAP))
    page.get_by_role("tab", name="Map").click()
    page.keyboard.press("?")
    sheet = page.get_by_text("show or hide this sheet")
    expect(sheet).to_be_visible()
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()
    wait_for(lambda: drawn(pixels(page, ".map canvas")) > 0.005)


def test_home_lists_the_campaign_and_leads_to_it(watched, serve, argon):
    directory = argon()
    address = serve(directory)
    watched.goto(address + "/?page=home")
    expect(watched.get_by_role("button", name="New campaign")).to_be_visible()
    page = opened(watched, address)
    page.get_by_title("All campaigns").click()
    expect(page.get_by_role("button", name="New campaign")).to_be_visible()


def test_a_killed_worker_is_shown_and_started_again(watched, serve, argon):
    directory = argon()
    page = opened(watched, serve(directory))
    button(page, "Start").click()
    wait_for(lambda: step(page) > 0)
    WorkerHandle(directory).kill()
    expect(page.locator(".state")).to_contain_text("Engine stopped")
    before = step(page)
    button(page, "Start").click()
    wait_for(lambda: step(page) > before)


def test_dark_mode_reaches_canvas_plots_and_tables(watched, serve, ran):
    page = opened(watched, serve(ran) + "/?theme=dark")
    for tab in ("Traces", "Calibration", "Map", "Learning", "Fine-tune", "Settings", "Log"):
        page.get_by_role("tab", name=tab).click()
        for part in (".stage", ".tabs", ".queue", ".controls"):
            wait_for(lambda part=part: np.median(pixels(page, part)) < 60)
        bright = (pixels(page, ".tabs").min(axis=-1) > 230).mean()
        assert bright < 0.1, f"{tab}: {bright:.0%} of it is still white"
    page.get_by_role("button", name="Toggle theme").click()
    for tab in ("Traces", "Calibration", "Map", "Learning", "Fine-tune", "Settings", "Log"):
        page.get_by_role("tab", name=tab).click()
        for part in (".stage", ".tabs", ".queue", ".controls"):
            wait_for(lambda part=part: np.median(pixels(page, part)) > 200)
        dark = (pixels(page, ".tabs").max(axis=-1) < 40).mean()
        assert dark < 0.1, f"{tab}: {dark:.0%} of it is still dark"


def luminance(page: Page, part: str, of: str) -> float:
    """The mean of a computed colour's channels, 0 to 255."""
    color = page.locator(part).first.evaluate(f"e => getComputedStyle(e)['{of}']")
    return float(np.mean([float(c) for c in re.findall(r"[\d.]+", color)[:3]]))


@pytest.mark.parametrize("where", ["", "page=home"])
def test_the_title_is_read_in_either_mode(watched, serve, ran, where):
    page = watched
    page.goto(f"{serve(ran)}/?{where}")
    for _ in ("dark", "light again"):
        page.get_by_role("button", name="Toggle theme").click()
        for part in (".title b", ".title > span"):
            wait_for(
                lambda part=part: (
                    abs(
                        luminance(page, part, "color")
                        - luminance(page, ".MuiAppBar-root", "backgroundColor")
                    )
                    > 90
                ),
                20,
            )


def test_light_chosen_while_the_page_is_still_drawn_stays(watched, serve, ran):
    page = opened(watched, serve(ran) + "/?theme=dark")
    page.get_by_role("button", name="Toggle theme").click()
    assert "theme=default" in page.url, "what is drawn from now on reads its theme there"
    page.get_by_role("tab", name="Fine-tune").click()
    expect(page.get_by_role("button", name="Fine-tune")).to_be_visible()
    for part in (".stage", ".tabs", ".queue", ".controls"):
        wait_for(lambda part=part: np.median(pixels(page, part)) > 200)


def test_a_phone_shows_everything_without_sideways_scrolling(watched, ready):
    watched.set_viewport_size({"width": 390, "height": 844})
    page = opened(watched, ready)
    for part in (".controls", ".scene", ".queue", ".tabs"):
        box = page.locator(part).first.bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_without_webgl_a_flat_picture_is_drawn(watched, ready):
    watched.add_init_script(
        "const get = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {"
        " return kind.startsWith('webgl') ? null : get.call(this, kind, ...rest); };"
    )
    page = opened(watched, ready)
    assert page.locator(".stage").get_attribute("data-engine") == "flat"
    assert drawn(pixels(page)) > 0.05
    expect(page.locator(".note")).to_contain_text("no WebGL")


def test_a_drag_turns_the_molecule_and_the_pointer_names_an_atom(watched, ready):
    page = opened(watched, ready)

    def middle() -> tuple[float, float]:
        box = page.locator(".stage").bounding_box()
        assert box
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def named() -> bool:
        x, y = middle()  # where an atom of the cluster is, once the page has its final layout
        page.mouse.move(x + 2, y)
        page.mouse.move(x, y)
        return "Ar" in page.locator(".tip").inner_text()

    wait_for(named)
    x, y = middle()
    box = page.locator(".stage").bounding_box()
    before = pixels(page)
    page.mouse.down()
    page.mouse.move(x + 150, y + 60, steps=5)
    page.mouse.up()
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] / 2)
    expect(page.locator(".tip")).to_be_hidden()
    wait_for(lambda: (np.abs(pixels(page) - before).max(axis=-1) > 60).mean() > 0.02)


def test_panel_serve_shows_the_same_page(watched, serve, argon):
    directory = argon()
    root = str(Path(__file__).resolve().parents[2] / "app")
    command = ("-m", "panel", "serve", root, "--port", "{port}", "--args", str(directory))
    page = opened(watched, serve(directory, *command) + "/app")
    expect(page.locator(".state")).to_contain_text("Ready")
    assert drawn(pixels(page)) > 0.05


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_ethanol_demo_moves_within_ten_seconds(watched, serve, tmp_path):
    pytest.importorskip("tblite")
    pytest.importorskip("rdkit")
    directory = tmp_path / "campaigns" / "ethanol"
    page = opened(watched, serve(directory, "-m", "app", "serve", "--port", "{port}"))
    still = pixels(page)
    button(page, "Start").click()
    wait_for(lambda: np.abs(pixels(page) - still).max() > 60, 10)
    expect(page.locator(".badge")).to_have_count(0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_of_the_server_lose_no_decision(chromium, launch, argon):
    directory = argon("approve", "0.001 kcal/mol")
    moments, clicked, page = random.Random(1), 0, chromium.new_page()
    try:
        for _ in range(20):
            server, address = launch(directory)
            opened(page, address)
            found = [button(page, name).first for name in ("Start", r"Approve( all)?( \d+)?")]
            wait_for(lambda found=found: any(map(able, found)))
            for target in found:
                if able(target):
                    target.click(timeout=2000)
                    clicked += 1
            time.sleep(moments.uniform(0.0, 1.5))
            server.kill()
            server.wait()
            assert WorkerHandle(directory).alive  # the simulation does not need the page
        with CampaignReader(directory) as reader:
            events = [event for _, event in reader.events_since(0)]
            start = State(reader.settings, n_atoms=len(reader.structure))
            assert replay(start, events) == reader.state()
            decided = sum(isinstance(e, ev.Approve) for e in events)
        assert clicked > 5 and decided >= clicked // 2
        ledger = (directory / "labels/ledger.jsonl").read_text().splitlines()
        bought = Counter(e["key"] for e in map(json.loads, ledger) if e.get("outcome") == "label")
        assert bought and set(bought.values()) == {1}
    finally:
        page.close()
        WorkerHandle(directory).kill()
