"""Reading structures: what is accepted, and that nothing hostile is opened."""

import pickle

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from core import structures
from core.errors import StructureError
from core.structures import Structure, rmsd


class Bomb:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('exploded').write_text('x')",)


def test_a_molecule_by_smiles_name_and_file_is_the_same_molecule(tmp_path):
    pytest.importorskip("rdkit")
    by_smiles, by_name = structures.from_smiles("CCO"), structures.from_name("CH3CH2OH")
    path = tmp_path / "ethanol.xyz"
    by_name.to_atoms().write(path, format="extxyz")
    by_file = structures.from_file(path)
    assert by_smiles.formula == by_name.formula == by_file.formula == "C2H6O"
    np.testing.assert_allclose(by_file.positions, by_name.positions, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("2\n\nH 0 0 0\n", "line 1 announces 2 atoms, but 1 lines"),
        ("2\n\nXx 0 0 0\nH 0 0 1\n", "could not be read"),
        ("2\n\nH 0 0 0\nH 0 0 0.1\n", "overlap"),
        ("2\n\nH 0 0 nan\nH 0 0 1\n", "finite"),
        ("1\n\nH 0 0 0\n", "unpaired"),
        ("0\n\n", "no atoms"),
    ],
)
def test_bad_files_get_a_message_that_says_what_is_wrong(tmp_path, text, words):
    path = tmp_path / "bad.xyz"
    path.write_text(text)
    with pytest.raises(StructureError, match=words):
        structures.from_file(path)


@pytest.mark.parametrize("name", ["evil.xyz", "evil.pkl", "evil.traj", "evil.cif", "evil.model"])
def test_a_pickle_offered_as_a_structure_is_refused_and_not_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(StructureError):
        structures.from_file(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_the_content_key_sees_every_atom_and_ignores_rounding():
    one = structures.from_name("H2O")
    assert one.key == one.moved(one.positions + 1e-9).key
    assert one.key != one.moved(one.positions + 1e-4).key


def test_bad_smiles_and_names_say_what_to_write_instead():
    pytest.importorskip("rdkit")
    with pytest.raises(StructureError, match="CCO"):
        structures.from_smiles("this is no molecule")
    with pytest.raises(StructureError, match="CH3CH2OH"):
        structures.from_name("nonsense")


def test_a_charge_that_is_no_number_is_refused_with_what_the_file_says():
    text = b"1\nProperties=species:S:1:pos:R:3 charge=much\nHe 0 0 0\n"
    with pytest.raises(StructureError, match="charge='much'"):
        structures.from_bytes(text, "helium.extxyz")


def test_rmsd_forgets_turns_and_shifts_but_not_mirrors(rng):
    positions = rng.normal(size=(6, 3))
    molecule = Structure(np.full(6, 6), positions)
    turned = positions @ Rotation.from_euler("xyz", [0.4, -1.2, 2.0]).as_matrix().T + [1, 2, 3]
    assert rmsd(molecule, positions, turned) == pytest.approx(0, abs=1e-7)
    assert rmsd(molecule, positions, positions * [1, 1, -1]) > 0.1
    stretched = positions - positions.mean(0)
    assert rmsd(molecule, stretched, 1.1 * stretched) == pytest.approx(
        0.1 * np.sqrt((stretched**2).sum(1).mean())
    )


def test_rmsd_in_a_crystal_takes_the_shortest_way(rng):
    positions = np.array([[0.1, 0, 0], [2, 2, 2]])
    crystal = Structure(np.full(2, 14), positions, 4 * np.eye(3), (True,) * 3)
    moved = np.array([[3.9, 0, 0], [2, 2, 2]])
    assert rmsd(crystal, positions, moved) == pytest.approx(0.1)


@pytest.mark.parametrize("cell", [np.zeros((3, 3)), np.diag([5, 5, 0.1]), np.full((3, 3), np.nan)])
def test_a_cell_that_is_none_is_refused(cell):
    numbers, positions = np.array([18]), np.zeros((1, 3))
    with pytest.raises(StructureError, match="periodic cell is flat"):
        structures.check(structures.Structure(numbers, positions, cell, (True, True, True)))


def test_what_stands_along_an_open_direction_of_a_slab_does_not_matter():
    numbers, positions = np.array([18, 18]), np.array([[0, 0, 0], [0, 0, 60.0]])
    slab = np.array([[5, 0, 0], [0, 5, 0], [5, 0, 0.0]])
    structure = structures.Structure(numbers, positions, slab, (True, True, False))
    assert structures.check(structure) is structure
