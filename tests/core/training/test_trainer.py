"""The trainer on Lennard-Jones: it finds known parameters, resumes exactly, and averages."""

import numpy as np
import pytest
import torch

from core.contracts import LabelSet
from core.potentials.lennard_jones import LennardJones
from core.structures import Structure
from core.training import Dataset, Loss, Task, Trainer, TrainerSettings, mean_loss


@pytest.fixture
def labels(rng):
    teacher = LennardJones(epsilon=0.02, sigma=3.2)
    base = 3.7 * np.stack(np.meshgrid(*[[0, 1]] * 3), -1).reshape(-1, 3)[:6]
    structures = tuple(
        Structure(np.full(6, 18), base + 0.15 * rng.standard_normal((6, 3))) for _ in range(12)
    )
    out = teacher.predict(structures)
    return LabelSet(structures, out.energies, out.forces)


def make(labels, epochs, **settings):
    potential = LennardJones()
    data = Dataset(potential, labels)
    chosen = TrainerSettings(epochs=epochs, batch_size=4, learning_rate=0.03, ema=0.9, **settings)
    return Trainer(potential, data, chosen, loss=Loss(), rng=np.random.default_rng(1)), data


def test_training_recovers_the_teachers_parameters(labels):
    trainer, data = make(labels, epochs=80)
    first = mean_loss(trainer.potential, data, Loss())
    for _ in trainer.epochs():
        pass
    theta = trainer.potential.get_theta().exp()
    assert theta[0] == pytest.approx(0.02, rel=0.02)
    assert theta[1] == pytest.approx(3.2, rel=0.005)
    assert mean_loss(trainer.potential, data, Loss()) < 0.05**2 * first


def test_a_run_that_is_interrupted_ends_where_an_uninterrupted_one_does(labels, tmp_path):
    straight, _ = make(labels, epochs=6)
    list(straight.epochs())
    broken, _ = make(labels, epochs=6)
    for progress in broken.epochs():
        if progress.epoch == 3:
            broken.save(tmp_path / "c.pt")
            break
    resumed, _ = make(labels, epochs=6)
    resumed.load(tmp_path / "c.pt")
    assert [p.epoch for p in resumed.epochs()] == [4, 5, 6]
    torch.testing.assert_close(
        resumed.potential.get_theta(), straight.potential.get_theta(), rtol=0, atol=0
    )
    torch.testing.assert_close(resumed.averaged_theta(), straight.averaged_theta())


def test_an_epoch_cut_short_is_done_again_as_a_whole(labels, tmp_path):
    straight, _ = make(labels, epochs=4)
    list(straight.epochs())
    broken, _ = make(labels, epochs=4)
    step = broken._step

    def cut(indices):
        if broken.steps == 7:  # three in an epoch
            raise KeyboardInterrupt
        return step(indices)

    broken._step = cut
    with pytest.raises(KeyboardInterrupt):
        list(broken.epochs())
    broken.save(tmp_path / "c.pt")
    resumed, _ = make(labels, epochs=4)
    resumed.load(tmp_path / "c.pt")
    assert [p.epoch for p in resumed.epochs()] == [3, 4]
    assert torch.equal(resumed.potential.get_theta(), straight.potential.get_theta())


def test_time_bounds_a_run(labels):
    trainer, _ = make(labels, epochs=10_000, max_seconds=0.3)
    list(trainer.epochs())
    assert 0.3 <= trainer.seconds < 3


def test_the_average_is_the_recursion_of_the_weights_passed(labels):
    trainer, data = make(labels, epochs=2)
    expected, passed = trainer.moves.state()[0].clone(), []
    step = trainer._step
    trainer._step = lambda indices: (
        step(indices),
        passed.append(trainer.moves.state()[0].clone()),
    )[0]
    list(trainer.epochs())
    for k, weight in enumerate(passed, 1):
        decay = min(0.9, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * weight
    assert len(passed) == 6
    torch.testing.assert_close(trainer.average[0], expected)


def test_weights_without_a_gradient_stay_where_they_are(labels):
    """No decay towards zero, which is away from the foundation."""
    trainer, _ = make(labels, epochs=3)
    before = trainer.potential.get_theta()
    trainer.loss = Loss(energy=0.0, force=0.0)
    list(trainer.epochs())
    assert torch.equal(trainer.potential.get_theta(), before)


def test_gradients_are_clipped_together(labels):
    trainer, _ = make(labels, epochs=1, clip=1e-5)
    seen = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.stack([p.grad.norm() for p in trainer.moves.free]).norm())
    )
    list(trainer.epochs())
    assert len(seen) == 3 and max(seen) <= 1e-5 * (1 + 1e-5) and min(seen) > 0.9e-5


@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_in_parts_follows_the_gradient_of_the_whole_batch(labels, rng, threads):
    """Structures of several sizes, so that a mean over parts is not the mean over all."""
    small = tuple(Structure(s.numbers[:k], s.positions[:k]) for k, s in zip(
        (2, 3, 6, 4, 2, 5, 6), labels.structures, strict=False))  # fmt: skip
    found = LennardJones(epsilon=0.02, sigma=3.2).predict(small)
    mixed = LabelSet(small, found.energies, found.forces)
    potential = LennardJones()
    data = Dataset(potential, mixed)
    settings = TrainerSettings(epochs=1, batch_size=7, clip=1e9, ema=0.0)
    other = Task(Dataset(potential, labels), weight=0.3)
    trainer = Trainer(potential, data, settings, loss=Loss(), rng=rng, others=[other])
    seen = []
    trainer.moves.pull = lambda gradients: seen.append([g.clone() for g in gradients])
    drawn = np.random.default_rng()
    drawn.bit_generator.state = rng.bit_generator.state
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        trainer._step(list(range(7)))  # nothing was pulled, so that nothing moves
    finally:
        torch.set_num_threads(before)
    rehearsed = drawn.choice(len(labels), size=7, replace=False).tolist()
    total = 0.0
    for weight, task, indices in ((1.0, data, range(7)), (0.3, other.data, rehearsed)):
        example = task.example(list(indices))
        energy, forces = potential.energy_and_forces(example.graphs, create_graph=True)
        total = total + weight * Loss()(example, energy, forces)
    expected = torch.autograd.grad(total, trainer.moves.needed)
    for one, whole in zip(seen[0], expected, strict=True):
        torch.testing.assert_close(one, whole, rtol=1e-10, atol=1e-12)


def test_without_better_validation_it_ends_and_the_best_weights_come_back(labels):
    """The validation labels are what the start predicts: every step away from it is worse."""
    potential = LennardJones()
    start = potential.predict(labels.structures[:4])
    kept = LabelSet(labels.structures[:4], start.energies, start.forces)
    settings = TrainerSettings(epochs=50, batch_size=4, learning_rate=0.03, ema=0.0, patience=3)
    trainer = Trainer(
        potential, Dataset(potential, labels), settings, loss=Loss(),
        rng=np.random.default_rng(1), validation=Dataset(potential, kept),
    )  # fmt: skip
    seen = [potential.get_theta() for _ in trainer.epochs()]
    best = int(np.argmin([p.validation for p in trainer.history]))
    assert len(seen) == best + 1 + 3 < 50
    torch.testing.assert_close(trainer.result(), seen[best])
