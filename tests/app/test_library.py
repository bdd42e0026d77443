import pytest

from app import library as library_
from app import state
from app.library import TRASH, Library
from core import worker
from core.campaign import events as ev
from core.campaign import store
from core.campaign.reader import CampaignReader
from core.campaign.store import Store
from core.errors import CampaignError, InputError
from core.settings import from_dict

WATER = b"3\n\nO 0 0 0\nH 0.76 0 0.59\nH -0.76 0 0.59\n"
SETTINGS = from_dict({"structure": {"name": "H2O"}})


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path / "campaigns")


def names(library):
    return [campaign.name for campaign in library.campaigns()]


def journal(directory, *events):
    keeper = Store(directory)
    for event in events:
        keeper.add_event(event)
    keeper.close()


def test_no_folder_holds_no_campaigns(library):
    assert library.campaigns() == []


def test_a_campaign_is_listed_with_what_it_is_and_does(library):
    made = library.create("water", SETTINGS)
    (found,) = library.campaigns()
    assert (found.name, found.problem, found.structure.formula) == ("water", None, "H2O")
    assert (found.status.word, found.state.step, found.alive) == ("Ready", 0, False)
    before = found.changed
    journal(made.directory, ev.Start(at=before + 60), ev.StepsDone(step=7, at=before + 70))
    (found,) = library.campaigns()
    assert (found.state.step, found.changed) == (7, before + 70)
    assert found.status.word == "Engine stopped"


def test_a_journal_is_read_once(library, monkeypatch):
    library.create("water", SETTINGS)
    library.campaigns()
    library.campaigns()  # the first look may leave the database's log behind
    monkeypatch.setattr(library_, "_read", lambda *_: pytest.fail("read again"))
    assert names(library) == ["water"]


def test_a_broken_and_a_foreign_folder_hide_nothing(library, tmp_path):
    library.create("water", SETTINGS)
    for name, text in (("broken", "no database"), ("torn", None)):
        (library.folder / name).mkdir()
        if text:
            (library.folder / name / store.DATABASE).write_text(text)
    (library.folder / "link").symlink_to(tmp_path)
    damaged = library.create("damaged", SETTINGS).directory
    keeper = Store(damaged)
    keeper.set_meta("structure", '{"numbers": "?"}')
    keeper.close()
    found = {campaign.name: campaign.problem for campaign in library.campaigns()}
    assert found.pop("water") is None
    assert len(found) == 4 and all(found.values())
    assert "holds no campaign" in found["torn"]


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "", " x", "x.", "a\0b", "x" * 61])
def test_a_name_cannot_lead_anywhere_else(library, name):
    with pytest.raises(InputError, match="cannot be a name"):
        library.create(name, SETTINGS)
    with pytest.raises(InputError):
        library.delete(name)
    assert not library.folder.exists()


def test_names_are_made_acceptable_and_unique(library):
    assert library.free_name("C2H6O") == "C2H6O"
    assert library.free_name("../../etc/passwd") == "etc-passwd"
    assert library.free_name("***") == "campaign"
    library.create("water", SETTINGS)
    assert library.free_name("water") == "water-2"
    with pytest.raises(InputError, match="already"):
        library.create("water", SETTINGS)


def test_an_upload_is_kept_and_a_copy_has_its_own(library):
    made = library.create("water", SETTINGS, ("../Water.XYZ", WATER))
    assert made.reader.settings.structure.file == str(made.directory / "structure.xyz")
    copy = library.duplicate("water")
    assert copy.name == "water-2" and library.duplicate("water-2").name == "water-3"
    with CampaignReader(copy) as reader:
        assert reader.settings.structure.file == str(copy / "structure.xyz")
        assert reader.structure.key == made.structure.key
    assert sorted(path.name for path in copy.iterdir())[-1] == "structure.xyz"


def test_a_structure_that_cannot_be_read_leaves_nothing_behind(library):
    with pytest.raises(InputError, match="the file is cut off"):
        library.create("water", SETTINGS, ("water.xyz", b"2\n\nO 0 0 0\n"))
    assert library.campaigns() == []


def test_a_copy_starts_anew_with_the_settings_as_they_are_now(library):
    made = library.create("water", SETTINGS)
    journal(
        made.directory, ev.Start(), ev.ChangeSetting(path="dynamics.temperature_K", value=350.0)
    )
    with CampaignReader(library.duplicate("water")) as reader:
        assert reader.settings.dynamics.temperature_K == 350.0
        assert not reader.state().started


def test_what_is_deleted_can_be_brought_back(library):
    made = library.create("water", SETTINGS, ("water.xyz", WATER))
    token = library.delete("water")
    assert names(library) == [] and (library.folder / TRASH / token).is_dir()
    again = library.create("water", SETTINGS)
    assert again is not made and again.directory == made.directory
    back = library.restore(token)
    assert back.name == "water-2" and sorted(names(library)) == ["water", "water-2"]
    with CampaignReader(back) as reader:
        assert reader.settings.structure.file == str(back / "structure.xyz")
    for gone in (token, "..", "../water"):
        with pytest.raises(InputError, match="no longer"):
            library.restore(gone)


def test_what_a_worker_works_on_stays(library):
    directory = library.create("water", SETTINGS).directory
    journal(directory, ev.Start())
    with worker.locked(directory):
        assert library.campaigns()[0].alive
        with pytest.raises(CampaignError, match="already runs"):
            library.delete("water")
        with pytest.raises(CampaignError, match="already runs"):
            library.rename("water", "ice")
    assert names(library) == ["water"]
    library.delete("water")


def test_a_foreign_folder_is_not_deleted(library):
    (library.folder / "photos").mkdir(parents=True)
    with pytest.raises(CampaignError, match="holds no campaign"):
        library.delete("photos")


def test_a_renamed_campaign_is_the_same_campaign(library):
    made = library.create("water", SETTINGS, ("water.xyz", WATER))
    target = library.rename("water", "ice (Ih)")
    assert names(library) == ["ice (Ih)"]
    opened = state.campaign(target)
    assert opened.structure.key == made.structure.key
    assert opened.reader.settings.structure.file == str(target / "structure.xyz")
    with pytest.raises(InputError, match="already"):
        library.rename("ice (Ih)", "ice (Ih)")


def test_the_cost_of_earlier_campaigns_is_told(library, argon):
    assert library.past(SETTINGS) == []
    directory = argon()
    worker.run_inline(directory, until=lambda s: s.counts["trained"] >= 8 and s.phase == "running")
    library = Library(directory.parent)
    with CampaignReader(directory) as reader:
        (past,) = library.past(reader.settings)
        assert library.past(reader.settings.with_value("labelling.reference", "gfn2-xtb")) == []
    assert (past.name, past.n_atoms, len(past.labels) >= 8) == ("argon", 13, True)
    assert past.wall_s > 0 and past.steps > 0
