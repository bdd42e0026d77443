"""Energies of isolated atoms: exact where the labels fix them, honest where they do not."""

import numpy as np
import pytest
from ase.build import molecule

from core.errors import InputError
from core.finetuning import e0
from core.structures import from_atoms

ELEMENTS = (1, 6, 7, 8)
TRUE = np.array([-0.5, 1.5, 2.0, -3.0])
"""Shifts of H, C, N and O between two made-up levels of theory, eV."""
OLD = e0.foundations(ELEMENTS, np.array([-13.0, -1000.0, -1400.0, -2000.0]))


def structures(*names):
    return [from_atoms(molecule(name)) for name in names]


def residuals(given, rng=None, noise=0.0):
    exact = e0.count_elements(ELEMENTS, given) @ TRUE
    return exact if rng is None else exact + noise * rng.standard_normal(len(given))


def test_the_constant_is_the_mean_residual():
    offset = e0.constant_offset([1.0, 3.0])
    assert offset.value == 2.0 and offset.variance == pytest.approx(1.0)
    assert e0.constant_offset([4.0]).variance == np.inf
    with pytest.raises(ValueError, match="at least one"):
        e0.constant_offset([])


def test_compositions_that_fix_every_element_give_every_shift(rng):
    given = structures("CH4", "H2O", "NH3", "CH3OH", "HCN", "CO2", "C2H6", "N2H4")
    found = e0.estimated(OLD, given, residuals(given, rng, 0.01))
    assert found.rank == 4 and not found.is_deficient and found.undetermined == ()
    assert np.allclose(found.shifts, TRUE, atol=0.05)
    assert np.allclose(found.energies, OLD.energies + found.shifts)
    assert found.before > 0.3 and found.after < 0.02 and not found.is_mismatched
    assert all(found.covers(s) for s in structures("CH3CH2OH", "N2"))


def test_one_composition_lines_up_and_says_what_it_cannot_know():
    given = structures("CH3CH2OH") * 5
    found = e0.estimated(OLD, given, residuals(given))
    assert found.after < 1e-4, "the sum over the molecule is right"
    assert found.rank == 1 and found.is_deficient and len(found.undetermined) == 2
    assert not np.allclose(found.shifts[[0, 1, 3]], TRUE[[0, 1, 3]], atol=0.1)
    assert found.shifts[2] == 0, "nitrogen is in no label"
    assert found.covers(structures("CH3CH2OH")[0]) and found.covers(structures("CH3OCH3")[0])
    assert not found.covers(structures("CH4")[0])


def test_what_is_undetermined_is_said_in_elements_and_changes_no_label():
    given = structures("H2O", "CH3OH")
    found = e0.estimated(OLD, given, residuals(given))
    assert found.undetermined == ("C + O - 0.5 H",)
    along = np.array([-0.5, 1.0, 0.0, 1.0])
    assert np.allclose(e0.count_elements(ELEMENTS, given) @ along, 0)


def test_two_isomers_too_far_apart_are_a_mismatch():
    given = structures("CH3CH2OH", "CH3OCH3")
    found = e0.estimated(OLD, given, np.array([9.0, -9.0]))
    assert found.is_mismatched and found.after == pytest.approx(1.0, rel=1e-3)


def test_computed_atoms_are_taken_as_they_are():
    given = structures("H2O")
    atoms = {1: -13.5, 8: -2003.0}
    found = e0.isolated(OLD, atoms, given, residuals(given))
    assert found.energies.tolist() == [-13.5, -1000.0, -1400.0, -2003.0]
    assert found.after == pytest.approx(0) and not found.is_deficient
    with pytest.raises(InputError, match="missing for C"):
        e0.isolated(OLD, atoms, structures("CH4"), np.zeros(1))


def test_a_wrong_zero_is_told_with_its_size_and_what_to_do():
    given = structures("H2O", "CH3OH")
    found = e0.kept(OLD, given, residuals(given) + 9.0)
    assert found.how == "foundation" and (found.energies == OLD.energies).all()
    (said,) = e0.warnings(found)
    left = 1e3 * np.mean(np.abs(residuals(given) + 9.0) / [3, 6])
    assert f"differ by {left:.0f} meV/atom" in said and "above 500" in said
    assert "Check the unit" in said and "estimated" in said


def test_a_small_error_is_no_warning_and_one_composition_says_what_holds():
    given = structures("CH3CH2OH")
    (said,) = e0.warnings(e0.estimated(OLD, given, residuals(given)))
    assert "1 independent composition of 3 elements" in said and "forces hold for all" in said
    fixed = structures("CH4", "H2O", "NH3", "CH3OH")
    assert e0.warnings(e0.estimated(OLD, fixed, residuals(fixed))) == []


def test_no_label_leaves_the_foundations_energies():
    assert np.isnan(OLD.before) and OLD.rank == 0 and not OLD.is_mismatched
    assert e0.warnings(OLD) == []
