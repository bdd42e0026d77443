"""GFN-xTB by tblite: known energies, forces as derivatives, and refusals that say what to do."""

import pickle
from importlib import metadata

import numpy as np
import pytest

from core.errors import LabelError
from core.reference.base import validate
from core.reference.xtb import HARTREE, XtbReference
from core.structures import Structure, from_name

pytest.importorskip("tblite")

METHODS = ("GFN1-xTB", "GFN2-xTB")


def shaken(name: str, rng: np.random.Generator) -> Structure:
    structure = from_name(name)
    return structure.moved(structure.positions + 0.05 * rng.standard_normal((len(structure), 3)))


def silicon(rng: np.random.Generator) -> Structure:
    from ase.build import bulk

    atoms = bulk("Si", cubic=True)
    positions = atoms.positions + 0.05 * rng.standard_normal((8, 3))
    return Structure(atoms.numbers, positions, atoms.cell.array, (True, True, True))


def slope(reference: XtbReference, structure: Structure, h: float = 1e-3) -> float:
    """Minus the derivative of the energy by the first coordinate."""
    energies = []
    for step in (h, -h):
        positions = structure.positions.copy()
        positions[0, 0] += step
        energies.append(reference.compute(structure.moved(positions)).energy)
    return (energies[1] - energies[0]) / (2 * h)


@pytest.mark.parametrize(("method", "hartree"), [("GFN1-xTB", -5.768694), ("GFN2-xTB", -5.070439)])
def test_energy_of_water(method, hartree):
    # an experimental geometry; the energies are those of tblite's own command line
    water = from_name("H2O")
    assert XtbReference(method).compute(water).energy == pytest.approx(hartree * HARTREE, abs=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_forces_are_minus_the_gradient(method, rng):
    reference = XtbReference(method, accuracy=0.1)
    for structure in (shaken("CH3CH2OH", rng), silicon(rng)):
        label = validate(reference.compute(structure))
        assert label.forces[0, 0] == pytest.approx(slope(reference, structure), abs=2e-4)


def test_charge_and_spin_change_the_energy_and_the_fingerprint():
    neutral, ion = XtbReference("GFN2-xTB"), XtbReference("GFN2-xTB", charge=1, spin=1)
    water = from_name("H2O")
    cation = Structure(water.numbers, water.positions, charge=1, spin=1)
    assert 10 < ion.compute(cation).energy - neutral.compute(water).energy < 20
    assert neutral.fingerprint != ion.fingerprint
    with pytest.raises(LabelError, match="must not be mixed"):
        neutral.compute(cation)


def test_fingerprint_names_program_method_and_state():
    version = metadata.version("tblite")
    text = f"tblite {version} GFN2-xTB charge=0 spin=0 accuracy=1.0"
    assert XtbReference("GFN2-xTB").fingerprint == text


def test_unconverged_is_an_error_that_says_what_to_do(rng):
    with pytest.raises(LabelError, match=r"not converged in 2 cycles.*charge and") as caught:
        XtbReference("GFN2-xTB", iterations=2).compute(shaken("CH3CH2OH", rng))
    assert caught.value.kind == "unconverged"
    assert pickle.loads(pickle.dumps(caught.value)).kind == "unconverged"


@pytest.mark.parametrize(
    ("structure", "words"),
    [
        (Structure(np.array([92]), np.zeros((1, 3))), "hydrogen to radon"),
        (Structure(np.array([14]), np.zeros((1, 3)), 9 * np.eye(3), (True, True, False)), "slab"),
        (Structure(np.array([1, 1]), np.zeros((2, 3))), "refused the structure"),
        (Structure(np.array([1]), np.zeros((1, 3)), spin=1), "was set up for 0 and 0"),
    ],
)
def test_what_cannot_be_treated_is_refused(structure, words):
    with pytest.raises(LabelError, match=words) as caught:
        XtbReference("GFN1-xTB").compute(structure)
    assert caught.value.kind == "unsupported"


def test_without_tblite_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.metadata.distribution", _absent)
    with pytest.raises(LabelError, match=r"pip install 'flywise\[xtb\]'"):
        XtbReference("GFN2-xTB").check(from_name("H2O"))


def _absent(name):
    raise metadata.PackageNotFoundError(name)
