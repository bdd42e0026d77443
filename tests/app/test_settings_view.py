import tomllib

import pytest

from app import state as app_state
from app.views.settings import FIXED, LIVE, Settings, fixed
from app.widgets.form import FIELDS, Form, hint, said_of, text_of, tried, value_at
from core import settings as schema
from core.campaign import events as ev
from core.campaign.store import Store
from core.errors import SettingsError
from core.units import GPA

from .test_wording import SETTINGS


@pytest.fixture
def campaign(argon):
    return app_state.campaign(argon())


def test_the_form_has_every_live_field_and_the_list_every_other(campaign):
    view = Settings(campaign, lambda command: None)
    assert set(view._form.inputs) == set(schema.live_paths())
    assert {*LIVE, *FIXED} == {entry["path"] for entry in schema.fields()}
    page = fixed(campaign.glance().state.settings)
    assert "Time step" in page and "5 fs" in page and "Temperature" not in page


def test_a_change_is_posted_and_an_error_stands_beside_its_field(campaign):
    posted = []
    view = Settings(campaign, posted.append)
    steps = view._form.inputs["dynamics.steps"]
    steps.value = "0"
    assert posted == [] and steps.error_state and "greater than or equal to 1" in steps.helper_text
    steps.value = "2000"
    assert not steps.error_state and steps.helper_text == hint(FIELDS["dynamics.steps"])
    (command,) = posted
    assert isinstance(command, ev.ChangeSetting)
    assert (command.path, command.value) == ("dynamics.steps", 2000)


def test_quantities_are_typed_with_their_unit_and_nothing_means_none(campaign):
    posted = []
    view = Settings(campaign, posted.append)
    view._form.inputs["trust.energy_tolerance"].value = "10 meV"
    view._form.inputs["trust.force_tolerance"].value = ""
    view._form.inputs["labelling.mode"].value = "approve"
    assert [command.value for command in posted] == [0.01, None, "approve"]


def test_the_page_follows_changes_made_elsewhere(campaign, monkeypatch):
    monkeypatch.setattr(app_state, "FRESH_S", 0.0)
    posted = []
    view = Settings(campaign, posted.append)
    keeper = Store(campaign.directory)
    keeper.add_event(ev.Start())
    keeper.add_event(ev.ChangeSetting(path="dynamics.temperature_K", value=44.0))
    keeper.close()
    view.update(campaign.glance())
    assert view._form.inputs["dynamics.temperature_K"].value == "44" and posted == []


def test_a_refused_change_is_put_back(campaign):
    view = Settings(campaign, lambda command: False)
    view._form.inputs["dynamics.temperature_K"].value = "44"
    assert view._form.inputs["dynamics.temperature_K"].value == "20"


def test_the_file_is_what_the_command_line_reads(campaign, tmp_path):
    view = Settings(campaign, lambda command: None)
    text = view._file().read()
    (tmp_path / "s.toml").write_bytes(text)
    assert tomllib.loads(text.decode())["dynamics"]["temperature_K"] == 20
    assert schema.load(tmp_path / "s.toml") == campaign.glance().state.settings


@pytest.mark.parametrize("path", [entry["path"] for entry in schema.fields()])
def test_every_field_shows_its_default_and_takes_it_back(path):
    section = path.partition(".")[0]
    form = Form(SETTINGS, [path], lambda path, text: None)
    assert form.inputs[path].label and form.inputs[path].helper_text
    default = FIELDS[path]["default"]
    if section != "structure":
        again = tried(SETTINGS, path, text_of(path, default))
        value = value_at(again, path)
        assert value == (pytest.approx(default, rel=1e-3) if type(default) is float else default)


@pytest.mark.parametrize("path", ["posterior.kind", "trust.calibration"])
def test_under_a_choice_stands_when_to_take_what_is_chosen(path):
    entry, said = FIELDS[path], set()
    form = Form(SETTINGS, [path], lambda path, text: None)
    for choice in entry["enum"]:
        form.inputs[path].value = choice
        assert form.inputs[path].helper_text == entry["choices"][choice]
        said.add(form.inputs[path].helper_text)
    assert len(said) == len(entry["enum"]) == len(entry["choices"])
    assert Form(SETTINGS, [path], lambda path, text: None).inputs[path].helper_text in said


def test_only_fields_that_mean_something_with_the_choice_are_shown():
    paths = [path for path in FIELDS if path.startswith("posterior.")]
    form = Form(SETTINGS, paths, lambda path, text: None)

    def visible():
        return {path.partition(".")[2] for path in paths if form.inputs[path].visible}

    assert "prior_std" in visible() and not visible() & {"chains", "passes", "ensemble"}
    form.inputs["posterior.kind"].value = "blip"
    assert {"passes", "descent_steps", "noise_energy"} < visible() and "prior_std" not in visible()
    form.follow(SETTINGS.with_value("posterior.kind", "sghmc"))
    assert {"chains", "sghmc_steps"} < visible() and "passes" not in visible()
    assert "Chains" not in fixed(SETTINGS)
    assert "Chains" in fixed(SETTINGS.with_value("posterior.kind", "sghmc"))
    batch = Form(SETTINGS, ["labelling.batch_size"], lambda path, text: None)
    assert not batch.inputs["labelling.batch_size"].visible
    batch.follow(SETTINGS.with_value("labelling.mode", "batch"))
    assert batch.inputs["labelling.batch_size"].visible


def test_what_is_still_wrong_stays_until_it_is_corrected():
    given = SETTINGS.with_value("posterior.kind", "blip")
    paths = ["posterior.kind", "posterior.passes"]
    form = Form(given, paths, lambda path, text: "at least 2" if text == "1" else None)
    form.inputs["posterior.passes"].value = "1"
    form.inputs["posterior.kind"].value = "linearised"
    assert form.inputs["posterior.passes"].visible
    form.inputs["posterior.passes"].value = "8"
    assert not form.inputs["posterior.passes"].visible


@pytest.mark.parametrize("path", [path for path, entry in FIELDS.items() if entry["only"]])
def test_a_field_hangs_on_fields_and_values_there_are(path):
    for name, accepted in FIELDS[path]["only"].items():
        assert set(accepted) <= set(FIELDS[f"{path.partition('.')[0]}.{name}"]["enum"])


def test_stress_is_shown_and_bounded_in_gigapascal():
    path = "dynamics.pressure"
    squeezed = tried(SETTINGS, path, "2.5 GPa")
    assert value_at(squeezed, path) == pytest.approx(2.5 * GPA)
    assert text_of(path, value_at(squeezed, path)) == said_of(path, 2.5 * GPA) == "2.5 GPa"
    assert "at least -160.2 GPa" in hint(FIELDS[path]) and "GPa, kbar" in hint(FIELDS[path])


def test_what_is_on_or_off_is_chosen_and_kept():
    path = "potential.compiled"
    form = Form(SETTINGS, [path], lambda path, text: None)
    assert form.inputs[path].options == ["no", "yes"] and form.inputs[path].value == "no"
    chosen = tried(SETTINGS, path, "yes")
    assert value_at(chosen, path) is True and text_of(path, True) == "yes"
    assert schema.from_dict(tomllib.loads(chosen.to_toml())) == chosen


def test_an_error_names_what_was_given_and_not_the_path():
    with pytest.raises(SettingsError, match=r"^Input should be less than 1 \(given: '2'\)$"):
        tried(SETTINGS, "trust.confidence", "2")
