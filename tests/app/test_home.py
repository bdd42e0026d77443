import numpy as np
import pytest

from app.library import library
from app.views import home
from app.views.home import Home
from app.widgets.picture import svg
from core import worker
from core.campaign import events as ev
from core.campaign.store import Store
from core.settings import from_dict
from core.structures import Structure, from_name

SETTINGS = from_dict({"structure": {"name": "H2O"}})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FLYWISE_HOME", str(tmp_path))
    return library()


def shown(page):
    return {name: card._text.object for name, card in page._cards.items()}


def opened(asked=None):
    return Home((asked if asked is not None else []).append, lambda: None)


def test_an_empty_folder_says_what_to_do(folder):
    page = opened()
    assert page._empty.visible and "ethanol demo" in page._empty[0].object
    folder.create("water", SETTINGS)
    page.update()
    assert not page._empty.visible and list(shown(page)) == ["water"]


def test_a_card_says_what_the_campaign_is_and_does(folder):
    folder.create("water", SETTINGS)
    page = opened()
    (text,) = shown(page).values()
    for word in ("H<sub>2</sub>O", "GFN2-xTB labels", "Ready", "5\N{NARROW NO-BREAK SPACE}000",
                 "no label yet", "<svg", "just now"):  # fmt: skip
        assert word in text, word


def test_a_broken_campaign_can_be_deleted_but_not_opened(folder):
    folder.create("water", SETTINGS)
    broken = folder.create("broken", SETTINGS).directory
    (broken / "campaign.sqlite").write_text("<i>no database")
    page = opened()
    card = page._cards["broken"]
    assert "Cannot be opened" in card._text.object and "<i>" not in card._text.object
    assert [button.disabled for button in card._acts] == [True, False, True, False]
    page.delete(card._campaign)
    assert list(shown(page)) == ["water"]


def test_open_duplicate_delete_and_undo(folder):
    asked = []
    folder.create("water", SETTINGS)
    page = opened(asked)
    campaign = page._cards["water"]._campaign
    page.open(campaign)
    assert asked == [folder.folder / "water"]
    page.duplicate(campaign)
    assert list(shown(page)) == ["water-2", "water"] and "ready to start" in page._note.object
    page.delete(campaign)
    assert list(shown(page)) == ["water-2"] and page._undo.visible
    page._restore(None)
    assert sorted(shown(page)) == ["water", "water-2"] and not page._undo.visible


def test_what_cannot_be_done_is_said(folder):
    directory = folder.create("water", SETTINGS).directory
    keeper = Store(directory)
    keeper.add_event(ev.Start())
    keeper.close()
    page = opened()
    with worker.locked(directory):
        page.delete(page._cards["water"]._campaign)
    assert "already runs" in page._note.object and "water" in shown(page)


def test_a_campaign_is_renamed_on_its_card(folder):
    folder.create("water", SETTINGS)
    page = opened()
    card = page._cards["water"]
    card._edit(None)
    card._name.value = "../ice"
    assert "cannot be a name" in page._note.object and card._name.visible
    card._name.value = "ice"
    assert list(shown(page)) == ["ice"]


def test_nothing_is_drawn_again_where_nothing_changed(folder):
    folder.create("water", SETTINGS)
    page = opened()
    drawn = []
    for pane in (page._cards["water"]._text, page._title):
        pane.param.watch(drawn.append, "object")
    page._grid.param.watch(drawn.append, "objects")
    page.update()
    assert drawn == []


def test_many_campaigns_come_in_portions(folder, monkeypatch):
    monkeypatch.setattr(home, "SHOWN", 2)
    for number in range(3):
        folder.create(f"water-{number}", SETTINGS)
    page = opened()
    assert len(page._grid) == 2 and page._more.visible
    page._show_more(None)
    assert len(page._grid) == 3 and not page._more.visible


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "just now"), (61, "1 minute ago"), (7300, "2 hours ago"), (90_000, "1 day ago")],
)
def test_ages_are_told_in_one_unit(seconds, text):
    assert home._ago(seconds) == text


def test_a_picture_has_every_atom_and_bond():
    drawn = svg(from_name("CH3CH2OH"))
    assert drawn.count("<circle") == 9 and drawn.count("<line") == 8 and "C2H6O" in drawn


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_any_number_of_atoms_is_drawn_inside_the_picture(n, rng):
    drawn = svg(Structure(np.full(n, 18), rng.uniform(0, 30, (n, 3))))
    assert 1 <= drawn.count("<circle") <= 300
    for name, most in (("cx", 132), ("cy", 96)):
        values = [float(part.split('"')[1]) for part in drawn.split(f"{name}=")[1:]]
        assert min(values) >= 0 and max(values) <= most


def test_a_crystal_shows_its_cell():
    crystal = Structure(np.array([14]), np.zeros((1, 3)), 5 * np.eye(3), (True,) * 3)
    assert svg(crystal).count("M") == 12
