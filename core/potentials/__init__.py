"""Interatomic potentials behind one contract (`core.contracts.Potential`).

`load` turns a name or a bundle folder into a potential. Only `core.potentials.mace` touches mace.
"""

from core.potentials.load import available, load

__all__ = ["available", "load"]
