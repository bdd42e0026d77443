"""Bundles: the way to disk and back, and that pickles are refused unopened."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from core.errors import ModelError, UnsafeFileError
from core.potentials import load
from core.potentials.load import save
from tests.core.potentials.test_contract import tiny_mace


class Bomb:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('exploded').write_text('x')",)


def test_a_saved_mace_predicts_the_same(tmp_path, rng):
    from core.structures import from_name

    potential = tiny_mace()
    save(potential, tmp_path / "bundle", {"title": "tiny"})
    again = load(str(tmp_path / "bundle"), dtype="float64")
    water = from_name("H2O")
    one, two = potential.predict([water]), again.predict([water])
    assert one.energies[0] == two.energies[0]
    np.testing.assert_array_equal(one.forces[0], two.forces[0])


def test_a_pickle_offered_as_a_model_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.model"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UnsafeFileError, match="pickles"):
        load(str(path))
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"format": 1, "model": {}}))
    (folder / "model.safetensors").write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="damaged"):
        load(str(folder))
    assert not (tmp_path / "exploded").exists()


def test_importing_the_adapter_leaves_torchs_pickle_guard_on(tmp_path):
    bomb = tmp_path / "bomb.pt"
    bomb.write_bytes(pickle.dumps(Bomb()))
    code = (
        "import core.potentials.mace, torch, sys\n"
        "try: torch.load(sys.argv[1])\n"
        "except Exception: print('refused')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(bomb)], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert run.stdout.strip() == "refused", run.stderr
    assert not (tmp_path / "exploded").exists()


def test_unknown_names_and_damaged_configurations_say_so(tmp_path):
    with pytest.raises(ModelError, match="bundled"):
        load("no-such-model")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        load(str(tmp_path))


def test_the_bundled_model_is_small_and_knows_a_molecule_it_was_not_trained_on():
    pytest.importorskip("tblite", reason="GFN1-xTB forces need tblite (the xtb extra)")
    from core.assets import asset
    from core.reference import make
    from core.structures import from_name

    files = asset("models/bundled").iterdir()
    assert sum(f.stat().st_size for f in files) < 3_000_000
    relaxed = from_name("CH3CH2OH")
    ethanol = relaxed.moved(1.06 * relaxed.positions)  # stretched: forces of 1.1 eV/Å rms
    predicted = load("bundled").predict([ethanol]).forces[0]
    label = make("gfn1-xtb").compute(ethanol)
    assert np.sqrt(((predicted - label.forces) ** 2).mean()) < 0.1


def test_what_ships_for_rehearsal_is_labelled_by_gfn1():
    pytest.importorskip("tblite", reason="GFN1-xTB forces need tblite (the xtb extra)")
    from core.campaign.pretraining import brought
    from core.reference import make

    own = brought("bundled")
    assert own is not None and len(own) >= 500
    elements = {int(z) for s in own.structures for z in s.numbers}
    assert elements == set(load("bundled").elements)
    whole = [k for k, s in enumerate(own.structures) if s.numbers.sum() % 2 == 0]
    for k in whole[:: len(whole) // 8]:
        label = make("gfn1-xtb").compute(own.structures[k])
        assert own.energies[k] == pytest.approx(label.energy, abs=1e-3)
        np.testing.assert_allclose(own.forces[k], label.forces, atol=5e-3)
