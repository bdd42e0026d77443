"""Parts side by side: in order, one thread of torch each, and the same numbers on any machine."""

import threading
import time

import numpy as np
import pytest
import torch

from core.contracts import LabelSet
from core.parallel import side_by_side
from core.posterior import make
from core.potentials import load
from core.settings import Noise, PosteriorSettings
from core.structures import Structure, from_name


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_from_as_many_threads_as_torch_has(threads):
    def work(k):
        time.sleep(0.02)  # so that no thread is done before the others have begun
        return k, torch.get_num_threads(), threading.get_ident()

    found = side_by_side(work, range(9))
    assert [k for k, _, _ in found] == list(range(9))
    assert {n for _, n, _ in found} == {1}
    assert len({ident for _, _, ident in found}) == threads
    assert torch.get_num_threads() == threads
    assert side_by_side(work, []) == []


def test_what_is_alone_has_all_of_torchs_threads(threads):
    """Such as the rows of the one new label of a large crystal."""
    assert side_by_side(lambda _: torch.get_num_threads(), [0]) == [threads]


def test_an_error_is_raised_and_torch_has_its_threads_again(threads):
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda k: 1 / k, [2, 1, 0])
    assert torch.get_num_threads() == threads


def test_what_is_learned_does_not_depend_on_the_number_of_threads():
    """But for the rounding of a factorisation; the labels are more than one group."""
    water, rng = from_name("H2O"), np.random.default_rng(2)
    frames = [
        Structure(water.numbers, water.positions + 0.05 * rng.standard_normal((3, 3)))
        for _ in range(11)
    ]
    potential = load("bundled")
    found = potential.predict(frames)
    labels = LabelSet(
        tuple(frames), found.energies + 0.01 * rng.standard_normal(11),
        tuple(f + 0.1 * rng.standard_normal(f.shape) for f in found.forces),
    )  # fmt: skip
    before, states = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            posterior = make(
                load("bundled"), PosteriorSettings(), Noise(0.003, 0.03),
                energy_tolerance=0.02, elements=[1, 8],
            )  # fmt: skip
            state, _ = posterior.update(
                posterior.init(np.random.default_rng(0)), labels, np.random.default_rng(0)
            )
            states.append(state)
    finally:
        torch.set_num_threads(before)
    one, two = states
    torch.testing.assert_close(two.gram, one.gram, rtol=1e-6, atol=0)
    torch.testing.assert_close(two.theta, one.theta, rtol=1e-5, atol=1e-7)
