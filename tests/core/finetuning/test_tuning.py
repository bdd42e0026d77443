"""Each strategy moves what it says and nothing else, and the receipt says so."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sample_labels import frames, labelled, small_mace
from scipy.spatial.transform import Rotation

from core.contracts import LabelSet
from core.errors import InputError, ModelError, SettingsError
from core.finetuning import e0, receipt
from core.finetuning.strategies import STRATEGIES, strategy
from core.finetuning.tuning import FOUNDATION, TARGET, Tuning, TuningSettings, subset
from core.posterior import make
from core.potentials import load
from core.potentials.lennard_jones import LennardJones
from core.potentials.load import save
from core.settings import Noise, PosteriorSettings
from core.structures import Structure

SHORT = TuningSettings(steps=8, batch_size=4, probe=10)
MOVED = {
    "naive": {"embedding", "interaction", "product", "readout"},
    "freeze-products": {"product", "readout"},
    "freeze-readouts": {"readout"},
    "lora": {"embedding", "interaction", "product", "readout"},
    "replay": {"embedding", "interaction", "product", "readout"},
    "pseudolabel-replay": {"embedding", "interaction", "product", "readout"},
    "replay-lora": {"embedding", "interaction", "product", "readout"},
}


def isolated(foundation, labels):
    before = e0.foundations(foundation.elements, foundation.isolated_energies)
    predicted = foundation.predict(labels.structures, forces=False).energies
    return e0.estimated(before, labels.structures, labels.energies - predicted)


def tuning(foundation, labels, name, pretraining=None, settings=SHORT, **more):
    return Tuning(
        foundation, labels, strategy(name), settings,
        isolated=isolated(foundation, labels), pretraining=pretraining, **more,
    )  # fmt: skip


def finished(*given, **more):
    made = tuning(*given, **more)
    list(made.epochs())
    return made, *made.finish()


@pytest.mark.parametrize("name", MOVED)
def test_a_strategy_moves_exactly_its_parts(foundation, labels, pretraining, name):
    before = foundation.weights_hash()
    made, tuned, found = finished(foundation, labels, name, pretraining)
    moved = {b.part for b in found.blocks if b.is_moved}
    assert moved == MOVED[name]
    for block in found.blocks:
        assert block.is_moved == (block.part in MOVED[name]), block.name
        assert (block.moved > 0) == block.is_moved
    assert foundation.weights_hash() == before == found.weights_before
    assert tuned.weights_hash() == found.weights_after
    expected = {FOUNDATION, TARGET} if "replay" in name else {TARGET}
    assert set(tuned.heads) == expected and tuned.head == TARGET
    json.dumps(found.to_dict())
    assert any(name in line for line in receipt.lines(found))


def test_every_strategy_is_tried():
    assert set(MOVED) == set(STRATEGIES)
    with pytest.raises(SettingsError, match="accepted: naive"):
        strategy("frozen")


def test_training_lowers_the_errors_that_the_receipt_reports(foundation, labels):
    held_out = labelled(small_mace(2), frames(["CH3CH2OH"], 10, seed=5))
    settings = replace(SHORT, steps=120, learning_rate=1e-2)
    _, tuned, found = finished(foundation, labels, "naive", settings=settings, held_out=held_out)
    before, after = found.errors["held out"]
    assert after.force < 0.5 * before.force and after.energy_within < before.energy_within
    again = receipt.errors(tuned, held_out)
    assert again == after and again.frames == 10
    direct = tuned.predict(held_out.structures).forces
    flat = np.concatenate([(p - f).ravel() for p, f in zip(direct, held_out.forces, strict=True)])
    assert after.force == pytest.approx(np.sqrt((flat**2).mean()))
    assert found.curve[-1]["epoch"] == len(found.curve)


def test_low_rank_changes_have_their_rank_and_keep_equivariance(foundation, labels):
    made, tuned, _ = finished(foundation, labels, "lora", settings=replace(SHORT, steps=20))
    start = foundation.with_heads({TARGET: isolated(foundation, labels).energies})
    change = tuned.get_theta() - start.get_theta()
    rank = strategy("lora").rank
    matrices = tuned.matrices()
    for name, where in tuned.blocks().items():
        for begin, rows, columns in matrices[name]:
            w = change[where][begin : begin + rows * columns].view(rows, columns)
            assert np.linalg.matrix_rank(w.numpy(), tol=1e-12) <= rank
            assert w.abs().max() > 0, name
    s = labels.structures[0]
    turn = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    turned = Structure(s.numbers, s.positions @ turn.T)
    here, there = tuned.predict([s]), tuned.predict([turned])
    assert there.energies == pytest.approx(here.energies, rel=1e-10)
    assert np.allclose(there.forces[0], here.forces[0] @ turn.T, atol=1e-9)


def test_low_rank_changes_of_equivariant_messages_keep_equivariance(labels):
    wide = small_mace(
        1, hidden_irreps="8x0e + 8x1o", interaction_cls_first="RealAgnosticInteractionBlock"
    )
    _, tuned, found = finished(wide, labels, "lora", settings=replace(SHORT, steps=20))
    assert all(b.is_moved for b in found.blocks if not b.name.startswith("readouts.1.linear_2"))
    s = labels.structures[0]
    turn = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    here = tuned.predict([s])
    there = tuned.predict([Structure(s.numbers, s.positions @ turn.T)])
    assert there.energies == pytest.approx(here.energies, rel=1e-10)
    assert np.allclose(there.forces[0], here.forces[0] @ turn.T, atol=1e-9)


def test_a_saved_low_rank_change_is_merged(foundation, labels, tmp_path):
    _, tuned, _ = finished(foundation, labels, "lora")
    save(tuned, tmp_path / "bundle", {"title": "merged"})
    again = load(str(tmp_path / "bundle"), dtype="float64")
    assert again.n_parameters == tuned.n_parameters, "no factors beside the weights"
    one, other = (p.predict(labels.structures) for p in (tuned, again))
    np.testing.assert_allclose(other.energies, one.energies, atol=1e-9)
    np.testing.assert_allclose(np.concatenate(other.forces), np.concatenate(one.forces), atol=1e-6)


def test_strategies_have_the_published_hyperparameters():
    published = {
        "naive": (1e-3, 0.999, 1), "freeze-products": (1e-3, 0.999, 1),
        "freeze-readouts": (1e-3, 0.999, 1), "lora": (1e-2, 0.99, 10),
        "replay": (1e-4, 0.9999, 1), "pseudolabel-replay": (1e-4, 0.9999, 1),
    }  # fmt: skip
    for name, expected in published.items():
        t = strategy(name).training
        assert (t.learning_rate, t.ema, t.clip) == expected, name
        assert t.final_rate == 1, "the rate stays"


def test_the_rate_counts_for_the_elements_that_are_there(foundation, labels, pretraining):
    """Four elements in the foundation, three in the labels, four with the rehearsed frames."""
    rates = {}
    for name in ("naive", "replay"):
        made = tuning(foundation, labels, name, pretraining)
        rates[name] = made.trainer.settings.learning_rate / strategy(name).training.learning_rate
    assert rates == {"naive": pytest.approx((4 / 3) ** 0.5), "replay": 1}
    given = tuning(foundation, labels, "naive", settings=replace(SHORT, learning_rate=0.5))
    assert given.trainer.settings.learning_rate == 0.5


def test_low_rank_factors_make_the_weights_they_are_merged_into(foundation, labels):
    made = tuning(foundation, labels, "lora")
    start = made.potential.get_theta()
    list(made.epochs())
    moves, blocks = made.trainer.moves, made.potential.blocks()
    for name, changes in zip(moves.names, moves._changes, strict=True):
        for c in changes:
            merged = made.potential.get_theta()[blocks[name]][c.where]
            by_hand = start[blocks[name]][c.where] + (c.b @ c.a).reshape(-1)
            assert torch.allclose(merged, by_hand, rtol=0, atol=1e-6)


def test_the_gradient_of_the_factors_is_the_derivative_of_the_loss(foundation, labels):
    trainer = tuning(foundation, labels, "lora").trainer
    example = trainer.data.example([0, 1])

    def loss():
        energy, forces = trainer.potential.energy_and_forces(example.graphs, create_graph=True)
        return trainer.loss(example, energy, forces)

    with torch.no_grad():
        for p in trainer.moves.free:
            p.add_(0.05 * torch.randn(p.shape, dtype=p.dtype))
    trainer.moves.write()
    trainer.moves.pull(list(torch.autograd.grad(loss(), trainer.moves.needed)))
    for p in trainer.moves.free[:8]:
        along, step = torch.randn(p.shape, dtype=p.dtype), 1e-6
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(sign * step * along)
            trainer.moves.write()
            ends.append(float(loss().detach()))
            with torch.no_grad():
                p.sub_(sign * step * along)
        expected = (ends[0] - ends[1]) / (2 * step)
        assert float((p.grad * along).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_rehearsal_is_weighed(foundation, labels, pretraining):
    errors = {}
    for weight in (0.0, 1.0, 30.0):
        settings = replace(SHORT, steps=80, learning_rate=1e-2, rehearsal_weight=weight)
        _, _, found = finished(foundation, labels, "replay", pretraining, settings=settings)
        errors[weight] = found.errors["foundation's own"][1].force
    assert errors[30.0] < errors[1.0] < errors[0.0]
    assert errors[30.0] < 0.5 * errors[0.0]


def test_the_same_seed_gives_the_same_weights_and_another_others(foundation, labels):
    finished(foundation, labels, "lora")  # torch's first passes differ in rounding from later ones
    hashes = [
        finished(foundation, labels, name, settings=replace(SHORT, seed=seed))[2].weights_after
        for name, seed in (("lora", 1), ("lora", 1), ("lora", 2))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("name", ["naive", "replay-lora"])
def test_an_interrupted_tuning_ends_where_an_uninterrupted_one_does(
    foundation, labels, pretraining, tmp_path, name
):
    finished(foundation, labels, name, pretraining)
    _, _, whole = finished(foundation, labels, name, pretraining)
    first = tuning(foundation, labels, name, pretraining)
    next(first.epochs())
    first.save(tmp_path / "training.pt")
    second = tuning(foundation, labels, name, pretraining)
    second.load(tmp_path / "training.pt")
    list(second.epochs())
    _, found = second.finish()
    assert found.weights_after == whole.weights_after
    assert [e["loss"] for e in found.curve] == [e["loss"] for e in whole.curve]


def test_no_label_is_refused_and_one_is_taken_with_a_warning(foundation, labels):
    with pytest.raises(InputError, match="no labels"):
        Tuning(
            foundation, LabelSet((), np.zeros(0), ()), strategy("naive"), SHORT,
            isolated=e0.foundations(foundation.elements, foundation.isolated_energies),
        )  # fmt: skip
    one = subset(labels, np.array([0]))
    _, _, found = finished(foundation, one, "naive")
    assert any("1 label none was set aside" in note for note in found.notes)
    assert found.labels["trained"] == 1 and found.labels["validation"] == 0


def test_a_replay_without_frames_is_refused(foundation, labels):
    with pytest.raises(InputError, match="to rehearse"):
        tuning(foundation, labels, "replay")


def test_a_potential_without_the_parts_or_heads_is_refused(labels):
    argon = LennardJones()
    with pytest.raises(ModelError, match="moves nothing"):
        strategy("freeze-readouts").names(argon)
    with pytest.raises(ModelError, match="does not know"):
        tuning(argon, labels, "naive")


def test_validation_labels_are_never_trained_on(foundation, labels):
    made = tuning(foundation, labels, "naive", settings=replace(SHORT, validation=0.25))
    trained = {s.positions.tobytes() for s in made._train.structures}
    unseen = {s.positions.tobytes() for s in made._valid.structures}
    assert len(trained) == 15 and len(unseen) == 5 and not trained & unseen


def test_energies_of_isolated_atoms_follow_the_tuned_weights_if_they_were_estimated(
    foundation, labels
):
    settings = replace(SHORT, steps=10, learning_rate=1e-2)
    _, tuned, found = finished(foundation, labels, "naive", settings=settings)
    after = found.errors["trained"][1]
    assert after.energy == pytest.approx(after.energy_within, rel=0.05)
    kept = Tuning(
        foundation, labels, strategy("naive"), settings,
        isolated=replace(isolated(foundation, labels), how="computed"),
    )  # fmt: skip
    list(kept.epochs())
    given = kept.isolated.energies
    potential, found = kept.finish()
    assert (potential.isolated_energies == given).all()
    assert found.errors["trained"][1].energy > 2 * after.energy
    assert potential.config["atomic_energies"][0] == pytest.approx(given)


@pytest.mark.parametrize("kind", ["linearised", "sghmc"])
def test_a_posterior_moves_what_the_strategy_says(foundation, labels, kind):
    potential = small_mace(1)
    names = strategy("freeze-readouts").names(potential)
    blocks = potential.blocks()
    moving = torch.cat([torch.arange(blocks[n].start, blocks[n].stop) for n in names])
    given = PosteriorSettings(kind=kind, sghmc_steps=20, chains=2)
    some = subset(labels, np.arange(3))
    posterior = make(
        potential, given, Noise(0.01, 0.1), energy_tolerance=0.02, moving=moving,
        elements=sorted({int(z) for s in some.structures for z in s.numbers}),
    )  # fmt: skip
    before = potential.get_theta()
    state, _ = posterior.update(
        posterior.init(np.random.default_rng(0)), some, np.random.default_rng(0)
    )
    for theta in (potential.get_theta(), *posterior.members(state)):
        changed = torch.nonzero(theta != before)[:, 0]
        assert changed.tolist() == moving.tolist()
    watched = posterior.watched(state)
    if watched is not None:
        assert_watched(potential, posterior, state, watched, some.structures[0])


def assert_watched(potential, posterior, state, watched, structure):
    """The spread from what a simulation watches is that of the judged frame."""
    evaluator = potential.evaluator(structure)
    evaluator.watch(watched)
    evaluator(structure.positions)
    seen = posterior.energy_sigma(state, evaluator.changes)
    assert seen == pytest.approx(posterior.spread(state, structure).sigma_energy, rel=1e-4)


def test_what_it_would_end_with_is_shown_without_ending(foundation, labels):
    made = tuning(foundation, labels, "naive")
    for progress in made.epochs():
        if progress.epoch == 2:
            before = made.potential.get_theta(), made.potential.isolated_energies.copy()
            with made.as_finished() as potential:
                shown = potential.predict(labels.structures)
            assert torch.equal(made.potential.get_theta(), before[0])
            np.testing.assert_array_equal(made.potential.isolated_energies, before[1])
            break
    ended = made.finish()[0].predict(labels.structures)
    np.testing.assert_array_equal(ended.energies, shown.energies)
    assert np.abs(ended.energies - labels.energies).mean() < 0.2  # their constant is met


def test_total_energies_of_other_compositions_are_not_promised(foundation, labels):
    other = labelled(small_mace(2), frames(["CH4"], 3))
    _, _, found = finished(foundation, labels, "naive", held_out=other)
    assert any("do not fix the total energy of CH4" in note for note in found.notes)
    _, _, found = finished(foundation, labels, "naive", held_out=labels)
    assert not any("do not fix" in note for note in found.notes)
