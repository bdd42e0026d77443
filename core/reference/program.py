"""Labels by any program ASE has a calculator for; one thread, each label in a folder of its own.

A name is "orca" or another of ASE's, options are the calculator's own keywords. Where the program
lies is read from ASE's configuration file (`ase info --calculators` shows what is set up). Inputs
of such programs can run commands: options are for the owner of the machine to give, never taken
from a browser.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import ase
import ase.calculators.calculator as calculators
import numpy as np

from core.contracts import Label
from core.errors import LabelError, SettingsError, shorten
from core.reference.base import check_charge
from core.structures import Structure

OWN = ("directory", "label", "atoms")
"""Keywords of calculators that are set here."""
CHARGE, SPIN = ("charge", "nelect"), ("mult", "spin", "magnet", "nupdown")
"""Parts of keywords by which programs are told of charge and unpaired electrons."""


@dataclass(frozen=True)
class ProgramReference:
    """An ASE calculator with its options, for one charge and spin.

    Attributes:
        name: as ASE knows the calculator. options: its keywords, as a JSON object with sorted keys.
        charge: e. spin: number of unpaired electrons.
    """

    name: str
    options: str = "{}"
    charge: int = 0
    spin: int = 0

    @property
    def fingerprint(self) -> str:
        """Calculator, version of ASE, options, charge and spin in one line."""
        return (
            f"ase {ase.__version__} {self.name} {self.options} charge={self.charge} "
            f"spin={self.spin}"
        )

    def check(self, structure: Structure) -> None:
        """Raise `LabelError` where charge or spin differ, or the program cannot be told of them."""
        check_charge(structure, self.charge, self.spin)
        self._calculator("")

    def compute(self, structure: Structure) -> Label:
        """Return the label; its energy is the one whose gradient the forces are.

        Raises:
            LabelError: the calculator refused, failed or did not converge; in its own words.
        """
        check_charge(structure, self.charge, self.spin)
        started = time.perf_counter()
        atoms = structure.to_atoms()
        with tempfile.TemporaryDirectory(prefix="label-") as folder:
            atoms.calc = self._calculator(folder)
            known = getattr(atoms.calc, "implemented_properties", ())
            try:
                forces = atoms.get_forces(apply_constraint=False)
                energy = atoms.get_potential_energy(force_consistent="free_energy" in known)
                stress = None
                if structure.is_bulk and "stress" in known:
                    stress = atoms.get_stress(voigt=False, apply_constraint=False)
            except calculators.SCFError as error:
                raise LabelError(f"{self.name} did not converge: {_words(error)}.") from error
            except (
                calculators.CalculatorError, NotImplementedError, OSError, RuntimeError, ValueError,
                KeyError, subprocess.SubprocessError,
            ) as error:  # fmt: skip
                raise LabelError(
                    f"{self.name} gave no label for {structure.formula}: {_words(error)}. Check "
                    f"its set-up (ase info --calculators), its options and the structure.",
                    kind="crashed",
                ) from error
        return Label(
            structure=structure,
            energy=float(energy),
            forces=np.asarray(forces, dtype=float),
            fingerprint=self.fingerprint,
            wall_s=time.perf_counter() - started,
            stress=stress,
        )

    def _calculator(self, folder: str) -> Any:
        """Return the calculator, working in `folder`."""
        made = _class(self.name)
        options = json.loads(self.options)
        fills_in = getattr(made, "default_parameters", {})
        for value, keyword, words in (
            (self.charge, "charge", CHARGE),
            (self.spin + 1 if self.spin else 0, "mult", SPIN),
        ):
            told = any(word in key.lower() for key in options for word in words)
            if not value or told:
                continue
            if keyword not in fills_in:
                raise LabelError(
                    f"ASE's {self.name} has no keyword {keyword!r}, so it cannot be told that the "
                    f"structure has charge {self.charge} and {self.spin} unpaired electrons; name "
                    "the option that does in labelling.reference.",
                    kind="unsupported",
                )
            options[keyword] = value
        try:
            calculator = made(**options)
        except Exception as error:  # each calculator has its own ways of refusing
            raise LabelError(
                f"ASE's {self.name} did not accept its set-up {shorten(self.options)}: "
                f"{_words(error)}. See its page in ASE's documentation.",
                kind="unsupported",
            ) from error
        if hasattr(calculator, "directory"):
            calculator.directory = folder
        return calculator


def of_name(words: str, *, charge: int, spin: int) -> ProgramReference:
    """Return the reference of 'NAME' or 'NAME {"keyword": value, …}'.

    Raises:
        SettingsError: ASE has no such calculator, or the options are not acceptable JSON.
    """
    name, _, given = words.strip().partition(" ")
    name = name.lower()
    if name not in calculators.names:
        raise SettingsError(
            f"labelling.reference: ASE has no calculator {name!r}; it has "
            f"{', '.join(sorted(calculators.names))}."
        )
    try:
        options = json.loads(given or "{}")
    except ValueError as error:
        raise SettingsError(
            f"labelling.reference: the options of {name}, {shorten(given)!r}, are not JSON "
            f'({error}); for example ase:orca {{"orcasimpleinput": "PBE def2-SVP EnGrad"}}.'
        ) from error
    if not isinstance(options, dict) or set(options) & set(OWN):
        raise SettingsError(
            f"labelling.reference: the options of {name} must be a JSON object without "
            f"{', '.join(OWN)}, which are set for each label."
        )
    return ProgramReference(name, json.dumps(options, sort_keys=True), charge, spin)


def _class(name: str) -> Any:
    try:
        return calculators.get_calculator_class(name)
    except (ImportError, AttributeError) as error:
        raise LabelError(
            f"ASE's calculator {name} needs a package that is not installed: {error}.",
            kind="unsupported",
        ) from error


def _words(error: Exception) -> str:
    return shorten(f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ."))
