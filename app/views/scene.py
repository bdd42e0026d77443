"""The moving atoms, coloured by the bound on their force error."""

from __future__ import annotations

import numpy as np
import panel as pn
import panel_material_ui as pmui

from app import theme
from app.state import CampaignState, Glance
from app.widgets.molecule import Molecule

_CSS = """
:host { position: relative; min-height: 300px; }
.molecule { position: absolute; inset: 0; }
.colours { position: absolute; right: 12px; top: 12px; z-index: 2; }
"""


class Scene(pn.viewable.Viewer):
    """The 3D view of the newest frame."""

    def __init__(self, campaign: CampaignState) -> None:
        super().__init__()
        structure = campaign.structure
        self._molecule = Molecule(
            css_classes=["molecule"], sizing_mode="stretch_both", margin=0,
            value_title="Bound on the force error", value_unit="eV/Å",
        )  # fmt: skip
        cell = structure.cell if any(structure.pbc) else None
        self._molecule.set_atoms(structure.numbers, structure.positions, cell)
        last = campaign.reader.last_frame()
        self._molecule.move(last.positions, np.full(len(structure), np.nan))
        self._shown = -1.0
        self._colour_by = pmui.RadioButtonGroup(
            options={"Error": "value", "Elements": "element"}, value="value", size="small",
            color="primary", css_classes=["colours"], margin=0,
        )  # fmt: skip
        self._colour_by.link(self._molecule, value="colour_by")
        self._layout = pn.Column(
            self._molecule, self._colour_by, margin=0, css_classes=["scene"],
            stylesheets=[theme.CARD, _CSS],
        )  # fmt: skip

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self, glance: Glance) -> None:
        """Show the newest frame, unless it is on the screen already."""
        state, live = glance.state, glance.live
        tolerance = state.force_tolerance
        self._molecule.param.update(
            value_mark=tolerance,
            value_max=2 * tolerance if tolerance else 0.3,
            note="" if state.trusted else "Colours show elements until the model can be trusted.",
        )
        if live is None or live.timestamp == self._shown:
            return
        self._shown = live.timestamp
        self._molecule.move(
            live.positions, bounds(live.sigma_atoms, live.force_bound, state.trusted)
        )

    def paint(self, palette: theme.Palette) -> None:
        """Take the colours of a mode."""
        self._molecule.param.update(dark=palette.dark, canvas_color=palette.surface)


def bounds(sigma: np.ndarray, force_bound: float, trusted: bool) -> np.ndarray:
    """Return each atom's bound on its force error, (N,) eV/Å; nan while there is none.

    The calibrated bound holds for the largest error; the others share it in proportion to σ (N,).
    """
    largest = float(np.max(sigma)) if len(sigma) else 0.0
    if not trusted or not np.isfinite(force_bound) or not largest > 0:
        return np.full(len(sigma), np.nan)
    return sigma * (force_bound / largest)
