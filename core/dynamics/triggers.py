"""The reset limit: says when a simulation is broken, in words a chemist can check.

Arrays in, a reason or None out. A molecule that merely falls apart is not broken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.geometry import complete_cell
from matscipy.neighbours import neighbour_list
from scipy.spatial import cKDTree

from core.structures import Structure


@dataclass(frozen=True)
class Limits:
    """Where a frame is beyond repair.

    Attributes:
        closeness: smallest distance of two atoms, as a fraction of the sum of their covalent radii.
        force: largest force on an atom, eV/Å.
        speed_factor: largest kinetic temperature, as a multiple of the one asked for.
    """

    closeness: float = 0.5
    force: float = 100.0
    speed_factor: float = 20.0


def broken(
    structure: Structure,
    energy: float,
    forces: np.ndarray,
    temperature_K: float,
    target_K: float,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> str | None:
    """Return why this frame cannot be trusted nor labelled, or None.

    Args:
        energy: eV. forces: (N, 3), eV/Å. temperature_K: kinetic. target_K: asked for.
    """
    if not np.isfinite(structure.positions).all():
        return "exploded: positions are not finite numbers"
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        return "the potential returned energies or forces that are not finite numbers"
    if not temperature_K <= limits.speed_factor * target_K:
        return (
            f"exploding: the kinetic temperature is {temperature_K:.0f} K, more than "
            f"{limits.speed_factor:g} times the {target_K:.0f} K asked for"
        )
    size = np.sqrt((forces**2).sum(1))
    worst = int(size.argmax())
    if size[worst] > limits.force:
        return (
            f"the force on {_name(structure, worst)} is {size[worst]:.0f} eV/Å (at most "
            f"{limits.force:g} is accepted)"
        )
    return _too_close(structure, limits.closeness)


def _too_close(structure: Structure, fraction: float) -> str | None:
    radii = fraction * covalent_radii[structure.numbers]
    i, j, distance = _near_pairs(structure, 2 * float(radii.max()))
    limit = radii[i] + radii[j]
    if not (distance < limit).any():
        return None
    k = int(np.argmin(distance / limit))
    return (
        f"{_name(structure, i[k])} and {_name(structure, j[k])} are {distance[k]:.2f} Å apart, "
        f"closer than atoms come ({limit[k]:.2f} Å)"
    )


def _near_pairs(structure: Structure, reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return i < j and the distances, Å, of all pairs, images included, within `reach`."""
    x = structure.positions
    if any(structure.pbc):
        i, j, distance = neighbour_list(
            "ijd", cutoff=reach, positions=x, cell=complete_cell(structure.cell), pbc=structure.pbc
        )
        once = i < j
        return i[once], j[once], distance[once]
    i, j = cKDTree(x).query_pairs(reach, output_type="ndarray").reshape(-1, 2).T
    return i, j, np.linalg.norm(x[i] - x[j], axis=1)


def _name(structure: Structure, index: int) -> str:
    return f"{chemical_symbols[structure.numbers[index]]}{index + 1}"
