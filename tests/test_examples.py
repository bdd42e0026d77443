"""What lies in `examples` can be used as it is."""

import ast
import json

import pytest

from core import settings
from core.assets import asset

NOTEBOOK = asset("examples/campaign.ipynb")


def code_cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def test_the_minimal_settings_are_short_and_complete():
    file = asset("examples/minimal.toml")
    assert len(file.read_text(encoding="utf-8").splitlines()) < 20
    assert settings.load(file).trust.energy_tolerance == pytest.approx(0.02168, rel=1e-3)


def test_ethanol_is_the_campaign_of_the_design():
    given = settings.load(asset("examples/ethanol.toml"))
    d = given.dynamics
    assert (d.temperature_K, d.timestep_fs, d.steps) == (300, 0.5, 5000)
    assert (given.labelling.reference, given.labelling.mode) == ("gfn2-xtb", "threshold")


def test_the_notebook_is_valid_and_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert all(c["outputs"] == [] for c in notebook["cells"] if c["cell_type"] == "code")
    try:
        import nbformat
    except ImportError:
        return
    nbformat.validate(notebook)


@pytest.mark.parametrize("source", code_cells())
def test_the_notebooks_code_compiles(source):
    ast.parse(source)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path, monkeypatch):
    for package in ("tblite", "rdkit", "nglview"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for source in code_cells():
        exec(compile(source.replace("600", "200"), "campaign.ipynb", "exec"), names)
    assert names["state"].phase == "finished"  # type: ignore[attr-defined]
    assert len(names["trajectory"]) > 5  # type: ignore[arg-type]
