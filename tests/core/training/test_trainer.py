"""The trainer on Lennard-Jones: it finds known parameters, resumes exactly, and averages."""

import numpy as np
import pytest
import torch

from core.contracts import LabelSet
from core.potentials.lennard_jones import LennardJones
from core.structures import Structure
from core.training import Dataset, Loss, Trainer, TrainerSettings, mean_loss


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


def test_time_bounds_a_run(labels):
    trainer, _ = make(labels, epochs=10_000, max_seconds=0.3)
    list(trainer.epochs())
    assert 0.3 <= trainer.seconds < 3
