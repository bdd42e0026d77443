"""A small still picture of a structure as SVG: atoms and bonds seen along one direction."""

from __future__ import annotations

import ase.data
import ase.neighborlist
import numpy as np

from app.widgets.molecule import TILTED, element_color, principal_view
from core.structures import Structure

MAX_ATOMS = 300
"""Of larger structures only the atoms nearest to the viewer are drawn."""
BOND = 1.2
"""Atoms nearer than this multiple of the sum of their covalent radii are joined."""
ATOM = 0.5
"""Radius of a ball as a fraction of the covalent radius."""
EDGE = 0.7
"""Room around the outermost atoms, Å."""


def svg(structure: Structure, width: int = 132, height: int = 96) -> str:
    """Return the picture of a structure as an `svg` element of so many pixels."""
    periodic = any(structure.pbc)
    view = np.array(TILTED if periodic else principal_view(structure.positions)).reshape(3, 3)
    seen = structure.positions @ view.T
    box = _corners(structure.cell) @ view.T if periodic else np.zeros((0, 3))
    centre, scale = _fit(np.vstack([seen, box]), width, height)
    flat = (seen - centre) * [scale, -scale, 1.0] + [width / 2, height / 2, 0.0]
    shapes = [*_bonds(structure, flat, scale), *_atoms(structure, flat, scale)]
    drawn = "".join(shape for _, shape in sorted(shapes, key=lambda item: item[0]))
    if periodic:
        edges = (box - centre) * [scale, -scale, 1.0] + [width / 2, height / 2, 0.0]
        drawn = _cell(edges) + drawn
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Picture of {structure.formula}">{drawn}</svg>'
    )


def _fit(points: np.ndarray, width: int, height: int) -> tuple[np.ndarray, float]:
    low, high = points.min(axis=0), points.max(axis=0)
    span = high - low + 2 * EDGE
    return (low + high) / 2, float(min(width / span[0], height / span[1], height / 3.0))


def _front(structure: Structure, flat: np.ndarray) -> np.ndarray:
    return np.argsort(flat[:, 2])[-MAX_ATOMS:]


def _atoms(structure: Structure, flat: np.ndarray, scale: float) -> list[tuple[float, str]]:
    shapes = []
    for i in _front(structure, flat):
        number = structure.numbers[i]
        radius = ATOM * ase.data.covalent_radii[number] * scale
        color = "#" + "".join(f"{round(255 * c):02x}" for c in element_color(number))
        x, y, depth = flat[i]
        shapes.append(
            (depth, f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{max(radius, 1.2):.1f}" fill="{color}" '
             'stroke="var(--fw-muted, #777)" stroke-width="0.7"/>')
        )  # fmt: skip
    return shapes


def _bonds(structure: Structure, flat: np.ndarray, scale: float) -> list[tuple[float, str]]:
    if len(structure) > MAX_ATOMS:
        return []
    radii = ase.data.covalent_radii[structure.numbers]
    i, j, d = ase.neighborlist.primitive_neighbor_list(
        "ijd", (False, False, False), np.eye(3), structure.positions,
        cutoff=2 * BOND * float(radii.max()), self_interaction=False,
    )  # fmt: skip
    joined = (i < j) & (d < BOND * (radii[i] + radii[j]))
    shapes = []
    for a, b in zip(i[joined], j[joined], strict=True):
        (x, y, near), (u, v, far) = flat[a], flat[b]
        shapes.append(
            (min(near, far), f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{u:.1f}" y2="{v:.1f}" '
             f'stroke="var(--fw-muted, #777)" stroke-width="{max(0.16 * scale, 1):.1f}" '
             'stroke-linecap="round"/>')
        )  # fmt: skip
    return shapes


_CORNERS = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], dtype=float)
_EDGES = [
    (i, j) for i in range(8) for j in range(i) if np.abs(_CORNERS[i] - _CORNERS[j]).sum() == 1
]


def _corners(cell: np.ndarray) -> np.ndarray:
    return _CORNERS @ cell


def _cell(corners: np.ndarray) -> str:
    lines = "".join(
        f"M{corners[i, 0]:.1f} {corners[i, 1]:.1f}L{corners[j, 0]:.1f} {corners[j, 1]:.1f}"
        for i, j in _EDGES
    )
    return f'<path d="{lines}" fill="none" stroke="var(--fw-line, #ccc)"/>'
