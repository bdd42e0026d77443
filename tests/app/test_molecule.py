import numpy as np
from ase.build import molecule

from app.widgets.molecule import Molecule, element_color, engine_file, principal_view


def test_the_engine_comes_from_the_installed_wheel():
    file = engine_file()
    assert file.name == "index.js" and file.stat().st_size > 1_000_000
    assert file.read_text(encoding="utf-8").lstrip().startswith("/*!")


def test_frames_travel_as_float32():
    ethanol, view = molecule("CH3CH2OH"), Molecule()
    view.set_atoms(ethanol.numbers, ethanol.positions, None)
    view.move(ethanol.positions, np.arange(9.0))
    sent = np.frombuffer(view.positions, "<f4").reshape(-1, 3)
    np.testing.assert_allclose(sent, ethanol.positions, atol=1e-6)
    assert np.frombuffer(view.values, "<f4").tolist() == list(range(9))
    assert view.symbols.count("H") == 6 and view.cell == []


def test_the_first_view_is_a_rotation_that_lays_the_molecule_flat(rng):
    flat = rng.normal(size=(20, 3)) * [1.0, 4.0, 0.1]
    view = np.reshape(principal_view(flat), (3, 3))
    np.testing.assert_allclose(view @ view.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(view) > 0
    spread = ((flat - flat.mean(axis=0)) @ view.T).std(axis=0)
    assert spread[0] > spread[1] > spread[2]
    assert np.allclose(np.reshape(principal_view(flat[:1]), (3, 3)), np.eye(3))


def test_white_elements_do_not_vanish_on_white():
    assert element_color(1).max() < 0.9
