"""Pickled checkpoints become bundles in a process of their own, or not at all."""

import os
import pickle
import time
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch

from core.errors import ModelError, UnsafeFileError
from core.potentials import load, probe
from core.potentials.bundle import WEIGHTS
from core.potentials.convert import convert
from core.potentials.mace import MacePotential, default_config, guarded

ELEMENTS = (1, 6, 8)


class Program:
    """A pickle that runs `code` when it is opened."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


def pickled(tmp_path, code):
    path = tmp_path / "evil.model"
    path.write_bytes(pickle.dumps(Program(code)))
    return path


def checkpoint(tmp_path, dtype=torch.float64, **changes):
    """A small untrained MACE as its authors would save it; a value of None leaves a key out."""
    torch.manual_seed(1)
    config = default_config(ELEMENTS, np.array([-13.0, -1030.0, -2040.0]), channels=8, max_ell=2)
    config = {k: v for k, v in {**config, **changes}.items() if v is not None}
    path = tmp_path / "made.model"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e3nn compiles what it saves
        torch.save(MacePotential(config, dtype=dtype).module, path)
    return path


def marker(path):
    return f"import os; open({str(path)!r}, 'a').write(str(os.getpid()))"


def test_without_consent_nothing_is_opened(tmp_path):
    path = pickled(tmp_path, marker(tmp_path / "ran"))
    with pytest.raises(UnsafeFileError, match="runs whatever program"):
        convert(path, tmp_path / "bundle", consent=False)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "bundle").exists()


def test_with_consent_it_runs_elsewhere_and_leaves_nothing(tmp_path):
    path = pickled(tmp_path, marker(tmp_path / "ran"))
    with pytest.raises(ModelError, match="could not be converted"):
        convert(path, tmp_path / "bundle", consent=True)
    assert int((tmp_path / "ran").read_text()) != os.getpid()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.model", "ran"]


def test_a_pickle_that_hangs_is_ended_with_all_it_started(tmp_path):
    started = tmp_path / "started"
    code = f"import subprocess; subprocess.run(['sh', '-c', 'echo $$ > {started}; sleep 600'])"
    with pytest.raises(ModelError, match="not converted within"):
        convert(pickled(tmp_path, code), tmp_path / "bundle", consent=True, limit_s=30)
    pid = int(started.read_text())
    end = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_irreps": "8x0e + 8x1o", "interaction_cls_first": "RealAgnosticInteractionBlock"},
        {"pair_repulsion": True},
        {
            "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
            "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
            "distance_transform": "Agnesi",
        },
        {"radial_type": "gaussian", "correlation": 2, "radial_MLP": [32, 32]},
        {"class": "MACE", "atomic_inter_scale": None, "atomic_inter_shift": None},
        {
            "heads": ["pt_head", "Default"],
            "atomic_energies": [[-13.0, -1030.0, -2040.0], [-13.5, -1031.0, -2042.0]],
            "atomic_inter_scale": [1.0, 1.2],
            "atomic_inter_shift": [0.0, 0.1],
        },
    ],
    ids=["scalars", "L=1", "ZBL", "density", "gaussian", "plain MACE", "two heads"],
)
def test_kinds_of_mace_survive(tmp_path, changes):
    done = convert(checkpoint(tmp_path, **changes), tmp_path / "bundle", consent=True)
    assert done.elements == ELEMENTS and done.structures > 10
    assert done.energy_difference < 1e-8 and done.force_difference < 1e-8
    potential = load(str(tmp_path / "bundle"))
    found = potential.predict(probe.structures(ELEMENTS, potential.cutoff))
    assert np.abs(found.forces[0]).max() > 1e-3


def test_every_head_is_compared_and_one_is_chosen(tmp_path):
    changes = {
        "heads": ["pt_head", "Default"],
        "atomic_energies": [[-13.0, -1030.0, -2040.0], [-13.5, -1031.0, -2042.0]],
        "atomic_inter_scale": [1.0, 1.2], "atomic_inter_shift": [0.0, 0.1],
    }  # fmt: skip
    path = checkpoint(tmp_path, **changes)
    usual = convert(path, tmp_path / "usual", consent=True)
    chosen = convert(path, tmp_path / "chosen", consent=True, head="pt_head")
    assert (usual.head, chosen.head) == ("Default", "pt_head")
    assert chosen.heads == ("pt_head", "Default")
    assert load(str(chosen.folder)).isolated_energies[0] == -13.0
    with pytest.raises(ModelError, match="no head 'other'; the model has pt_head, Default"):
        convert(path, tmp_path / "other", consent=True, head="other")
    assert not (tmp_path / "other").exists()


def test_single_precision_survives_and_paths_may_be_relative(tmp_path, monkeypatch):
    checkpoint(tmp_path, torch.float32)
    monkeypatch.chdir(tmp_path)
    done = convert("made.model", "models/bundle", consent=True)
    assert done.folder == tmp_path / "models" / "bundle"
    assert done.force_difference < 1e-9
    weights = safetensors.torch.load_file(done.folder / WEIGHTS)
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float32}


def test_what_is_no_mace_is_said(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "line.pt")
    with pytest.raises(ModelError, match="holds a Linear; accepted: MACE and ScaleShiftMACE"):
        convert(tmp_path / "line.pt", tmp_path / "bundle", consent=True)
    (tmp_path / "text.model").write_text("hello")
    with pytest.raises(ModelError, match=r"text\.model could not be converted"):
        convert(tmp_path / "text.model", tmp_path / "bundle", consent=True)
    with pytest.raises(ModelError, match="There is no file"):
        convert(tmp_path / "gone.model", tmp_path / "bundle", consent=True)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("x")
    with pytest.raises(ModelError, match="there already"):
        convert(tmp_path / "line.pt", tmp_path / "taken", consent=True)
    assert (tmp_path / "taken" / "mine").read_text() == "x"


@pytest.mark.slow
def test_real_checkpoints_give_the_calculators_energies(tmp_path, shared):
    with guarded():
        from mace.calculators import MACECalculator
    for path in sorted((shared / "models").glob("*.model")):
        done = convert(path, tmp_path / path.stem, consent=True)
        assert done.force_difference < 1e-6  # mace rounds the Agnesi transform to single precision
        original = torch.load(path, map_location="cpu", weights_only=False)
        calculator = MACECalculator(models=[original], device="cpu", default_dtype="float64")
        potential = load(str(done.folder), dtype="float64")
        for structure in probe.structures(done.elements, potential.cutoff):
            atoms = structure.to_atoms()
            atoms.calc = calculator
            found = potential.predict([structure])
            assert found.energies[0] == pytest.approx(atoms.get_potential_energy(), rel=1e-9)
            np.testing.assert_allclose(found.forces[0], atoms.get_forces(), atol=1e-6)
