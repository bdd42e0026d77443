import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from core.geometry import coordinate

FREE = (np.zeros((3, 3)), (False, False, False))


@pytest.mark.parametrize("atoms", [(0, 1), (2, 0, 1), (2, 0, 1, 5), (6, 1, 0, 4)])
def test_coordinates_agree_with_ase(atoms):
    ethanol = molecule("CH3CH2OH")
    ethanol.rattle(0.1, seed=1)
    known = {
        2: lambda: ethanol.get_distance(*atoms),
        3: lambda: ethanol.get_angle(*atoms),
        4: lambda: (ethanol.get_dihedral(*atoms) + 180) % 360 - 180,
    }[len(atoms)]()
    found = coordinate(ethanol.positions[None, list(atoms)], *FREE)
    np.testing.assert_allclose(found, [known], rtol=1e-10)


def test_a_skewed_cell_gives_the_nearest_image(rng):
    crystal = bulk("Cu").repeat((2, 2, 2))
    crystal.rattle(0.3, seed=2)
    crystal.positions += rng.integers(-2, 3, (len(crystal), 3)) @ crystal.cell.array
    for pair in ((0, 7), (3, 5)):
        found = coordinate(crystal.positions[None, list(pair)], crystal.cell.array, (True,) * 3)
        np.testing.assert_allclose(found, [crystal.get_distance(*pair, mic=True)], rtol=1e-10)


def test_an_open_direction_is_not_wrapped():
    slab = Atoms("H2", [[0, 0, 0], [9, 0, 9]], cell=[10, 10, 10], pbc=[True, True, False])
    found = coordinate(slab.positions[None], slab.cell.array, (True, True, False))
    np.testing.assert_allclose(found, [np.hypot(1, 9)])


def test_atoms_in_a_line_have_an_angle_but_no_dihedral():
    line = np.arange(4)[:, None] * np.array([1.0, 0, 0])
    assert coordinate(line[None, :3], *FREE)[0] == pytest.approx(180)
    assert np.isnan(coordinate(line[None], *FREE)[0])


def test_no_frames_give_no_values_and_one_atom_is_refused():
    assert coordinate(np.zeros((0, 3, 3)), *FREE).shape == (0,)
    with pytest.raises(ValueError, match="two, three or four"):
        coordinate(np.zeros((5, 1, 3)), *FREE)
