import numpy as np
import pytest

from core.finetuning.e0 import constant_offset


def test_a_shift_between_two_levels_is_found():
    offset = constant_offset(np.full(8, -20.7))
    assert (offset.value, offset.variance) == (pytest.approx(-20.7), pytest.approx(0.0))


def test_the_variance_is_that_of_the_mean(rng):
    means = [constant_offset(rng.normal(3.0, 0.5, size=10)) for _ in range(2000)]
    assert np.var([m.value for m in means]) == pytest.approx(0.025, rel=0.1)
    assert np.mean([m.variance for m in means]) == pytest.approx(0.025, rel=0.1)


def test_one_label_fixes_the_constant_only():
    assert constant_offset([1.5]).value == 1.5
    assert constant_offset([1.5]).variance == np.inf
    with pytest.raises(ValueError, match="at least one"):
        constant_offset([])
