"""Labels by density functional theory with PySCF: molecules in a Gaussian basis; one thread.

Sun et al., 10.1063/5.0006074. Every label is of a converged self-consistent field: where Pulay's
extrapolation (DIIS) fails, a second-order solver is tried. Forces are the analytical gradient,
with the response of the integration grid, so that they are the derivative of the energy.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from core.contracts import Label
from core.errors import LabelError, SettingsError
from core.reference.base import check_charge
from core.structures import Structure
from core.units import ENERGY_UNITS

HARTREE = ENERGY_UNITS["Hartree"]
BOHR = 0.529177210903
"""One Bohr in Å (CODATA 2018)."""
FITTED = "df"
"""Third part of a name that asks for density fitting."""
LAST_ALL_ELECTRON = 36
"""Krypton: the def2 basis sets of heavier elements stand for the outer electrons only."""


@dataclass(frozen=True)
class DftReference:
    """A functional and a basis set for one charge and spin.

    Attributes:
        functional, basis: as PySCF names them, such as "PBE" and "def2-SVP".
        charge: e. spin: number of unpaired electrons; with any, spins are unrestricted.
        fitted: expand the density in an auxiliary basis: quicker, about 1 meV/atom off.
        threshold: energy change at which the field counts as converged, Hartree.
        grid: PySCF's level of the integration grid, 0 to 9. cycles: of the field at most.
    """

    functional: str
    basis: str
    charge: int = 0
    spin: int = 0
    fitted: bool = False
    threshold: float = 1e-9
    grid: int = 3
    cycles: int = 100

    @property
    def fingerprint(self) -> str:
        """Program, version, functional, basis, charge, spin and accuracy in one line."""
        return (
            f"pyscf {_version()} {self.functional}/{self.basis}{'/df' * self.fitted} "
            f"charge={self.charge} spin={self.spin} threshold={self.threshold:g} grid={self.grid}"
        )

    def check(self, structure: Structure) -> None:
        """Raise `LabelError` where `structure` is no molecule of this charge, spin and basis."""
        check_charge(structure, self.charge, self.spin)
        if any(structure.pbc):
            raise LabelError(
                "DFT by PySCF treats molecules here, but the structure is periodic; name a "
                "program for crystals with ase:NAME, or choose gfn1-xtb.",
                kind="unsupported",
            )
        self._molecule(structure)

    def compute(self, structure: Structure) -> Label:
        """Return the label; energies are total energies with all electrons of the basis, eV.

        Raises:
            LabelError: not treatable, or the self-consistent field did not converge.
        """
        check_charge(structure, self.charge, self.spin)
        started = time.perf_counter()
        field = self._converged(self._molecule(structure))
        gradient = field.nuc_grad_method()
        gradient.grid_response = True
        try:
            slopes = gradient.kernel()
        except NotImplementedError as error:
            raise LabelError(
                f"PySCF has no gradient for {self.functional} ({error}); choose another "
                "functional.",
                kind="unsupported",
            ) from error
        return Label(
            structure=structure,
            energy=float(field.e_tot) * HARTREE,
            forces=-np.asarray(slopes) * (HARTREE / BOHR),
            fingerprint=self.fingerprint,
            wall_s=time.perf_counter() - started,
        )

    def _molecule(self, structure: Structure) -> Any:
        _version()
        from pyscf import gto
        from pyscf.lib.exceptions import BasisNotFoundError

        heavy = bool((structure.numbers > LAST_ALL_ELECTRON).any())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return gto.M(
                    atom=list(zip(structure.numbers.tolist(), structure.positions, strict=True)),
                    basis=self.basis, charge=self.charge, spin=self.spin, verbose=0,
                    ecp=self.basis if heavy and self.basis.lower().startswith("def2") else {},
                )  # fmt: skip
        except (BasisNotFoundError, KeyError) as error:
            raise LabelError(
                f"PySCF has no basis set {self.basis!r} for {structure.formula} ({error}); "
                "name one it has for all elements, such as def2-SVP.",
                kind="unsupported",
            ) from error

    def _converged(self, molecule: Any) -> Any:
        """Return the converged field of a molecule."""
        from pyscf import dft

        field = (dft.UKS if self.spin else dft.RKS)(molecule)
        field.xc, field.conv_tol, field.max_cycle = self.functional, self.threshold, self.cycles
        field.grids.level = self.grid
        if self.fitted:
            field = field.density_fit()
        try:
            field.kernel()
            if not field.converged:
                field = field.newton()
                field.kernel(field.make_rdm1())
        except (ImportError, RuntimeError) as error:  # dispersion is a package of its own
            raise LabelError(
                f"PySCF cannot compute {self.functional}: {error}", kind="unsupported"
            ) from error
        if not field.converged:
            raise LabelError(
                f"{self.functional}/{self.basis}: the self-consistent field did not converge in "
                f"{self.cycles} cycles, nor by the second-order solver after that. The electrons "
                "found no stable state, as when bonds are half broken or charge and spin are "
                "wrong; check structure.charge and structure.spin, skip the frame, or label "
                "another one."
            )
        return field


def of_name(words: str, *, charge: int, spin: int) -> DftReference:
    """Return the reference of "FUNCTIONAL/BASIS" or "FUNCTIONAL/BASIS/df".

    Raises:
        SettingsError: of another shape, or PySCF knows no such functional.
        LabelError: PySCF is not installed.
    """
    functional, _, rest = words.partition("/")
    basis, _, option = rest.partition("/")
    if not functional or not basis or option not in ("", FITTED):
        raise SettingsError(
            f"labelling.reference: 'dft:{words}' is not of the form dft:FUNCTIONAL/BASIS, with "
            "/df at the end for density fitting; for example dft:PBE/def2-SVP."
        )
    _version()
    from pyscf.dft import libxc

    try:
        libxc.parse_xc(functional)
    except (KeyError, ValueError) as error:
        raise SettingsError(
            f"labelling.reference: PySCF knows no functional {functional!r} ({error}); for "
            "example PBE, B3LYP or wB97X."
        ) from error
    return DftReference(functional, basis, charge, spin, fitted=option == FITTED)


def _version() -> str:
    try:
        return metadata.version("pyscf")
    except metadata.PackageNotFoundError as error:
        raise LabelError(
            "DFT labels need PySCF, which is not installed; install it with: "
            "pip install 'flywise[dft]'.",
            kind="unsupported",
        ) from error
