"""A live 3D view of atoms, drawn in the page by the NGL engine that the nglview wheel carries.

Positions and per-atom values travel as float32 bytes; nothing is fetched from the network. Without
WebGL the page draws a flat projection instead. Colours come from `app.theme`.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import ase.cell
import ase.data
import ase.data.colors
import numpy as np
import panel as pn
import param
from bokeh.embed.bundle import extension_dirs
from panel.custom import JSComponent

from app.theme import ERROR_SCALE

ENGINE = "share/jupyter/nbextensions/nglview-js-widgets/index.js"
_ROUTE = "flywise-ngl"


def engine_file() -> Path:
    """Return the installed NGL bundle.

    Raises:
        FileNotFoundError: nglview is installed without it.
    """
    wheel = importlib.metadata.distribution("nglview")
    for file in wheel.files or ():
        if str(file).endswith(ENGINE):
            return Path(str(wheel.locate_file(file))).resolve()
    raise FileNotFoundError(
        f"The installed nglview {wheel.version} has no {ENGINE}; reinstall it with pip."
    )


TILTED = (0.966, 0.0, -0.259, 0.067, 0.966, 0.25, 0.25, -0.259, 0.933)
"""First orientation of a crystal: its axes, turned by 15° twice."""

extension_dirs[_ROUTE] = engine_file().parent  # served by any Bokeh server, `panel serve` too


def principal_view(positions: np.ndarray) -> list[float]:
    """Return a rotation (row-major 3x3) that lays positions (N, 3) flat: longest axis across."""
    centred = positions - positions.mean(axis=0)
    if len(positions) < 3:
        return np.eye(3).ravel().tolist()
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes[2] = np.cross(axes[0], axes[1])
    return axes.ravel().tolist()


class Molecule(JSComponent):
    """Atoms in motion, coloured by a per-atom value on a fixed scale, or by element."""

    engine = param.String(doc="Address of the NGL bundle.")
    symbols = param.List(item_type=str, doc="Element of each of the N atoms.")
    radii = param.List(doc="Covalent radius of each atom, Å.")
    element_colors = param.List(doc="Red, green, blue of each atom's element, 0 to 1.")
    cell = param.List(doc="Lattice vectors, nine numbers in Å; empty for a molecule.")
    box = param.List(doc="The same of the frame shown, where the cell changes; else empty.")
    pbc = param.List(default=[False] * 3, doc="Which lattice vectors are periods.")
    view = param.List(doc="First orientation of the camera, row-major 3x3.")
    positions = param.Bytes(doc="(N, 3) float32, Å.")
    values = param.Bytes(doc="(N,) float32; nan where nothing is known.")
    value_max = param.Number(0.3, bounds=(0, None), doc="Upper end of the colour scale.")
    value_mark = param.Number(0.15, allow_None=True, doc="A value to mark on the scale.")
    value_title = param.String(doc="What the colours say.")
    value_unit = param.String(doc="Unit of the values.")
    colour_by: Any = param.Selector(default="value", objects=["value", "element"])
    scale = param.List(default=list(ERROR_SCALE), doc="Colours of the scale, low to high.")
    note = param.String(doc="One line over the picture, empty for none.")
    picked = param.List(item_type=int, doc="Atoms picked to measure, four at most.")
    traced = param.List(item_type=int, doc="Atoms whose coordinate is traced elsewhere.")
    camera_key = param.String(doc="Under this name the browser tab keeps the camera.")
    picture_name = param.String("picture", doc="Name of a saved picture, without suffix.")
    dark = param.Boolean(False)
    canvas_color = param.Color("#ffffff", doc="Background of the picture.")

    _esm = Path(__file__).parent / "molecule.js"

    def __init__(self, **params: object) -> None:
        version = importlib.metadata.version("nglview")
        prefix = f"{pn.state.rel_path}/" if pn.state.rel_path else ""
        address = f"{prefix}static/extensions/{_ROUTE}/index.js?v={version}"
        super().__init__(**{"engine": address, **params})

    def set_atoms(
        self,
        numbers: np.ndarray,
        positions: np.ndarray,
        cell: np.ndarray | None,
        pbc: tuple[bool, bool, bool] = (True, True, True),
    ) -> None:
        """Set up for other atoms: numbers (N,), positions (N, 3) Å, cell (3, 3) Å or None.

        Lattice vectors that are zero are open directions; `pbc` says which others are.
        """
        self.param.update(
            symbols=[ase.data.chemical_symbols[z] for z in numbers],
            radii=[float(ase.data.covalent_radii[z]) for z in numbers],
            element_colors=[[float(c) for c in element_color(z)] for z in numbers],
            cell=[] if cell is None else ase.cell.Cell(cell).complete().ravel().tolist(),
            box=[],
            pbc=[False] * 3 if cell is None else [bool(p) for p in pbc],
            picked=[],
            view=principal_view(positions) if cell is None else list(TILTED),
            positions=positions.astype("<f4").tobytes(),
            values=np.full(len(numbers), np.nan, "<f4").tobytes(),
        )

    def move(
        self, positions: np.ndarray, values: np.ndarray, cell: np.ndarray | None = None
    ) -> None:
        """Show a new frame: positions (N, 3) Å, values (N,), and its cell (3, 3) if it changes."""
        self.param.update(
            positions=positions.astype("<f4").tobytes(), values=values.astype("<f4").tobytes(),
            box=[] if cell is None else cell.ravel().tolist(),
        )  # fmt: skip


def element_color(number: int) -> np.ndarray:
    """Return red, green, blue (0 to 1) of an element, darkened where white would vanish."""
    return np.minimum(ase.data.colors.jmol_colors[number], 0.86)
