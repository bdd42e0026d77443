"""The quick evaluation of invariant MACE against mace's own layers."""

import numpy as np
import pytest
import torch

from core.potentials.invariant import InvariantLayers
from core.potentials.mace import MacePotential, default_config
from core.structures import Structure


def potential(max_ell=2, **changes):
    torch.manual_seed(3)
    config = default_config((1, 6, 8), np.array([-1.0, -2.0, -4.0]), channels=6, max_ell=max_ell)
    return MacePotential(config | changes, dtype=torch.float64)


def structures(rng):
    """A molecule, a sparse cluster with atoms that have no neighbour, and a small crystal."""
    molecule = Structure(np.array([8, 6, 1, 1, 6]), 1.6 * rng.standard_normal((5, 3)))
    sparse = Structure(
        np.array([1, 1, 8, 6]), np.array([[0, 0, 0], [1, 0, 0], [9, 9, 9], [0, 1.2, 0.3]])
    )
    crystal = Structure(
        np.array([6, 8]), np.array([[0, 0, 0], [1.5, 1.4, 1.6]]), 3.1 * np.eye(3), (True,) * 3
    )
    return [molecule, sparse, crystal]


def everything(model, batch):
    graphs = model.graphs(batch)
    energy, forces, features = model.energy_forces_features(graphs)
    loss = energy.pow(2).sum() + forces.pow(2).sum()
    grads = torch.autograd.grad(loss, model.parameters())
    return [energy, forces, features, *grads]


@pytest.mark.parametrize("max_ell", [1, 2, 3])
def test_energies_forces_features_and_weight_gradients_are_those_of_mace(rng, max_ell):
    model = potential(max_ell)
    batch = structures(rng)
    assert model._invariant is not None
    quick = everything(model, batch)
    model._invariant = None
    for a, b in zip(quick, everything(model, batch), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_models_of_another_make_are_left_to_mace():
    assert not InvariantLayers.suits(potential(hidden_irreps="6x0e+6x1o").module)
    assert not InvariantLayers.suits(potential(correlation=2).module)
    other = {"interaction_cls": "RealAgnosticInteractionBlock"}
    assert not InvariantLayers.suits(potential(**other).module)


def test_equivariant_messages_still_predict(rng):
    model = potential(hidden_irreps="6x0e+6x1o")
    assert model._invariant is None
    assert np.abs(model.predict(structures(rng)[:1]).forces[0]).max() > 1e-4
