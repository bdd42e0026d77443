"""The largest force error by hand, and how much few samples of it scatter."""

import numpy as np
import pytest

from core.posterior.largest import largest_change


def test_the_largest_change_is_that_of_each_sample_s_own_worst_atom():
    changes = np.zeros((2, 3, 3))
    changes[0, 1] = [0.0, 3.0, 4.0]  # 5, and 2 at another atom
    changes[0, 2] = [2.0, 0.0, 0.0]
    changes[1, 0] = [1.0, 0.0, 0.0]
    assert largest_change(changes) == pytest.approx(np.sqrt((25 + 1) / 2))
    assert largest_change(changes, ddof=1) == pytest.approx(np.sqrt(26))


def test_the_largest_change_scatters_less_than_the_largest_sigma(rng):
    """With eight samples of a molecule's forces, all atoms alike."""
    drawn = rng.standard_normal((400, 8, 9, 3))
    ours = [largest_change(c) for c in drawn]
    theirs = np.sqrt((drawn**2).sum(-1).mean(1)).max(1)
    assert np.std(np.log(ours)) < 0.95 * np.std(np.log(theirs))
