import numpy as np
import pytest
import torch

from core.campaign.canary import (
    PROBES,
    Errors,
    check_dynamics,
    check_errors,
    probe,
    residuals,
)
from core.contracts import LabelSet
from core.dynamics.triggers import Limits
from core.errors import CanaryError
from core.potentials import load
from core.settings import DynamicsSettings

SETTINGS = DynamicsSettings(temperature_K=25, timestep_fs=4)


def labels_of(potential, cluster, n: int) -> LabelSet:
    rng = np.random.default_rng(0)
    structures = tuple(
        cluster.moved(cluster.positions + rng.normal(0, 0.05, (7, 3))) for _ in range(n)
    )
    predicted = potential.predict(structures)
    return LabelSet(structures, predicted.energies, predicted.forces)


def test_sound_weights_pass(cluster):
    potential = load("lennard-jones", dtype="float64")
    check_dynamics(potential, cluster, np.zeros((7, 3)), SETTINGS, Limits())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ([2.0, 0.15], "reached"),
        ([float("nan"), 0.0], "finite"),
        ([9.0, 0.0], "exploding"),
    ],
)
def test_wild_weights_are_refused(cluster, change, why):
    potential = load("lennard-jones", dtype="float64")
    potential.set_theta(potential.get_theta() + torch.tensor(change, dtype=torch.float64))
    with pytest.raises(CanaryError, match=why):
        check_dynamics(potential, cluster, np.zeros((7, 3)), SETTINGS, Limits())


def test_errors_ignore_a_constant_energy(cluster):
    potential = load("lennard-jones", dtype="float64")
    labels = labels_of(potential, cluster, 4)
    shifted = LabelSet(labels.structures, labels.energies + 7.0, labels.forces)
    found = residuals(potential, shifted).errors()
    assert found.energy == pytest.approx(0.0, abs=1e-9) and found.force == pytest.approx(0.0)


def test_errors_that_explode_are_refused():
    check_errors(Errors(0.1, 0.1), Errors(0.15, 0.15), energy=0.02, force=0.1)
    with pytest.raises(CanaryError, match="energies grew from 0.1 to 0.5"):
        check_errors(Errors(0.1, 0.1), Errors(0.5, 0.1), energy=0.02, force=0.1)
    with pytest.raises(CanaryError, match="forces"):
        check_errors(Errors(0.1, 0.1), Errors(0.1, float("nan")), energy=0.02, force=0.1)


@pytest.mark.parametrize("n", [0, 1, PROBES, PROBES + 1, 150])
def test_probes_are_few_and_hold_the_newest(cluster, n):
    labels = LabelSet((cluster,) * n, np.arange(float(n)), (np.zeros((7, 3)),) * n)
    probes = probe(labels)
    assert len(probes) == min(n, PROBES)
    assert len(set(probes.energies)) == len(probes)
    assert probes.energies[-5:].tolist() == list(range(n))[-5:]
