"""Shipped files are found in a wheel and in a checkout, and nothing outside them is."""

import pytest

from core import assets
from core.errors import FlywiseError


@pytest.fixture(params=["wheel", "checkout"])
def shipped(request, tmp_path, monkeypatch):
    """A package with one model and one example, laid out as in a wheel or in a checkout."""
    package = tmp_path / "core"
    root = package / "_assets" if request.param == "wheel" else tmp_path / "assets"
    examples = package / "_assets" if request.param == "wheel" else tmp_path
    for folder, name in (
        (root / "models/bundled", "config.json"),
        (examples / "examples", "a.toml"),
    ):
        folder.mkdir(parents=True)
        (folder / name).write_text("{}")
    monkeypatch.setattr(assets, "_PACKAGE", package)
    return root


def test_a_model_is_found(shipped):
    assert assets.asset("models/bundled") == shipped / "models/bundled"
    assert assets.asset("models/bundled/config.json").read_text() == "{}"


def test_an_example_is_found(shipped):
    assert assets.asset("examples/a.toml").is_file()


def test_a_missing_file_is_named_with_what_to_do(shipped):
    with pytest.raises(FlywiseError, match=r"'models/other'.*Install Flywise again"):
        assets.asset("models/other")


@pytest.mark.parametrize("name", ["", ".", "/etc", "../core", "models/../../core", "..\\core"])
def test_names_that_lead_out_are_refused(shipped, name):
    with pytest.raises(FlywiseError, match="not the name of an asset"):
        assets.asset(name)
