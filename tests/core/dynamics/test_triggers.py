"""What is broken is named, what is only unusual is let pass; every direction of periodicity."""

import time

import numpy as np
import pytest

from core.dynamics.triggers import Limits, broken
from core.structures import Structure, from_name

ETHANOL = from_name("CH3CH2OH")
CALM = np.zeros((9, 3))


def verdict(structure, energy=0.0, forces=None, temperature=300.0):
    forces = np.zeros((len(structure), 3)) if forces is None else forces
    return broken(structure, energy, forces, temperature, 300.0)


def moved(index, position):
    positions = ETHANOL.positions.copy()
    positions[index] = position
    return ETHANOL.moved(positions)


def test_a_normal_frame_is_not_broken(rng):
    assert verdict(ETHANOL) is None
    assert verdict(ETHANOL, forces=rng.uniform(-10, 10, (9, 3)), temperature=1500) is None


def test_dissociation_is_not_broken():
    assert verdict(moved(8, [30.0, 0.0, 0.0])) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"structure": moved(0, [np.nan, 0, 0])}, "positions are not finite"),
        ({"structure": moved(3, ETHANOL.positions[2] + [0.3, 0, 0])}, "O3 and H4 are 0.30 Å apart"),
        ({"energy": np.inf}, "energies or forces that are not finite"),
        ({"forces": CALM + np.nan}, "energies or forces that are not finite"),
        ({"forces": CALM + 70.0}, "force on C1 is 121 eV/Å"),
        ({"temperature": 6001.0}, "6001 K, more than 20 times the 300 K"),
        ({"temperature": np.nan}, "exploding"),
    ],
)
def test_a_broken_frame_says_why(change, words):
    assert words in verdict(**{"structure": ETHANOL, **change})


def test_two_atoms_on_one_point_are_broken():
    assert "0.00 Å" in verdict(Structure(np.array([1, 1]), np.zeros((2, 3))))
    assert verdict(Structure(np.array([1]), np.zeros((1, 3)))) is None


@pytest.mark.parametrize("pbc", [(True,) * 3, (True, True, False), (False, False, True)])
def test_atoms_too_close_across_the_cell_are_found(pbc, rng):
    cell = np.array([[6.0, 0, 0], [2.5, 5, 0], [1, 1, 7]])
    lattice = cell[pbc.index(True)]
    first = rng.uniform(-9, 9, 3)
    far, close = first + 2 * lattice + [0, 0.9, 0], first + 2 * lattice + [0, 0.3, 0]
    for second, reason in ((far, None), (close, "C1 and C2 are 0.30 Å apart")):
        found = verdict(Structure(np.array([6, 6]), np.array([first, second]), cell, pbc))
        assert found == reason or reason in found


def test_atoms_that_are_neighbours_only_along_an_open_direction_are_far_apart():
    cell = 6 * np.eye(3)
    positions = np.array([[0.0, 0, 0], [0.0, 0, 6.1]])
    assert verdict(Structure(np.array([6, 6]), positions, cell, (True, True, False))) is None
    assert verdict(Structure(np.array([6, 6]), positions, cell, (True, True, True))) is not None


def test_limits_can_be_set():
    tight = Limits(closeness=1.2)
    assert "apart" in broken(ETHANOL, 0.0, CALM, 300.0, 300.0, tight)


@pytest.mark.parametrize("pbc", [(False,) * 3, (True,) * 3])
def test_looking_takes_less_than_a_millisecond(pbc, rng):
    grid = np.array(np.meshgrid(*[np.arange(3)] * 3)).reshape(3, -1).T * 2.0
    structure = Structure(np.full(27, 6), grid + 0.1 * rng.random((27, 3)), 6 * np.eye(3), pbc)
    best = np.inf
    for _ in range(50):
        began = time.perf_counter()
        verdict(structure)
        best = min(best, time.perf_counter() - began)
    assert best < 1e-3
