"""Frames of a foundation's own distribution."""

import numpy as np

from core.campaign.pretraining import LARGEST_FORCE, predicted
from core.contracts import LabelSet
from core.potentials.lennard_jones import LennardJones
from core.structures import Structure


def pair(length):
    return Structure(np.array([18, 18]), np.array([[0.0, 0, 0], [length, 0, 0]]))


def test_frames_on_which_the_foundation_extrapolates_are_no_pseudolabels():
    potential = LennardJones()
    given = (pair(3.6), pair(2.0), pair(4.0))
    assert np.abs(potential.predict(given).forces[1]).max() > LARGEST_FORCE
    frames = LabelSet(given, np.zeros(3), tuple(np.zeros((2, 3)) for _ in given))
    found = predicted(potential, frames)
    assert found.structures == (given[0], given[2])
    np.testing.assert_array_equal(found.energies, potential.predict(found.structures).energies)
    assert predicted(potential, LabelSet(given[1:2], np.zeros(1), (np.zeros((2, 3)),))) is None
