"""A potential on another device computes what it computes on the processor.

Where there is no CUDA card, a stand-in made of the processor serves (`stand_in_card`): it refuses
to mix devices as a card does.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from core.contracts import LabelSet
from core.errors import ModelError, SettingsError
from core.potentials import device
from core.potentials.lennard_jones import LennardJones
from core.potentials.load import load
from core.structures import Structure
from tests.core.potentials import stand_in_card
from tests.core.potentials.test_contract import POTENTIALS, tiny_mace

CARDS = ["stand-in", "cuda"]


@pytest.fixture(params=CARDS)
def card(request):
    """The device; within the test it computes."""
    real = request.param == "cuda"
    if real and not torch.cuda.is_available():
        pytest.skip("needs a CUDA card")
    with nullcontext() if real else stand_in_card.Card():
        yield device.CUDA if real else stand_in_card.DEVICE


@pytest.fixture(params=POTENTIALS)
def pair(request, card):
    """The same potential on the processor and on the card."""
    here, there = POTENTIALS[request.param](), POTENTIALS[request.param]()
    there.set_theta(here.get_theta())
    there.move_to(card)
    return here, there


@pytest.fixture
def molecule(rng):
    grid = np.array([[0, 0, 0], [1.4, 0, 0], [0, 1.5, 0], [0, 0, 1.3], [1.5, 1.4, 0.2]])
    return Structure(np.array([6, 8, 1, 7, 1]), grid + 0.1 * rng.standard_normal(grid.shape))


@pytest.fixture
def crystal(molecule):
    return Structure(molecule.numbers, molecule.positions, 3.2 * np.eye(3), (True, True, True))


def agree(now, then):
    np.testing.assert_allclose(np.asarray(now), np.asarray(then), rtol=1e-9, atol=1e-11)


def test_the_stand_in_refuses_to_mix_devices():
    with stand_in_card.Card():
        there = torch.ones(3, device=stand_in_card.DEVICE)
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()
        assert (2 * there + 1).cpu().numpy().tolist() == [3.0, 3.0, 3.0]


def test_predictions_and_derivatives_agree(pair, molecule, crystal):
    here, there = pair
    assert here.device.type != there.device.type == there.parameters()[0].device.type
    for structures in ([molecule, molecule.moved(1.02 * molecule.positions)], [crystal]):
        stress = structures[0] is crystal
        now, then = (
            p.predict(structures, features=True, stress=stress) for p in (there, here)
        )  # fmt: skip
        agree(now.energies, then.energies)
        for a, b in zip((*now.forces, *now.features), (*then.forces, *then.features), strict=True):
            agree(a, b)
        found, expected = there.derivatives(structures[0]), here.derivatives(structures[0])
        assert found.gradient.device.type == "cpu"
        agree(found.gradient, expected.gradient)
        if stress:
            agree(now.stress, then.stress)
    rows = there.rows(crystal, stress=True)
    assert rows.device.type == "cpu"
    agree(rows, here.rows(crystal, stress=True))
    assert there.weights_hash() == here.weights_hash()


def test_steps_and_members_agree(pair, crystal, rng):
    here, there = pair
    columns = len(here.relevant(crystal.numbers))
    directions = torch.as_tensor(rng.standard_normal((3, columns)), dtype=here.dtype)
    found = []
    for potential in (there, here):
        evaluate = potential.evaluator(crystal)
        plain = evaluate(crystal.positions)
        evaluate.watch(directions)
        moved = evaluate(1.01 * crystal.positions, 1.01 * crystal.cell)
        found.append([*plain, *moved, evaluate.changes, evaluate.stress])
    for now, then in zip(*found, strict=True):
        agree(now, then)
    thetas = here.get_theta() + 0.01 * torch.randn(4, here.n_parameters, dtype=here.dtype)
    for a, b in zip(there.members()(crystal, thetas), here.members()(crystal, thetas), strict=True):
        agree(a, b)
    steps = 0.01 * torch.randn(2, here.n_parameters, dtype=here.dtype)
    slopes = [p.members().slopes(crystal, here.get_theta(), steps) for p in (there, here)]
    for a, b in zip(*slopes, strict=True):
        agree(a, b)


@pytest.fixture
def structures(molecule, rng):
    shifts = 0.05 * rng.standard_normal((4, 5, 3))
    return tuple(molecule.moved(molecule.positions + shift) for shift in shifts)


def own_and_labels(potential, structures):
    """What a potential says itself of structures, and labels that differ from that."""
    said = potential.predict(structures)
    own = LabelSet(structures, said.energies, said.forces)
    return own, LabelSet(structures, said.energies + 0.1, tuple(1.1 * f for f in said.forces))


@pytest.mark.parametrize("name", ["naive", "lora", "replay"])
def test_fine_tuning_agrees(card, name, structures):
    from core.finetuning import e0
    from core.finetuning.strategies import strategy
    from core.finetuning.tuning import Tuning, TuningSettings

    found = []
    for place in (card, device.CPU):
        potential = tiny_mace()
        own, labels = own_and_labels(potential, structures)
        potential.move_to(place)
        before = e0.foundations(potential.elements, potential.isolated_energies)
        tuning = Tuning(
            potential, labels, strategy(name), TuningSettings(steps=4, batch_size=2),
            isolated=e0.estimated(before, structures, np.full(4, 0.1)), pretraining=own,
        )  # fmt: skip
        for _ in tuning.epochs():
            pass
        tuned, receipt = tuning.finish()
        assert tuned.device == torch.device(place)
        found.append([tuned.get_theta(), receipt.errors["trained"][1].force])
    for now, then in zip(*found, strict=True):
        agree(now, then)


def test_the_linearised_posterior_agrees(card, structures):
    from core.posterior.linearised import Linearised

    found = []
    for place in (card, device.CPU):
        potential = tiny_mace()
        _, labels = own_and_labels(potential, structures)
        potential.move_to(place)
        posterior = Linearised(
            potential, prior_std=0.05, noise_energy=0.01, noise_force=0.05, members=4
        )
        state = posterior.init(np.random.default_rng(0))
        state, _ = posterior.update(state, labels, np.random.default_rng(1))
        posterior.activate(state)
        spread = posterior.spread(state, structures[0])
        found.append([state.theta, spread.energy, spread.forces, spread.sigma_energy,
                      spread.sigma_forces])  # fmt: skip
    for now, then in zip(*found, strict=True):
        np.testing.assert_allclose(np.asarray(now), np.asarray(then), rtol=1e-6, atol=1e-8)


@pytest.fixture
def pretended(monkeypatch):
    """The stand-in is what torch finds as a card."""
    monkeypatch.setattr(device, "CUDA", stand_in_card.DEVICE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda card: "Stand-in 1")
    with stand_in_card.Card():
        yield monkeypatch


@pytest.mark.parametrize(("here", "there"), [(1.0, 2.0), (2.0, 1.0)])
def test_auto_takes_the_faster_device(pretended, molecule, here, there):
    seconds, step = iter([here, there]), device._step
    pretended.setattr(device, "_step", lambda p, s: (next(seconds), step(p, s)[1]))
    potential = tiny_mace()
    said = device.place(potential, molecule, "auto")
    assert "Stand-in 1" in said
    if here < there:
        assert potential.device == device.CPU and "computes on the processor" in said
    else:
        assert potential.device == stand_in_card.DEVICE and "computes on the card" in said


def test_a_card_that_computes_something_else_is_not_used(pretended, molecule):
    step = device._step

    def wrong(potential, structure):
        seconds, (energy, forces) = step(potential, structure)
        return seconds, (energy, forces * (1.001 if potential.device != device.CPU else 1.0))

    pretended.setattr(device, "_step", wrong)
    potential = tiny_mace()
    said = device.place(potential, molecule, "auto")
    assert potential.device == device.CPU and "its forces came out wrong by" in said
    with pytest.raises(ModelError, match="contradicts the processor"):
        device.place(potential, molecule, "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA card")
def test_without_a_card_auto_computes_here_and_cuda_says_what_to_do(molecule):
    potential = LennardJones((1, 6, 7, 8))
    assert device.place(potential, molecule, "auto") == ""
    for call in (
        lambda: device.place(potential, molecule, "cuda"),
        lambda: load("lennard-jones", device="cuda"),
    ):
        with pytest.raises(ModelError, match="cannot be used here.*Accepted: cpu; auto"):
            call()


def test_posteriors_with_networks_of_their_own_stay_on_the_processor():
    from core.posterior import device_for

    assert device_for("linearised", "auto") == "auto"
    assert device_for("blip", "auto") == "cpu"
    with pytest.raises(SettingsError, match="computes on the processor"):
        device_for("sghmc", "cuda")
