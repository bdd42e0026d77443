import asyncio
import json

import pytest

from core.campaign import preflight
from core.errors import ModelError, UnsafeFileError
from core.structures import from_name


def test_the_elements_of_a_model_are_read_from_its_configuration(tmp_path):
    assert preflight.known_elements("bundled") == (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35)
    assert preflight.known_elements("lennard-jones:0.01:3.4") == (18,)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps({"model": {"atomic_numbers": [14]}}))
    assert preflight.known_elements(str(tmp_path)) == (14,)
    with pytest.raises(ModelError, match=r"does not know H, O; it knows Si\."):
        preflight.check_model(str(tmp_path), from_name("H2O"))
    preflight.check_model("bundled", from_name("H2O"))


@pytest.mark.parametrize("text", ["", "[]", '{"model": {}}', '{"model": {"atomic_numbers": "x"}}'])
def test_a_damaged_bundle_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="damaged"):
        preflight.known_elements(str(tmp_path))


def test_a_pickle_and_a_missing_folder_are_refused(tmp_path):
    (tmp_path / "mace.model").write_bytes(b"\x80")
    with pytest.raises(UnsafeFileError, match="run code"):
        preflight.known_elements(str(tmp_path / "mace.model"))
    with pytest.raises(ModelError, match="is no model"):
        preflight.known_elements(str(tmp_path / "nowhere"))


def test_a_label_is_tried_in_a_process_of_its_own(cluster):
    found = asyncio.run(preflight.measure("teacher:lennard-jones", cluster, 120))
    assert found.problem is None and found.seconds > 0
    refused = asyncio.run(preflight.measure("no-such-method", cluster, 120))
    assert refused.seconds is None and "no-such-method" in refused.problem


def test_a_trial_is_given_up_in_time(cluster):
    found = asyncio.run(preflight.measure("teacher:lennard-jones", cluster, 0.0))
    assert found == preflight.Trial(problem="no label within 0 s")
