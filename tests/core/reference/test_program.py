"""Any ASE calculator: its own energies and forces, and refusals in its own words."""

import ase.calculators.calculator as calculators
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from core.errors import LabelError, SettingsError
from core.reference import make
from core.reference.base import validate
from core.structures import Structure, from_name


@pytest.fixture
def copper(rng) -> Structure:
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    positions = atoms.positions + 0.05 * rng.standard_normal((32, 3))
    return Structure(atoms.numbers, positions, atoms.cell.array, (True,) * 3, fixed=(0,))


def test_a_label_is_what_the_calculator_says(copper):
    label = validate(make("ase:emt").compute(copper))
    atoms = copper.to_atoms()
    atoms.set_constraint()
    atoms.calc = EMT()
    assert label.energy == pytest.approx(atoms.get_potential_energy())
    np.testing.assert_allclose(label.forces, atoms.get_forces())  # of the fixed atom too
    np.testing.assert_allclose(label.stress, atoms.get_stress(voigt=False))


def test_options_reach_the_calculator_and_the_fingerprint(copper):
    reference = make('ase:EMT {"asap_cutoff": true}')
    assert reference.fingerprint.endswith('emt {"asap_cutoff": true} charge=0 spin=0')
    assert reference.compute(copper).energy != make("ase:emt").compute(copper).energy


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("ase:nwchemist", "no calculator 'nwchemist'; it has abinit, .* vasp"),
        ("ase:emt {asap_cutoff}", "are not JSON"),
        ("ase:emt [1]", "must be a JSON object"),
        ('ase:emt {"directory": "/"}', "without directory, label, atoms"),
    ],
)
def test_names_that_are_not_accepted(name, match):
    with pytest.raises(SettingsError, match=match):
        make(name)


def test_failures_are_in_the_programs_own_words(copper):
    with pytest.raises(LabelError, match="needs a package that is not installed: .*gpaw"):
        make("ase:gpaw").check(copper)
    with pytest.raises(LabelError, match="No configuration of 'orca'"):
        make("ase:orca").check(copper)
    with pytest.raises(LabelError, match="emt gave no label for U"):
        make("ase:emt").compute(Structure(np.array([92]), np.zeros((1, 3))))  # knows no uranium


def test_charge_and_spin_that_cannot_be_told_are_refused(copper):
    charged = Structure(copper.numbers, copper.positions, copper.cell, copper.pbc, charge=1)
    with pytest.raises(LabelError, match="no keyword 'charge'"):
        make("ase:emt", charge=1).compute(charged)


def test_charge_and_spin_are_filled_in_where_the_calculator_has_them(monkeypatch):
    given = {}

    class Told(calculators.Calculator):
        implemented_properties = ["energy", "free_energy", "forces"]
        default_parameters = {"charge": 0, "mult": 1}

        def calculate(self, atoms, properties, changes):
            given.update(self.parameters, directory=self.directory)
            self.results = {"energy": 1.0, "free_energy": 2.0, "forces": np.zeros((3, 3))}

    monkeypatch.setitem(calculators.external_calculators, "told", Told)
    monkeypatch.setattr(calculators, "names", [*calculators.names, "told"])
    water = from_name("H2O")
    cation = Structure(water.numbers, water.positions, charge=1, spin=1)
    label = make("ase:told", charge=1, spin=1).compute(cation)
    assert (given["charge"], given["mult"]) == (1, 2)
    assert label.energy == 2.0  # the one whose derivative the forces are
    assert "label-" in str(given["directory"])
