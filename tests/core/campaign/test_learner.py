import math
from dataclasses import replace

import numpy as np
import pytest

from core.calibration import MEMORY, Calibration
from core.campaign.learner import (
    Labelled,
    Learner,
    calibration_from_dict,
    calibration_to_dict,
)
from core.posterior import make
from core.potentials import load
from core.settings import Noise, PosteriorSettings
from core.structures import from_smiles

SHIFT = -20.0


@pytest.fixture
def learner():
    potential = load("lennard-jones", dtype="float64")
    noise = Noise(energy=5e-4, force=1e-3)
    posterior = make(potential, PosteriorSettings(), noise, energy_tolerance=0.01)
    return Learner(potential, posterior, seed=1)


@pytest.fixture
def labels(cluster, rng):
    """Ten labels by another Lennard-Jones argon whose energy zero lies elsewhere."""
    teacher = load("lennard-jones:0.0115:3.45", dtype="float64")
    structures = [cluster.moved(cluster.positions + rng.normal(0, 0.1, (7, 3))) for _ in range(10)]
    truth = teacher.predict(structures)
    return [
        Labelled(i, s, float(e) + SHIFT, f)
        for i, (s, e, f) in enumerate(zip(structures, truth.energies, truth.forces, strict=True))
    ]


def test_a_shift_of_the_energy_zero_raises_no_alarm(learner, labels):
    known = learner.first_update(learner.begin(), labels[:8]).knowledge
    assert known.offset.value == pytest.approx(SHIFT, abs=0.1)
    for label in labels[8:]:
        spread = learner.judge(known, label.structure)
        assert spread.energy == pytest.approx(label.energy, abs=5e-3)
        assert spread.sigma_energy < 5e-3


def weight(n: int) -> float:
    """Of n scores, the older counting less."""
    return sum(math.exp(-k / MEMORY) for k in range(n))


def test_the_first_calibration_comes_from_labels_left_out(learner, labels):
    update = learner.first_update(learner.begin(), labels[:8])
    assert update.knowledge.calibration.energy.weight == pytest.approx(weight(8))
    assert [s.query_id for s in update.scores] == list(range(8))
    assert all(np.isfinite(s.z) and s.force_ratio > 0 for s in update.scores)


def test_a_label_is_scored_before_it_is_learned(learner, labels):
    first = learner.first_update(learner.begin(), labels[:8]).knowledge
    before = learner.judge(first, labels[8].structure)
    update = learner.update(first, labels[8:9])
    (score,) = update.scores
    assert score.predicted == before.energy
    assert score.z == pytest.approx((labels[8].energy - before.energy) / before.sigma_energy)
    assert update.knowledge.calibration.energy.weight == pytest.approx(weight(9))
    assert len(update.knowledge.labels) == 9 and update.knowledge.snapshot == 2


def test_a_label_scored_already_counts_once(learner, labels):
    first = learner.first_update(learner.begin(), labels[:8]).knowledge
    update = learner.update(first, labels[8:9], scored=frozenset({8}))
    assert update.scores == () and update.knowledge.calibration == first.calibration


def test_saved_knowledge_judges_alike(learner, labels, tmp_path):
    known = learner.first_update(learner.begin(), labels[:8]).knowledge
    learner.save(known, tmp_path / "snapshots" / "1.safetensors")
    again = learner.restore(
        tmp_path / "snapshots" / "1.safetensors", labels[:8], known.offset, known.snapshot
    )
    for label in labels[8:]:
        one, other = (learner.judge(k, label.structure) for k in (known, again))
        assert (one.energy, one.sigma_energy) == (other.energy, other.sigma_energy)


def test_a_calibration_survives_json():
    calibration = Calibration().update(1.3, 0.7).update(-0.2, 1.1)
    assert calibration_from_dict(calibration_to_dict(calibration)) == calibration


def test_a_batch_passes_over_what_is_known_and_what_it_holds(learner, labels):
    known = learner.first_update(learner.begin(), labels[:3]).knowledge
    new = [label.structure for label in labels[5:8]]
    pool = [labels[0].structure, new[0], new[1], new[0], labels[1].structure, new[2]]
    assert learner.choose(known, pool, 0) == []
    chosen = learner.choose(known, pool, 3)
    assert len({tuple(pool[i].positions.ravel()) for i in chosen}) == 3
    assert not {0, 4} & set(chosen)
    assert sorted(learner.choose(known, pool, 9)) == list(range(6))


def test_without_a_covariance_a_batch_is_chosen_by_activations(rng):
    ethanol = from_smiles("CCO")
    potential = load("bundled")
    settings = PosteriorSettings(kind="last-layer")
    posterior = make(potential, settings, Noise(energy=5e-3, force=0.03), energy_tolerance=0.02)
    learner = Learner(potential, posterior, seed=1)
    shaken = [ethanol.moved(ethanol.positions + rng.normal(0, 0.1, (9, 3))) for _ in range(12)]
    first = learner.choose(learner.begin(), shaken, 3)
    labels = tuple(Labelled(i, shaken[i], 0.0, np.zeros((9, 3))) for i in first)
    known = replace(learner.begin(), labels=labels)
    chosen = learner.choose(known, [*shaken, *shaken], 5)
    frames = {k % 12 for k in chosen}
    assert len(chosen) == len(frames) == 5 and not frames & {*first}
