"""The settings schema: units at the border, messages, and the way through TOML and JSON."""

import pytest

from core import settings
from core.errors import SettingsError, StructureError
from core.units import GPA, KCAL_PER_MOL

MINIMAL = '[structure]\nsmiles = "CCO"\n'


def load(tmp_path, text):
    path = tmp_path / "s.toml"
    path.write_text(text)
    return settings.load(path)


def test_quantities_with_units_become_inner_units(tmp_path):
    text = MINIMAL + '[trust]\nenergy_tolerance = "0.5 kcal/mol"\nforce_tolerance = "100 meV/Å"\n'
    trust = load(tmp_path, text).trust
    assert trust.energy_tolerance == pytest.approx(0.5 * KCAL_PER_MOL)
    assert trust.force_tolerance == pytest.approx(0.1)


def test_the_default_energy_tolerance_grows_with_the_root_of_the_size(tmp_path):
    trust = load(tmp_path, MINIMAL).trust
    assert trust.energy_tolerance_for(9) == pytest.approx(0.5 * KCAL_PER_MOL)
    assert trust.energy_tolerance_for(36) == pytest.approx(1.0 * KCAL_PER_MOL)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ('[trust]\nenergy_tolerance = "0.5 kcal"\n', "'kcal'.*accepted.*kcal/mol"),
        ("[trust]\nenergy_tolerance = 0\n", "greater than 0"),
        ('[trust]\nenergy_tolerance = "lots"\n', "not a number"),
        ("[dynamics]\ntemperature = 300\n", "did you mean dynamics.temperature_K"),
        ("[dynamics]\ntimestep_fs = -1\n", "greater than 0.*-1"),
        ('[labelling]\nmode = "yolo"\n', "'approve', 'threshold' or 'batch'"),
        ("[dynamics\n", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_said_with_what_was_given(tmp_path, extra, words):
    with pytest.raises(SettingsError, match=words):
        load(tmp_path, MINIMAL + extra)


def test_a_structure_must_be_given_exactly_once(tmp_path):
    with pytest.raises(SettingsError, match="exactly one"):
        load(tmp_path, '[structure]\nsmiles = "CCO"\nname = "H2O"\n')


def test_json_and_a_live_change_round_trip(tmp_path):
    loaded = load(tmp_path, MINIMAL)
    changed = loaded.with_value("dynamics.temperature_K", 350)
    assert settings.from_json(changed.to_json()) == changed != loaded
    with pytest.raises(SettingsError, match="nothing"):
        loaded.with_value("dynamics.nothing", 1)
    with pytest.raises(SettingsError, match="greater than 0"):
        loaded.with_value("trust.energy_tolerance", "0 eV")


def test_every_field_has_help():
    assert all(entry["help"] for entry in settings.fields())
    assert "dynamics.temperature_K" in settings.live_paths()


def test_toml_and_no_tolerance_round_trip(tmp_path):
    given = load(tmp_path, MINIMAL + '[trust]\nforce_tolerance = "none"\nconfidence = 0.9\n')
    assert given.trust.force_tolerance is None
    odd = given.with_value("structure.smiles", 'C"\\é\N{GRINNING FACE}')
    (tmp_path / "again.toml").write_text(odd.to_toml(), encoding="utf-8")
    assert settings.load(tmp_path / "again.toml") == odd


def test_the_charge_of_a_file_may_come_from_the_settings(tmp_path):
    file = tmp_path / "ammonium.xyz"
    corners = "1 1 1\nH -1 -1 1\nH -1 1 -1\nH 1 -1 -1".replace("1", "0.6")
    file.write_text(f"5\n\nN 0 0 0\nH {corners}\n")
    given = load(tmp_path, f'[structure]\nfile = "{file}"\ncharge = 1\n')
    assert settings.structure_of(given).charge == 1
    with pytest.raises(StructureError, match="cannot leave 0 unpaired"):
        settings.structure_of(given.with_value("structure.charge", 0))


def test_paths_are_relative_to_the_settings_file(tmp_path):
    for name in ("mine", "bundled", "models/other"):
        (tmp_path / name).mkdir(parents=True)
    text = '[structure]\nfile = "water.xyz"\n[potential]\nmodel = "{}"\n'
    for model, meant in (
        ("mine", str(tmp_path / "mine")),
        ("models/other", str(tmp_path / "models" / "other")),
        ("bundled", "bundled"),
        ("mace-mp:small", "mace-mp:small"),
        ("elsewhere", "elsewhere"),
    ):
        given = load(tmp_path, text.format(model))
        assert given.potential.model == meant
        assert given.structure.file == str(tmp_path / "water.xyz")


def test_the_noise_of_labels_follows_the_tolerances_unless_it_is_given():
    given = {"structure": {"name": "H2O"}, "trust": {"energy_tolerance": 0.07}}
    assert settings.from_dict(given).noise_for(3) == settings.Noise(
        pytest.approx(0.01), pytest.approx(0.03)
    )
    given["trust"] |= {"force_tolerance": 0.5, "stress_tolerance": "1 GPa"}
    noise = settings.from_dict(given).noise_for(3)
    assert (noise.force, noise.stress) == (0.1, pytest.approx(0.1 * GPA))
    given["posterior"] = {"noise_energy": "2 meV", "noise_stress": "0.3 GPa"}
    noise = settings.from_dict(given).noise_for(3)
    assert noise == settings.Noise(pytest.approx(0.002), 0.1, pytest.approx(0.3 * GPA))
    given["trust"] = {"force_tolerance": "none"}
    assert settings.from_dict(given).noise_for(3).force == pytest.approx(0.03)


@pytest.mark.parametrize("strategy", ["lora", "replay", "pseudolabel-replay", "replay-lora"])
def test_strategies_without_meaning_in_a_campaign_are_refused_with_the_reason(strategy):
    given = {"structure": {"smiles": "C"}, "finetuning": {"strategy": strategy}}
    with pytest.raises(SettingsError, match="not for campaigns: .*flywise finetune"):
        settings.from_dict(given)


def test_the_strategies_are_those_there_are():
    from core.finetuning.strategies import STRATEGIES

    (field,) = [f for f in settings.fields() if f["path"] == "finetuning.strategy"]
    assert field["enum"] == list(STRATEGIES)
