"""Novelty by hand, and on molecules that are heated or torn apart."""

import numpy as np
import pytest

from core.acquisition.coverage import Coverage
from core.campaign.state import OUTSIDE
from core.potentials import load
from core.structures import from_name


def test_by_hand():
    numbers = [np.array([1, 6])] * 3
    features = [np.array([[0.0], [10.0]]), np.array([[1.0], [10.0]]), np.array([[4.0], [12.0]])]
    known = Coverage(numbers, features)
    # the farthest label's atom is hydrogen at 4, 3 from the one at 1
    assert known.novelty(np.array([1, 6]), np.array([[2.0], [11.0]])) == pytest.approx(1 / 3)
    assert known.novelty(np.array([1]), np.array([[10.0]])) == pytest.approx(2)
    assert known.novelty(np.array([6]), np.array([[4.0]])) == pytest.approx(2)  # not as hydrogen
    assert known.novelty(np.array([8]), np.array([[0.0]])) == np.inf


def test_a_single_label_says_nothing():
    known = Coverage([np.array([1, 1])], [np.array([[0.0], [1.0]])])
    assert np.isnan(known.novelty(np.array([1]), np.array([[9.0]])))


@pytest.fixture(scope="module")
def ethanol():
    """The bundled model, and frames shaken as at 300 K and at 1,200 K."""
    potential, structure = load("bundled"), from_name("CH3CH2OH")
    rng = np.random.default_rng(0)

    def shaken(width, n):
        return [
            structure.moved(structure.positions + width * rng.standard_normal((9, 3)))
            for _ in range(n)
        ]

    return potential, shaken(0.05, 30), shaken(0.05, 40), shaken(0.12, 40)


def novelties(potential, labels, structures):
    features = potential.predict(labels, forces=False, features=True).features
    known = Coverage([s.numbers for s in labels], features)
    found = potential.predict(structures, forces=False, features=True).features
    return np.array([known.novelty(s.numbers, f) for s, f in zip(structures, found, strict=True)])


def test_more_of_the_same_is_inside_and_a_heated_molecule_is_not(ethanol):
    potential, labels, same, hot = ethanol
    assert (novelties(potential, labels, same) < OUTSIDE).mean() > 0.95
    assert (novelties(potential, labels, hot) > OUTSIDE).mean() > 0.5


def test_a_dissociating_molecule_is_outside(ethanol):
    potential, labels, same, _ = ethanol
    structure, oxygen = same[0], 2
    apart = np.linalg.norm(structure.positions - structure.positions[oxygen], axis=1)
    hydrogen = int(np.argmin(np.where(structure.numbers == 1, apart, np.inf)))
    bond = structure.positions[hydrogen] - structure.positions[oxygen]
    torn = []
    for stretch in (0.4, 1.0, 2.0):
        positions = structure.positions.copy()
        positions[hydrogen] += stretch * bond / np.linalg.norm(bond)
        torn.append(structure.moved(positions))
    found = novelties(potential, labels, torn)
    assert (found > 1.5 * OUTSIDE).all() and found[0] < found[-1]
