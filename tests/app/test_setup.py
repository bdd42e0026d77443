import json

import pytest

from app.library import Past, library
from app.views import setup
from app.views.setup import CHOSEN, LEVELS, MAX_UPLOAD_MB, MOLECULES, Setup, cost
from core.campaign.preflight import Trial
from core.campaign.reader import CampaignReader
from core.settings import fields, from_dict
from tests.app.conftest import run_async

WATER = b"3\n\nO 0 0 0\nH 0.76 0 0.59\nH -0.76 0 0.59\n"
AMMONIUM = b"5\n\nN 0 0 0\nH .6 .6 .6\nH -.6 -.6 .6\nH -.6 .6 -.6\nH .6 -.6 -.6\n"
SETTINGS = from_dict({"structure": {"name": "H2O"}})


@pytest.fixture
def made():
    return []


@pytest.fixture
def page(tmp_path, monkeypatch, made):
    monkeypatch.setenv("FLYWISE_HOME", str(tmp_path))
    monkeypatch.setitem(MOLECULES, "Ethanol", {"name": "CH3CH2OH"})  # needs no rdkit
    return Setup(made.append, lambda: made.append(None))


def upload(page, name, content):
    page._how.value = "File"
    page._file.param.update(filename=name, value=content)


def test_the_default_is_ready_to_be_created(page, made):
    assert page._name.value == "ethanol" and not page._create.disabled
    assert (
        "C<sub>2</sub>H<sub>6</sub>O" in page._picture.object and "9 atoms" in page._picture.object
    )
    page._make()
    assert made == [library().folder / "ethanol"]
    with CampaignReader(made[0]) as reader:
        assert reader.settings.structure.name == "CH3CH2OH"
        assert reader.settings.labelling.reference == "gfn2-xtb"


@pytest.mark.parametrize("name", MOLECULES)
def test_every_molecule_offered_can_be_simulated(page, name):
    if "smiles" in MOLECULES[name]:
        pytest.importorskip("rdkit")
    page._pick.value = name
    assert page._problem.object == "" and page._structure is not None
    if name.startswith("Argon"):
        assert page._create.disabled and "does not know Ar" in page._checks.object
        page._model.value = "Argon"
    assert not page._create.disabled
    page._make()


def test_an_uploaded_file_is_read_and_kept(page, made):
    upload(page, "My water.xyz", WATER)
    assert page._name.value == "My water" and "3 atoms" in page._picture.object
    page._make()
    assert (made[0] / "structure.xyz").read_bytes() == WATER
    with CampaignReader(made[0]) as reader:
        assert reader.structure.formula == "H2O"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("mace.model", b"\x80\x04", "is a pickle"),
        ("notes.docx", b"x", "not accepted"),
        ("empty.xyz", b" ", "is empty"),
        ("torn.xyz", b"3\n\nO 0 0 0\n", "the file is cut off"),
        ("binary.cif", b"\xff\xfe\x00", "not a text file"),
        ("<b>.xyz", b"2\n\nH 0 0 0\nH 0 0 0.1\n", "overlap"),
        ("big.xyz", b" " * ((MAX_UPLOAD_MB << 20) + 1), "larger than"),
    ],
)
def test_a_file_that_is_not_accepted_is_refused_with_the_reason(page, name, content, words):
    upload(page, name, content)
    assert words in page._problem.object and "<b>" not in page._problem.object
    assert page._create.disabled and page._picture.object == ""
    upload(page, "water.xyz", WATER)
    assert page._problem.object == "" and not page._create.disabled


def test_the_charge_of_a_file_can_be_given(page, made):
    upload(page, "ammonium.xyz", AMMONIUM)
    assert "cannot leave 0 unpaired" in page._problem.object
    page._forms["structure"].inputs["structure.charge"].value = "1"
    assert page._problem.object == "" and "charge +1" in page._picture.object
    page._make()
    with CampaignReader(made[0]) as reader:
        assert reader.structure.charge == 1
    page._how.value = "Library"
    assert page._given.structure.charge is None and "charge" not in page._picture.object


def test_smiles_is_read_or_refused(page):
    pytest.importorskip("rdkit")
    page._how.value = "SMILES"
    assert page._create.disabled
    page._smiles.value = "CC(=O)N"
    assert page._name.value == "C2H5NO" and not page._create.disabled
    page._smiles.value = "nonsense"
    assert "is not a SMILES" in page._problem.object and page._create.disabled


def test_a_model_must_know_the_elements_and_be_no_pickle(page, tmp_path):
    page._model.value = "Argon"
    assert "does not know H, C, O" in page._checks.object and page._create.disabled
    page._model.value = "Folder"
    (tmp_path / "mace.model").write_bytes(b"\x80")
    page._folder.value = str(tmp_path / "mace.model")
    assert "run code" in page._checks.object and page._create.disabled
    page._model.value = "Bundled"
    assert not page._create.disabled


def test_published_models_that_were_fetched_are_offered(page, tmp_path):
    page._model.value = "Published"
    assert "flywise download" in page._model_help.object and not page._published.visible
    assert "Choose a model" in page._checks.object and page._create.disabled
    for name, numbers in (("mace-off-small", [1, 6, 8]), ("mace-mp-medium-0b3", [14])):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model": {"atomic_numbers": numbers}}))
        (folder / "model.safetensors").touch()
    (tmp_path / "models" / "mace-off-large").mkdir()  # its download did not end
    page._model.value = "Bundled"
    page._model.value = "Published"
    assert page._published.visible
    assert page._published.options == ["mace-mp:medium-0b3", "mace-off:small"]
    assert "does not know" in page._checks.object and page._create.disabled
    page._published.value = "mace-off:small"
    assert page._given.potential.model == "mace-off:small" and not page._create.disabled


def test_a_teacher_needs_a_name(page):
    page._level.value = "Teacher"
    assert "Name the teacher" in page._checks.object and page._create.disabled
    page._teacher.value = "bundled"
    assert not page._create.disabled
    assert page._given.labelling.reference == "teacher:bundled"


def test_dft_needs_a_functional_and_programs_are_not_named_in_a_browser(page):
    page._level.value = "DFT"
    assert page._given.labelling.reference == "dft:PBE/def2-SVP" and not page._create.disabled
    page._functional.value = " "
    assert "Name functional" in page._checks.object and page._create.disabled
    page._functional.value = "ase:orca"
    assert page._given.labelling.reference == "dft:ase:orca"
    assert not any(level.startswith("ase") for level in LEVELS.values())


def test_every_other_field_is_in_the_form_and_an_error_holds_the_start(page, made):
    offered = {path for form in page._forms.values() for path in form.inputs}
    assert offered == {entry["path"] for entry in fields()} - CHOSEN
    confidence = page._forms["trust"].inputs["trust.confidence"]
    confidence.value = "1.5"
    assert confidence.error_state and page._create.disabled
    confidence.value = "0.9"
    page._forms["dynamics"].inputs["dynamics.steps"].value = "700"
    page._make()
    with CampaignReader(made[0]) as reader:
        assert (reader.settings.trust.confidence, reader.settings.dynamics.steps) == (0.9, 700)


def test_a_name_of_ones_own_stays_and_a_taken_one_is_refused(page, made):
    page._name.value = "mine"
    page._pick.value = "Water"
    assert page._name.value == "mine"
    page._make()
    page._make()
    assert len(made) == 1 and "already" in page._failed.object
    page._name.value = "../mine"
    page._make()
    assert len(made) == 1 and "cannot be a name" in page._failed.object


def test_the_cost_is_measured_and_not_invented(page, monkeypatch):
    asked = []

    async def measure(reference, structure):
        asked.append((reference, structure.formula))
        return Trial(seconds=0.25)

    monkeypatch.setattr(setup.preflight, "measure", measure)
    assert "Being measured" in page._cost.object
    run_async(page.measure())
    run_async(page.measure())
    assert asked == [("gfn2-xtb", "C2H6O")] and "2 s" in page._cost.object
    page._level.value = "GFN1-xTB"
    assert "Being measured" in page._cost.object


def test_a_cost_says_what_it_rests_on():
    unknown = dict(cost(SETTINGS, 3, Trial(problem="tblite is missing"), []))
    assert unknown["One label"] == "Not known: tblite is missing"
    assert unknown["Time for the whole run"].startswith("Not known")
    early = (0,) * 20 + tuple(range(250, 2500, 250))  # of 29 labels 4 in the second half
    past = [Past("big", 9, 100, (0,) * 5, 50.0), Past("water", 3, 2500, early, 60.0)]
    known = dict(cost(SETTINGS, 3, Trial(seconds=0.1), past))
    assert known["One label"] == "0.1 s, measured just now on one core."
    assert "about 37 labels and at most 2 min" in known["If it goes like water"]
    shorter = SETTINGS.with_value("dynamics.steps", 500)
    assert "about 22 labels" in dict(cost(shorter, 3, None, past))["If it goes like water"]
    every = SETTINGS.with_value("labelling.every", 50)
    assert "one every 50 steps" in dict(cost(every, 3, None, []))["Labels"]
