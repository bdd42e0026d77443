"""A label is believed only if its forces can be a gradient, and comes back from its file."""

from dataclasses import replace

import numpy as np
import pytest
from sample_references import Springs, triangle

from core.contracts import Label
from core.errors import LabelError
from core.reference.base import load_label, save_label, validate
from core.structures import Structure


def crowd(rng, n=9) -> Structure:
    return Structure(np.full(n, 6), rng.uniform(0, 4, (n, 3)))


def test_forces_of_a_potential_pass(rng):
    for n in (1, 2, 3, 9, 50):
        validate(Springs().compute(crowd(rng, n)))


def test_permuted_forces_are_caught(rng):
    for _ in range(50):
        label = Springs().compute(crowd(rng))
        order = np.roll(np.arange(9), rng.integers(1, 9))
        with pytest.raises(LabelError, match="wrong atoms") as caught:
            validate(replace(label, forces=label.forces[order]))
        assert caught.value.kind == "rejected"


def test_noise_of_a_coarse_grid_passes(rng):
    for _ in range(20):
        label = Springs().compute(crowd(rng))
        validate(replace(label, forces=label.forces + 0.004 * rng.standard_normal((9, 3))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f + 0.2, "sum to zero"),
        (lambda f: f * np.nan, "not finite"),
        (lambda f: f[:-1], "shape"),
    ],
)
def test_impossible_forces_are_caught(rng, change, words):
    label = Springs().compute(crowd(rng))
    with pytest.raises(LabelError, match=words):
        validate(replace(label, forces=change(label.forces)))


def test_published_dft_labels_pass(shared):
    data = np.load(shared / "data" / "rmd17-ethanol" / "train_01.npz")
    for positions, force in zip(data["coords"][:100], data["forces"][:100], strict=True):
        frame = Structure(data["nuclear_charges"], positions)
        validate(Label(frame, 0.0, force * 0.0433641, "PBE"))


def test_crystals_have_no_torque_to_check(rng):
    frame = Structure(np.full(4, 6), rng.uniform(0, 4, (4, 3)), 4 * np.eye(3), (True,) * 3)
    force = rng.standard_normal((4, 3))
    validate(Label(frame, 0.0, force - force.mean(0), "any"))


@pytest.mark.parametrize("stress", [None, np.arange(6.0)])
def test_a_stored_label_comes_back_exactly(tmp_path, stress):
    frame = replace(triangle(), fixed=(1,), charge=-1, spin=2)
    label = replace(Springs().compute(frame), wall_s=1.5, stress=stress)
    save_label(tmp_path / "a.npz", label)
    loaded = load_label(tmp_path / "a.npz")
    assert loaded.structure.key == frame.key and loaded.structure.fixed == (1,)
    assert (loaded.energy, loaded.fingerprint, loaded.wall_s) == (label.energy, "springs 1.0", 1.5)
    np.testing.assert_array_equal(loaded.forces, label.forces)
    np.testing.assert_array_equal(loaded.structure.positions, frame.positions)
    assert (loaded.stress is None) == (stress is None)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off", b"no archive at all"])
def test_a_damaged_label_file_says_so(tmp_path, damage):
    path = tmp_path / "a.npz"
    path.write_bytes(damage)
    with pytest.raises(LabelError, match=r"a\.npz is damaged"):
        load_label(path)
