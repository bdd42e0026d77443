"""Features by the model: activations, exact tangents, and a sketch whose error is known."""

import numpy as np
import pytest
import torch

from core.acquisition.features import KINDS, Features, Recipe, Sketch
from core.acquisition.selection import standardised
from tests.core.finetuning.sample_labels import frames, small_mace


@pytest.fixture(scope="module")
def potential():
    return small_mace(1)


@pytest.fixture(scope="module")
def structures():
    return frames(["CH3CH2OH", "CH4"], 4)


def rows(potential, structures, **given):
    return list(Features(potential, Recipe(**given))(structures))


def test_activations_are_the_pooled_features(potential, structures):
    mean = rows(potential, structures, kind="activation")
    total = rows(potential, structures, kind="activation", pooling="sum")
    for s, one, other in zip(structures, mean, total, strict=True):
        atoms = potential.predict([s], features=True).features[0]
        np.testing.assert_allclose(one[0], atoms.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(other[0], len(s) * one[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "n"), [("ntk", 1), ("force-ntk", 27), ("joint", 28)])
def test_tangents_are_sketched_rows_over_the_noise(potential, structures, kind, n):
    found = rows(potential, structures[:1], kind=kind, width=64, noise_energy=0.01)[0]
    assert found.shape == (n, 64)
    exact = potential.rows(structures[0]).double()
    exact[0] /= 9 * 0.01
    exact[1:] /= 0.03
    wanted = Sketch(exact.shape[1], 64, 0)(exact).numpy()
    part = {"ntk": wanted[:1], "force-ntk": wanted[1:], "joint": wanted}[kind]
    np.testing.assert_allclose(found, part, rtol=1e-6, atol=1e-8)


def test_some_blocks_give_the_kernel_of_these_weights(potential, structures):
    names = tuple(n for n, part in potential.parts().items() if part == "readout")
    found = rows(potential, structures[:2], kind="ntk", width=4096, blocks=names)
    blocks = potential.blocks()
    columns = torch.cat([torch.arange(blocks[n].start, blocks[n].stop) for n in names])
    exact = [
        (potential.rows(s, forces=False)[:, columns] / (len(s) * 0.001)).numpy()
        for s in structures[:2]
    ]
    kernel = float(exact[0][0] @ exact[1][0])
    assert float(found[0][0] @ found[1][0]) == pytest.approx(kernel, rel=0.1)


def test_the_error_of_the_sketch_falls_as_the_root_of_its_width(rng):
    x = torch.as_tensor(rng.normal(size=(40, 5000)))
    exact = (x @ x.T).numpy()
    size = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    off = ~np.eye(40, dtype=bool)
    errors = []
    for width in (64, 256, 1024):
        small = [Sketch(5000, width, seed)(x).numpy() for seed in range(4)]
        gaps = [((s @ s.T - exact) / size)[off] for s in small]
        errors.append(float(np.sqrt(np.mean(np.square(gaps)))))
        assert abs(np.mean(gaps)) < 3 * errors[-1] / np.sqrt(40)
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_features_whatever_is_beside(potential, structures, kind):
    together = rows(potential, structures, kind=kind, width=32)
    alone = rows(potential, structures[2:3], kind=kind, width=32)[0]
    np.testing.assert_allclose(together[2], alone, rtol=1e-6, atol=1e-9)


def test_features_turn_with_nothing(potential, structures):
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    turned = [structures[0].moved(structures[0].positions @ turn.T)]
    for kind in ("activation", "ntk"):
        one, other = (rows(potential, s, kind=kind, width=32)[0] for s in (structures[:1], turned))
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


def test_columns_that_never_vary_are_left_as_they_are(rng):
    mean, spread = standardised(np.column_stack([rng.normal(size=9), np.full(9, 4.0)]))
    assert mean[1] == 4 and spread[1] == 1 and spread[0] != 1
