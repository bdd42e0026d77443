"""A small MACE, and labels of another one."""

import numpy as np
import torch
from ase.build import molecule

from core.contracts import LabelSet
from core.potentials.mace import MacePotential, default_config
from core.structures import Structure, from_atoms


def small_mace(seed: int, **changes) -> MacePotential:
    """An untrained MACE of H, C, N and O in double precision."""
    torch.manual_seed(seed)
    isolated = np.array([-13.0, -1000.0, -1400.0, -2000.0])
    config = default_config((1, 6, 7, 8), isolated, channels=8, max_ell=2)
    return MacePotential(config | changes, dtype=torch.float64)


def frames(names, n: int, seed: int = 0) -> tuple[Structure, ...]:
    """`n` distorted molecules, of `names` in turn."""
    rng = np.random.default_rng(seed)
    bases = [from_atoms(molecule(name)) for name in names]
    return tuple(
        Structure(b.numbers, b.positions + 0.05 * rng.standard_normal(b.positions.shape))
        for b in (bases[k % len(bases)] for k in range(n))
    )


def labelled(potential, structures) -> LabelSet:
    """Labels as a potential gives them."""
    found = potential.predict(structures)
    return LabelSet(tuple(structures), found.energies, found.forces)
