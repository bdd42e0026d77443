"""A frozen potential as the truth: same numbers, a fingerprint of its weights, clear refusals."""

import json

import numpy as np
import pytest
import safetensors.numpy

from core.errors import LabelError, ModelError
from core.potentials import load
from core.reference import make
from core.reference.teacher import of_bundle
from core.structures import Structure

ARGON = Structure(np.array([18, 18, 18]), np.array([[0.0, 0, 0], [3.6, 0, 0], [0.4, 3.9, 0.1]]))


def bundle(folder, value: float):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"format": 1}))
    safetensors.numpy.save_file({"w": np.full(3, value)}, folder / "model.safetensors")
    return str(folder)


def test_the_teacher_labels_as_its_potential_predicts():
    label = make("teacher:lennard-jones").compute(ARGON)
    truth = load("lennard-jones", dtype="float64").predict([ARGON])
    assert label.energy == truth.energies[0]
    np.testing.assert_array_equal(label.forces, truth.forces[0])


def test_the_fingerprint_follows_the_weights_not_the_place(tmp_path):
    same = [of_bundle(bundle(tmp_path / name, 1.0)).fingerprint for name in ("a", "b")]
    assert same[0] == same[1]
    assert of_bundle(bundle(tmp_path / "c", 1.1)).fingerprint != same[0]
    assert str(tmp_path) not in same[0]


def test_elements_the_teacher_does_not_know_are_refused():
    water = Structure(np.array([8, 1, 1]), ARGON.positions)
    with pytest.raises(LabelError, match="The teacher cannot label this") as caught:
        make("teacher:lennard-jones").check(water)
    assert caught.value.kind == "unsupported"


def test_a_teacher_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        make("teacher:nowhere")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        make(f"teacher:{tmp_path}")
