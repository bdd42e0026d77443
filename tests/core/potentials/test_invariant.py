"""The quick evaluation of invariant MACE against mace's own layers."""

from dataclasses import replace

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


PLAIN = "RealAgnosticInteractionBlock"


@pytest.mark.parametrize("first", [PLAIN, "RealAgnosticResidualInteractionBlock"])
@pytest.mark.parametrize("max_ell", [1, 2, 3])
def test_energies_forces_features_and_weight_gradients_are_those_of_mace(rng, max_ell, first):
    model = potential(max_ell, interaction_cls_first=first)
    batch = structures(rng)
    assert model._invariant is not None
    quick = everything(model, batch)
    model._invariant = None
    for a, b in zip(quick, everything(model, batch), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_few_products_make_the_contraction():
    invariants = potential(3)._invariant._layers[0].contraction._invariants
    assert len(invariants._first) == 56  # of the 136 there are


def test_models_of_another_make_are_left_to_mace():
    assert not InvariantLayers.suits(potential(hidden_irreps="6x0e+6x1o").module)
    assert not InvariantLayers.suits(potential(correlation=2).module)
    other = {"interaction_cls": "RealAgnosticDensityInteractionBlock"}
    assert not InvariantLayers.suits(potential(**other).module)


def test_equivariant_messages_still_predict(rng):
    model = potential(hidden_irreps="6x0e+6x1o")
    assert model._invariant is None
    assert np.abs(model.predict(structures(rng)[:1]).forces[0]).max() > 1e-4


@pytest.mark.parametrize("first", [PLAIN, "RealAgnosticResidualInteractionBlock"])
def test_weights_of_absent_elements_are_left_out_and_no_others(rng, first):
    model = potential(interaction_cls_first=first)
    water = Structure(np.array([8, 1, 1]), 1.3 * rng.standard_normal((3, 3)))
    rows = model.rows(water).abs().amax(dim=0)
    relevant = torch.zeros(model.n_parameters, dtype=torch.bool)
    relevant[model.relevant(water.numbers)] = True
    assert (rows[~relevant] == 0).all() and (~relevant).sum() > 0
    of_elements = torch.cat(
        [torch.full((w.stop - w.start,), "skip_tp" in n) for n, w in model.blocks().items()]
    )
    assert (rows[relevant & of_elements] > 0).all()


@pytest.mark.parametrize("first", [PLAIN, "RealAgnosticResidualInteractionBlock"])
def test_elements_given_one_hot_make_no_difference(rng, first):
    model = potential(interaction_cls_first=first)
    plain = model.graphs(structures(rng))
    wide = replace(plain, one_hot=torch.eye(3, dtype=torch.float64)[plain.species])
    torch.testing.assert_close(model.energies(plain)[0], model.energies(wide)[0])
