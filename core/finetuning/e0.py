"""The energy zero between a reference and a model: one constant, or one energy for each element.

Two levels of theory put their zero elsewhere (2.3 eV an atom between GFN1 and GFN2 for ethanol);
only what is left after that can be learned or trusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from core.errors import InputError
from core.structures import Structure

PRIOR_EV = 30.0
"""Spread expected of the shift of one element between two levels of theory, eV."""
NOISE_EV_PER_ATOM = 0.02
"""What no shift explains, eV/atom."""
MISMATCH_EV_PER_ATOM = 0.5
"""An error per atom left after the shifts that says the zero is wrong (arXiv 2606.12704)."""
_HOW = {
    "computed": "as computed", "estimated": "estimated from the labels",
    "foundation": "as the foundation has them",
}  # fmt: skip
OUTSIDE = 1e-6
"""Share of a composition outside the space of those seen that counts as rounding."""


@dataclass(frozen=True)
class Offset:
    """A constant to add to the model's energies: `value` (eV) and its `variance` (eV²)."""

    value: float = 0.0
    variance: float = math.inf


def constant_offset(residuals: Sequence[float] | np.ndarray) -> Offset:
    """Return the mean of E_ref - E_model (S,) in eV and the variance of that mean.

    One residual fixes the constant but says nothing of its variance, which is then infinite.

    Raises:
        ValueError: no residual.
    """
    values = np.asarray(residuals, dtype=float)
    if values.size == 0:
        raise ValueError("An offset needs at least one label.")
    variance = float(values.var(ddof=1) / values.size) if values.size > 1 else math.inf
    return Offset(float(values.mean()), variance)


@dataclass(frozen=True)
class IsolatedEnergies:
    """Energies of isolated atoms for one level of theory, and how well they are known.

    Attributes:
        how: "computed", "estimated" (from residuals) or "foundation" (kept).
        elements: (Z,) atomic numbers of the potential. energies: (Z,), eV.
        shifts: (Z,) energies minus the foundation's, eV.
        counts: (S, Z) atoms of each element in the labels they were estimated from; (0, Z) if not.
        before, after: mean |E_ref - E_model| of the labels, eV/atom, with the foundation's
            energies and with these.
    """

    how: str
    elements: tuple[int, ...]
    energies: np.ndarray
    shifts: np.ndarray
    counts: np.ndarray
    before: float
    after: float

    @property
    def present(self) -> np.ndarray:
        """(Z,) whether the labels hold the element."""
        return np.any(self.counts, axis=0)

    @property
    def rank(self) -> int:
        """Independent compositions among the labels."""
        return int(np.linalg.matrix_rank(self.counts)) if len(self.counts) else 0

    @property
    def is_deficient(self) -> bool:
        """Whether shifts of single elements are partly arbitrary, for want of compositions."""
        return self.how == "estimated" and self.rank < int(self.present.sum())

    @property
    def undetermined(self) -> tuple[str, ...]:
        """Combinations of elements whose shift the labels do not fix, such as "H - 0.5 C"."""
        if not self.is_deficient:
            return ()
        at = np.flatnonzero(self.present)
        _, sizes, right = np.linalg.svd(self.counts[:, at])
        null = right[self.rank :]
        return tuple(_combination([self.elements[k] for k in at], row) for row in _reduced(null))

    def covers(self, structure: Structure) -> bool:
        """Whether total energies of this composition are fixed by the labels."""
        if self.how != "estimated":
            return True
        count = count_elements(self.elements, [structure])[0]
        if not len(self.counts):
            return False
        inside, *_ = np.linalg.lstsq(self.counts.T, count, rcond=None)
        return bool(np.abs(self.counts.T @ inside - count).max() <= OUTSIDE * count.sum())

    @property
    def is_mismatched(self) -> bool:
        """Whether the error left says that the zero of energy is wrong."""
        return self.after > MISMATCH_EV_PER_ATOM


def count_elements(elements: Sequence[int], structures: Sequence[Structure]) -> np.ndarray:
    """Return how many atoms of each element (S, Z) the structures hold."""
    return np.array([[(s.numbers == z).sum() for z in elements] for s in structures], dtype=float)


def foundations(elements: Sequence[int], energies: np.ndarray) -> IsolatedEnergies:
    """Return the foundation's own energies of isolated atoms, eV, unchanged and unchecked."""
    n = len(elements)
    none = np.zeros((0, n))
    return IsolatedEnergies(
        "foundation", tuple(elements), np.array(energies), np.zeros(n), none, math.nan, math.nan
    )


def kept(
    foundation: IsolatedEnergies, structures: Sequence[Structure], residuals: np.ndarray
) -> IsolatedEnergies:
    """Return the foundation's energies, with the error labels show; arguments as `estimated`."""
    counts = count_elements(foundation.elements, structures)
    n_atoms = counts.sum(axis=1)
    rows = counts / n_atoms[:, None]
    unshifted = np.zeros(len(foundation.elements))
    return _measured(foundation, "foundation", unshifted, counts, residuals / n_atoms, rows)


def estimated(
    foundation: IsolatedEnergies, structures: Sequence[Structure], residuals: np.ndarray
) -> IsolatedEnergies:
    """Return energies of isolated atoms that shift the foundation's energies to the labels'.

    Minimises Σ_s ((r_s - n_s·δ)/N_s)²/noise² + |δ|²/prior² over the shifts δ of the elements. Where
    the labels leave δ undetermined, the ridge takes the smallest shifts that agree with them.

    Args:
        foundation: of the model that is fine-tuned.
        structures, residuals: of the labels; E_ref - E_foundation (S,), eV.
    """
    counts = count_elements(foundation.elements, structures)
    n_atoms = counts.sum(axis=1)
    rows = counts / n_atoms[:, None]
    target = residuals / n_atoms
    ridge = (NOISE_EV_PER_ATOM / PRIOR_EV) ** 2
    gram = rows.T @ rows + ridge * np.eye(rows.shape[1])
    shifts = np.linalg.solve(gram, rows.T @ target)
    return _measured(foundation, "estimated", shifts, counts, target, rows)


def isolated(
    foundation: IsolatedEnergies,
    atoms: dict[int, float],
    structures: Sequence[Structure],
    residuals: np.ndarray,
) -> IsolatedEnergies:
    """Return computed energies of isolated atoms, `atoms` (atomic number -> eV).

    Elements that are neither in `atoms` nor in the labels keep the foundation's energy.

    Raises:
        InputError: an element of the labels is not in `atoms`.
    """
    counts = count_elements(foundation.elements, structures)
    lacking = [
        chemical_symbols[z]
        for z, found in zip(foundation.elements, np.any(counts, axis=0), strict=True)
        if found and z not in atoms
    ]
    if lacking:
        raise InputError(
            f"The energy of the isolated atom is missing for {', '.join(lacking)}; give all, or "
            "have them estimated from the labels."
        )
    shifts = np.array(
        [
            atoms.get(z, old) - old
            for z, old in zip(foundation.elements, foundation.energies, strict=True)
        ]
    )
    n_atoms = counts.sum(axis=1)
    return _measured(
        foundation, "computed", shifts, counts, residuals / n_atoms, counts / n_atoms[:, None]
    )


def _measured(
    foundation: IsolatedEnergies, how: str, shifts: np.ndarray, counts: np.ndarray,
    target: np.ndarray, rows: np.ndarray,
) -> IsolatedEnergies:  # fmt: skip
    left = np.abs(target - rows @ shifts).mean()
    return IsolatedEnergies(
        how, foundation.elements, foundation.energies + shifts, shifts,
        counts, float(np.abs(target).mean()), float(left),
    )  # fmt: skip


def _reduced(rows: np.ndarray) -> np.ndarray:
    """Return the reduced row echelon form, with the largest pivots first."""
    rows = rows.copy()
    for k in range(len(rows)):
        column = int(np.argmax(np.abs(rows[k])))
        rows[k] /= rows[k, column]
        for other in range(len(rows)):
            if other != k:
                rows[other] -= rows[other, column] * rows[k]
    return rows


def _combination(elements: Sequence[int], row: np.ndarray) -> str:
    words = []
    for z, x in sorted(zip(elements, row, strict=True), key=lambda pair: -abs(pair[1])):
        if abs(x) < 0.005:
            continue
        size = "" if abs(abs(x) - 1) < 0.005 else f"{abs(x):.2g} "
        sign = "-" if x < 0 else "+"
        words.append(f"{sign} {size}{chemical_symbols[z]}")
    return " ".join(words).removeprefix("+ ")


def report(found: IsolatedEnergies) -> dict[str, object]:
    """Return what a receipt says of the energies of isolated atoms, as plain JSON values."""
    present = {
        chemical_symbols[z]: {"energy_eV": float(energy), "shift_eV": float(shift)}
        for z, energy, shift, there in zip(
            found.elements, found.energies, found.shifts, found.present, strict=True
        )
        if there
    }
    return {
        "how": found.how, "elements": present, "rank": found.rank,
        "undetermined": list(found.undetermined),
        "before_eV_per_atom": found.before, "after_eV_per_atom": found.after,
    }  # fmt: skip


def warnings(found: IsolatedEnergies) -> list[str]:
    """Return what a person should know of these energies, in sentences."""
    said = []
    if found.is_mismatched:
        said.append(
            f"The energies still differ by {1e3 * found.after:.0f} meV/atom with isolated "
            f"atoms {_HOW[found.how]} (with the foundation's: {1e3 * found.before:.0f}); above "
            f"{1e3 * MISMATCH_EV_PER_ATOM:.0f} the labels and the model do not mean the same "
            "energy. Check the unit of the energies; if it is right, have the atoms estimated."
        )
    if found.is_deficient:
        said.append(
            f"The labels have {found.rank} independent composition"
            f"{'s' if found.rank > 1 else ''} of {int(found.present.sum())} elements: total "
            f"energies hold for these only ({'; '.join(found.undetermined)} undetermined). Energy "
            "differences and forces hold for all."
        )
    return said
