import io
import random

import ase.io
import numpy as np
import pytest

from core.campaign import extxyz
from core.errors import InputError, StructureError
from core.structures import Structure

ETHANOL_LIKE = Structure(np.array([8, 1, 1]), np.arange(9.0).reshape(3, 3) / 3)
CRYSTAL = Structure(np.array([18]), np.zeros((1, 3)), 5 * np.eye(3), (True, True, True))


def written(structure: Structure = ETHANOL_LIKE, **info) -> str:
    return extxyz.write(
        structure, info, {"pos": structure.positions, "forces": -structure.positions}
    )


def test_what_is_written_is_read_back():
    text = written(query=3, level='say "it" \\ twice', flag=True) + "\n" + written(energy=-1.5)
    first, second = extxyz.read(text)
    assert first.info["query"] == "3" and first.info["level"] == 'say "it" \\ twice'
    assert first.info["flag"] == "T" and second.info["energy"] == "-1.5"
    assert first.numbers.tolist() == [8, 1, 1] and second.line == 8
    np.testing.assert_allclose(second.columns["forces"], -ETHANOL_LIKE.positions)


def test_ase_reads_what_is_written_and_the_other_way_round():
    atoms = ase.io.read(
        io.StringIO(written(CRYSTAL, fingerprint="T 1", energy=-1.5)), format="extxyz"
    )
    assert atoms.pbc.all() and atoms.info["fingerprint"] == "T 1"
    assert atoms.get_potential_energy() == -1.5
    file = io.StringIO()
    ase.io.write(file, atoms, format="extxyz")
    (again,) = extxyz.read(file.getvalue())
    assert float(again.info["energy"]) == -1.5 and again.columns["forces"].shape == (1, 3)
    assert again.info["Lattice"].split()[0] == "5.0" and again.info["fingerprint"] == "T 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x\n", "Line 1 is 'x'"),
        ("0\n\n", "number of atoms"),
        ("-1\n\n", "number of atoms"),
        ("3\n\nH 0 0 0\n", "announces 3 atoms, but 1"),
        ("1\n\nH 0 0\n", "Line 3 has 3 columns"),
        ("1\n\nQ 0 0 0\n", "'Q' is not a chemical element"),
        ("1\n\nH 0 a 0\n", "a number is expected"),
        ("1\nProperties=species:S:1:pos:R\nH 0 0 0\n", "name:kind:width"),
        ("1\nProperties=pos:R:3\n0 0 0\n", "no column species"),
        ("1\nProperties=species:S:1:pos:R:999\nH 0 0 0\n", "name:kind:width"),
        ('1\nlevel="open\nH 0 0 0\n', "key=value"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text, message):
    with pytest.raises(StructureError, match=message):
        list(extxyz.read(text))


def test_mutated_files_are_read_or_refused():
    rng = random.Random(1)
    whole = written(query=3, level='a "b"') + written(CRYSTAL, energy=1.0)
    for _ in range(2000):
        letters = list(whole)
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(letters))
            letters[at : at + rng.randint(0, 3)] = rng.choice(
                ['"', "\n", "9" * rng.randint(1, 30), "\\", " ", "nan", ":", "=", "\u0661", "\0"]
            )
        try:
            frames = list(extxyz.read("".join(letters)))
        except StructureError:
            continue
        assert all(len(f) > 0 for f in frames)


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "out.extxyz"

    def frames():
        yield written()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        extxyz.save(path, frames())
    assert not path.exists()
    assert extxyz.save(path, [written()]) == 1 and path.read_text() == written()
    with pytest.raises(InputError, match="extended XYZ"):
        extxyz.save(tmp_path / "out.traj", [])
