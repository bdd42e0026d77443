"""GFN1-xTB and GFN2-xTB labels by the tblite library, called directly; one thread.

Bannwarth et al., 10.1021/acs.jctc.8b01176 and Grimme et al., 10.1021/acs.jctc.7b00118. Crystals
are treated at the Γ point only: give a supercell.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from core.contracts import Label
from core.errors import LabelError
from core.reference.base import check_charge
from core.structures import Structure
from core.units import ENERGY_UNITS

HARTREE = ENERGY_UNITS["Hartree"]
BOHR = 0.529177210903
"""One Bohr in Å (CODATA 2018)."""

HEAVIEST = 86
"""Radon: the methods have no parameters beyond."""


@dataclass(frozen=True)
class XtbReference:
    """A GFN-xTB level of theory for one charge and spin.

    Attributes:
        method: "GFN1-xTB" or "GFN2-xTB". charge: e. spin: number of unpaired electrons.
        accuracy: tblite's multiplier of its thresholds; smaller is tighter.
        iterations: of the self-consistent field at most.
    """

    method: str
    charge: int = 0
    spin: int = 0
    accuracy: float = 1.0
    iterations: int = 250

    @property
    def fingerprint(self) -> str:
        """Program, version, method, charge, spin and accuracy in one line."""
        return (
            f"tblite {_version()} {self.method} charge={self.charge} spin={self.spin} "
            f"accuracy={self.accuracy}"
        )

    def check(self, structure: Structure) -> None:
        """Raise `LabelError` where the method cannot treat `structure`."""
        _version()
        check_charge(structure, self.charge, self.spin)
        if int(structure.numbers.max()) > HEAVIEST:
            raise LabelError(
                f"{self.method} covers hydrogen to radon, but the structure {structure.formula} "
                "holds a heavier element; choose another reference.",
                kind="unsupported",
            )
        if any(structure.pbc) and not all(structure.pbc):
            raise LabelError(
                f"tblite is periodic in all three directions or in none, but the structure has "
                f"pbc {structure.pbc}; give a slab or wire a cell with vacuum and pbc in all.",
                kind="unsupported",
            )

    def compute(self, structure: Structure) -> Label:
        """Return the label. Energies in eV relative to tblite's valence-electron zero.

        Raises:
            LabelError: not treatable, or the self-consistent field did not converge.
        """
        self.check(structure)
        from tblite.exceptions import TBLiteRuntimeError, TBLiteValueError
        from tblite.interface import Calculator

        started = time.perf_counter()
        periodic = all(structure.pbc)
        try:
            calculator = Calculator(
                self.method, structure.numbers, structure.positions / BOHR,
                float(self.charge), self.spin,
                lattice=structure.cell / BOHR if periodic else None,
                periodic=np.array(structure.pbc) if periodic else None,
            )  # fmt: skip
            calculator.set("verbosity", 0)
            calculator.set("accuracy", self.accuracy)
            calculator.set("max-iter", self.iterations)
            result = calculator.singlepoint()
        except (TBLiteRuntimeError, TBLiteValueError) as error:
            raise _explained(self.method, error) from error
        return Label(
            structure=structure,
            energy=float(result.get("energy")) * HARTREE,
            forces=-result.get("gradient") * (HARTREE / BOHR),
            fingerprint=self.fingerprint,
            wall_s=time.perf_counter() - started,
            stress=result.get("virial") * HARTREE / structure.volume if periodic else None,
        )


def _version() -> str:
    try:
        return metadata.version("tblite")
    except metadata.PackageNotFoundError as error:
        raise LabelError(
            "GFN-xTB labels need tblite, which is not installed; install it with: "
            "pip install 'flywise[xtb]'.",
            kind="unsupported",
        ) from error


def _explained(method: str, error: Exception) -> LabelError:
    text = str(error).strip()
    if "not converged" in text:
        return LabelError(
            f"{method}: {text}. The electrons found no stable state, as when bonds are half "
            "broken or charge and spin are wrong; check structure.charge and structure.spin, "
            "skip the frame, or label another one.",
        )
    return LabelError(
        f"{method} refused the structure: {text}. Check its elements, distances (Å), charge and "
        "spin.",
        kind="unsupported",
    )
