"""Where labels come from: GFN-xTB, DFT, any program ASE drives, or a teacher model.

`Structure -> Label | Failure`. `make` turns a setting into a reference; `submitter` runs references
in processes, each label bought once. Importing this package loads nothing heavy: label processes
set their environment first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.errors import SettingsError

if TYPE_CHECKING:
    from core.contracts import Reference

ACCEPTED = (
    "gfn1-xtb", "gfn2-xtb", "dft:FUNCTIONAL/BASIS", "ase:CALCULATOR", "teacher:BUNDLE",
)  # fmt: skip
"""What `make` accepts; BUNDLE is a model's name or the path of a bundle folder."""


def make(name: str, *, charge: int = 0, spin: int = 0) -> Reference:
    """Return the reference a settings string names, for one total charge and spin.

    Args:
        charge: total charge, e. spin: number of unpaired electrons.

    Raises:
        SettingsError: no such reference. LabelError: the program it needs is not installed.
        ModelError: no such teacher.
    """
    kind, _, rest = name.strip().partition(":")
    kind = kind.lower()
    if kind in ("gfn1-xtb", "gfn2-xtb") and not rest:
        from core.reference.xtb import XtbReference

        return XtbReference(kind.replace("gfn", "GFN").replace("xtb", "xTB"), charge, spin)
    if kind == "dft" and rest:
        from core.reference import dft

        return dft.of_name(rest, charge=charge, spin=spin)
    if kind == "ase" and rest:
        from core.reference import program

        return program.of_name(rest, charge=charge, spin=spin)
    if kind == "teacher" and rest:
        from core.reference.teacher import of_bundle

        return of_bundle(rest, charge=charge, spin=spin)
    raise SettingsError(
        f"labelling.reference: {name!r} is not known; accepted: {', '.join(ACCEPTED)}."
    )
