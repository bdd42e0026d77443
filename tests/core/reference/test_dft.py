"""DFT by PySCF: a known energy, forces as derivatives, and refusals that say what to do."""

import dataclasses
import gc

import numpy as np
import pytest

from core.errors import LabelError, SettingsError
from core.reference import make
from core.reference.base import validate
from core.reference.dft import HARTREE
from core.structures import Structure, from_name

pytest.importorskip("pyscf", reason="PySCF is not installed (pip install 'flywise[dft]')")
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True)
def let_go():
    """PySCF leaves its scratch files to the garbage collector, which is to come before the end."""
    yield
    gc.collect()


def test_energy_of_hydrogen():
    # Hartree-Fock, STO-3G, 1.4 Bohr: Szabo and Ostlund, Modern Quantum Chemistry, section 3.5
    bond = 1.4 * 0.529177210903
    hydrogen = Structure(np.array([1, 1]), np.array([[0, 0, 0], [0, 0, bond]]))
    energy = make("dft:HF/STO-3G").compute(hydrogen).energy
    assert energy / HARTREE == pytest.approx(-1.1167, abs=1e-4)


@pytest.mark.parametrize("name", ["dft:PBE/def2-SVP", "dft:B3LYP/def2-SVP/df"])
def test_forces_are_minus_the_gradient(name, rng):
    structure = from_name("H2O")
    structure = structure.moved(structure.positions + 0.05 * rng.standard_normal((3, 3)))
    reference = make(name)
    label = validate(reference.compute(structure))
    energies = []
    for step in (1e-3, -1e-3):
        positions = structure.positions.copy()
        positions[0, 0] += step
        energies.append(reference.compute(structure.moved(positions)).energy)
    assert label.forces[0, 0] == pytest.approx((energies[1] - energies[0]) / 2e-3, abs=1e-4)


def test_unpaired_electrons_are_unrestricted():
    oxygen = Structure(np.array([8]), np.zeros((1, 3)), spin=2)
    triplet = make("dft:PBE/def2-SVP", spin=2).compute(oxygen)
    singlet = make("dft:PBE/def2-SVP").compute(dataclasses.replace(oxygen, spin=0))
    assert singlet.energy - triplet.energy > 1.0
    assert "charge=0 spin=2" in triplet.fingerprint


def test_a_field_that_does_not_converge_gives_no_label():
    hurried = dataclasses.replace(make("dft:PBE/STO-3G"), cycles=1, threshold=1e-14)
    with pytest.raises(LabelError, match="did not converge in 1 cycles") as caught:
        hurried.compute(from_name("H2O"))
    assert caught.value.kind == "unconverged"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("dft:PBE", "dft:FUNCTIONAL/BASIS"),
        ("dft:PBE/def2-SVP/x", "/df at the end"),
        ("dft:PBEH5/def2-SVP", "no functional 'PBEH5'"),
    ],
)
def test_names_that_are_not_accepted(name, match):
    with pytest.raises(SettingsError, match=match):
        make(name)


def test_what_it_cannot_treat():
    with pytest.raises(LabelError, match="no basis set 'def9' for H2O"):
        make("dft:PBE/def9").check(from_name("H2O"))
    crystal = Structure(np.array([14]), np.zeros((1, 3)), 3 * np.eye(3), (True, True, True))
    with pytest.raises(LabelError, match="periodic"):
        make("dft:PBE/def2-SVP").check(crystal)
    with pytest.raises(LabelError, match="must not be mixed"):
        make("dft:PBE/def2-SVP", charge=1, spin=1).check(from_name("H2O"))


def test_heavy_elements_get_the_core_potential_of_their_basis():
    iodide = Structure(np.array([53]), np.zeros((1, 3)), charge=-1)
    energy = make("dft:PBE/def2-SVP", charge=-1).compute(iodide).energy
    assert energy / HARTREE == pytest.approx(-298, abs=1)  # 25 electrons in the core: -6,900 with
