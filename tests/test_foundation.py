"""The tools that train the bundled model: the optimiser, and the compiled gradient."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule

from core.contracts import LabelSet
from core.potentials import load
from core.potentials.mace import MacePotential, default_config
from core.structures import from_atoms
from core.training import Dataset, Loss

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "assets" / "foundation"))

from check import pressed
from choose import RIDGE, by_leverage
from dataset import Sample
from gradients import Gradients, Padded, Shape, packed
from resident import Resident, pack
from soap import Soap
from widen import widened

CHANNELS = 8
MOLECULES = [from_atoms(molecule(name)) for name in ("H2O", "CH3OH", "CH4", "C2H6", "CO2", "O2")]


@pytest.fixture
def potential() -> MacePotential:
    torch.manual_seed(1)
    isolated = np.array([-1.0, -2.0, -3.0])
    return MacePotential(
        default_config((1, 6, 8), isolated, channels=CHANNELS, max_ell=2, pair_repulsion=True)
    )


@pytest.fixture
def data(potential: MacePotential) -> Dataset:
    rng = np.random.default_rng(1)
    return Dataset(
        potential,
        LabelSet(
            tuple(MOLECULES),
            np.array([potential.isolated_energy(s) for s in MOLECULES]) + rng.normal(size=6),
            tuple(rng.normal(size=s.positions.shape) for s in MOLECULES),
        ),
    )


def test_every_example_is_packed_once_and_batches_fit(data: Dataset) -> None:
    shape = Shape(atoms=14, edges=60, structures=4, width=8)
    batches = list(packed(data, shape, np.random.default_rng(1)))
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert len(batches) > 1
    for batch in batches:
        sizes = [data.size(i) for i in batch]
        assert sum(n for n, _ in sizes) <= shape.atoms - 2
        assert sum(m for _, m in sizes) <= shape.edges
        assert len(batch) < shape.structures


def descend(potential: MacePotential, target: torch.Tensor, soap: Soap, steps: int) -> float:
    """Take steps down a narrow valley; return the height above its floor."""
    for _ in range(steps):
        height = torch.zeros(())
        for p, wanted in zip(potential.parameters(), target, strict=True):
            off = (p - wanted).reshape(len(p), -1)
            height = height + (off.sum(0) ** 2).sum() + 1e-2 * (off**2).sum()
        gradients = torch.autograd.grad(height, potential.parameters())
        for p, g in zip(potential.parameters(), gradients, strict=True):
            p.grad = g
        soap.step()
    return float(height.detach())


def test_soap_goes_down_a_narrow_valley_and_resumes_exactly(potential: MacePotential) -> None:
    target = [p.detach() + 0.3 for p in potential.parameters()]
    start = potential.get_theta()
    soap = Soap(potential.module, CHANNELS, rate=0.1)
    first = descend(potential, target, soap, 1)
    halfway = descend(potential, target, soap, 30)
    theta, state = potential.get_theta(), soap.state()
    kept = torch.load(_saved(state), weights_only=True)
    last = descend(potential, target, soap, 31)
    through = potential.get_theta()
    assert last < 0.5 * halfway < 0.5 * first
    assert not torch.equal(theta, start)

    potential.set_theta(theta)
    other = Soap(potential.module, CHANNELS, rate=0.1)
    other.restore(kept)
    assert descend(potential, target, other, 31) == last
    assert torch.equal(potential.get_theta(), through)


def _saved(state: dict[str, object]):  # type: ignore[no-untyped-def]
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


@pytest.mark.slow
def test_the_compiled_gradient_is_that_of_the_loss(potential: MacePotential, data: Dataset) -> None:
    loss = Loss(energy=20.0, force=10.0, per_atom=1.0, huber=0.05)
    shape = Shape(atoms=40, edges=200, structures=8, width=8)
    source = Padded(data, len(potential.elements))
    gradients = Gradients(potential, loss, shape, source.inputs([0, 1, 2], shape))
    for batch in ([0, 1, 2], [3, 4, 5, 0], [5]):
        example = data.example(batch)
        energy, forces = potential.energy_and_forces(example.graphs, create_graph=True)
        expected = loss(example, energy, forces)
        slopes = torch.autograd.grad(expected, potential.parameters())
        found, got = gradients(source.inputs(batch, shape))
        assert float(found) == pytest.approx(float(expected.detach()), rel=1e-5)
        scale = max(float(g.abs().max()) for g in slopes)
        for g, wanted in zip(got, slopes, strict=True):
            assert float((g - wanted).abs().max()) < 1e-5 * scale


def test_packed_frames_on_a_device_give_the_inputs_of_the_dataset(
    potential: MacePotential, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    frames = [
        Sample(
            s.numbers, s.positions, rng.normal(size=s.positions.shape), -float(len(s)), 0, "md", 0
        )
        for s in MOLECULES
    ]
    pack(tmp_path / "packed.npz", frames)
    labels = LabelSet(
        tuple(MOLECULES), np.array([f.energy for f in frames]), tuple(f.forces for f in frames)
    )
    source = Padded(Dataset(potential, labels), len(potential.elements))
    resident = Resident(potential, tmp_path / "packed.npz")
    assert resident.width == source.width
    assert [resident.size(i) for i in range(6)] == [source.size(i) for i in range(6)]
    shape = Shape(atoms=40, edges=200, structures=8, width=8)
    for batch in ([0, 1, 2], [3, 5, 0], [4]):
        wanted, (positions, *found) = source.inputs(batch, shape), resident.inputs(batch, shape)
        for a, b in zip(found, wanted[1:], strict=True):
            assert a.shape == b.shape
            assert float((a.double() - b.double()).abs().max()) < 1e-4
        *_, senders, receivers = wanted[:3]
        between = [(x[senders] - x[receivers]).norm(dim=1) for x in (positions, wanted[0])]
        # the atoms that missing edges join are not where their molecule's centre was
        near = between[1] < 900
        assert float((between[0] - between[1])[near].abs().max()) < 1e-4


def test_molecules_are_taken_by_how_little_is_known_about_their_atoms() -> None:
    rng = np.random.default_rng(1)
    usual = np.array([1, 1, 0.1, 0.1])
    known = [usual * rng.normal(size=(5, 4)) for _ in range(20)]
    new = np.array([[0.1, 0.0, 3.0, 0.0]])
    pool = [*(usual * rng.normal(size=(3, 4)) for _ in range(8)), new, new + 1e-3]
    taken, scores = by_leverage(known, pool, 99)
    assert sorted(taken) == list(range(10)) and by_leverage(known, pool, 0) == ([], [])
    assert {8, 9} == set(taken[:2]) and scores[1] < 0.6 * scores[0], "its twin is known by then"
    seen = np.concatenate(known)
    scale = np.sqrt((seen**2).mean(axis=0))
    gram = (seen / scale).T @ (seen / scale) + RIDGE * len(seen) * np.eye(4)
    for i, score in zip(taken, scores, strict=True):
        rows = pool[i] / scale
        by_hand = (rows @ np.linalg.inv(gram) * rows).sum(axis=1).mean()
        assert score == pytest.approx(by_hand, rel=1e-9)
        gram += rows.T @ rows


def test_a_widened_model_predicts_the_same_and_its_new_channels_learn(
    potential: MacePotential,
) -> None:
    wide = widened(potential, CHANNELS + 5, seed=1)
    one, other = potential.predict(MOLECULES), wide.predict(MOLECULES)
    assert one.forces is not None and other.forces is not None
    np.testing.assert_allclose(other.energies, one.energies, atol=1e-4)
    for a, b in zip(one.forces, other.forces, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    energy, _ = wide.energy_and_forces(wide.graphs(MOLECULES), create_graph=True)
    slopes = dict(
        zip(wide.blocks(), torch.autograd.grad((energy**2).sum(), wide.parameters()), strict=True)
    )
    assert slopes["readouts.0.linear.weight"].view(CHANNELS + 5, -1)[CHANNELS:].abs().min() > 0
    with pytest.raises(ValueError, match="the model has 8"):
        widened(potential, CHANNELS - 1, seed=1)


def test_all_pairs_of_the_bundled_models_elements_repel_down_to_half_an_angstrom() -> None:
    push = pressed(load("bundled"))  # type: ignore[arg-type]
    assert len(push) == 66
    assert min(push.values()) > 0, {name: force for name, force in push.items() if force <= 0}
