"""The atoms, live or at a stored frame, coloured by the bound on their force error.

Below them the stored frames on one line. What is shown and measured is the page's selection.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui

from app import theme, wording
from app.selection import Selection
from app.series import KINDS
from app.state import CampaignState, Glance
from app.widgets.molecule import Molecule
from app.widgets.timeline import Timeline
from core.campaign.state import LABELLED, Query
from core.campaign.store import Frame
from core.errors import CampaignError

TICKS = 300
"""Ticks of one kind on the line of frames; more could not be told apart."""
LINE_S = 0.2
"""Time between two looks at the line of frames."""

_CSS = """
:host { display: flex !important; flex-direction: column; min-height: 300px; }
.view { position: relative; flex: 1 1 0; min-height: 0; }
.timeline { flex: none; width: auto; padding: 2px 10px 8px; border-top: 1px solid var(--fw-line); }
"""
_VIEW_CSS = """
.scroll-button { display: none !important; }
.molecule { position: absolute; inset: 0; }
.colours { position: absolute; right: 12px; top: 12px; z-index: 2; }
"""


class Scene(pn.viewable.Viewer):
    """The 3D view, and the line of stored frames."""

    def __init__(self, campaign: CampaignState, selection: Selection) -> None:
        super().__init__()
        self._campaign, self._selection = campaign, selection
        structure = campaign.structure
        self._molecule = Molecule(
            css_classes=["molecule"], sizing_mode="stretch_both", margin=0,
            value_title="Bound on the force error", value_unit="eV/Å",
            camera_key=campaign.title, picture_name=campaign.title,
        )  # fmt: skip
        cell = structure.cell if any(structure.pbc) else None
        self._molecule.set_atoms(structure.numbers, structure.positions, cell, structure.pbc)
        self._draw(campaign.reader.last_frame())
        self._timeline = Timeline(
            self._turn, css_classes=["timeline"], margin=0, sizing_mode="stretch_width"
        )
        self._glance: Glance | None = None
        self._frame: Frame | None = None
        self._shown, self._looked = -1.0, 0.0
        self._marked: tuple[Any, ...] = ()
        self._colour_by = pmui.RadioButtonGroup(
            options={"Error": "value", "Elements": "element"}, value="value", size="small",
            color="primary", css_classes=["colours"], margin=0,
        )  # fmt: skip
        self._colour_by.link(self._molecule, value="colour_by")
        view = pn.Column(
            self._molecule, self._colour_by, margin=0, css_classes=["view"],
            sizing_mode="stretch_both", stylesheets=[_VIEW_CSS],
        )  # fmt: skip
        self._layout = pn.Column(
            view, self._timeline, margin=0, css_classes=["scene"], stylesheets=[theme.CARD, _CSS]
        )
        self._link()

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def _link(self) -> None:
        chosen = self._selection.param
        chosen.watch(lambda event: self._show(event.new), "frame")
        chosen.watch(lambda event: self._show_query(event.new), "query")
        chosen.watch(lambda e: self._molecule.param.update(traced=list(e.new)), "coordinate")
        self._molecule.param.watch(lambda event: self._trace(event.new), "traced")
        self._timeline.param.watch(lambda event: self._choose(event.new), "value")
        if self._selection.frame is not None:
            self._show(self._selection.frame)

    def update(self, glance: Glance) -> None:
        """Show the newest frame, unless a stored one is chosen or it is on the screen already."""
        self._glance = glance
        self._campaign.series.follow()
        tolerance = glance.state.force_tolerance
        self._molecule.param.update(
            value_mark=tolerance, value_max=2 * tolerance if tolerance else 0.3, note=self._note()
        )
        live = glance.live
        if self._frame is None and live is not None and live.timestamp != self._shown:
            self._shown = live.timestamp
            known = bounds(live.sigma_atoms, live.force_bound, glance.state.trusted)
            self._molecule.move(live.positions, known, live.cell)
        if time.monotonic() - self._looked > LINE_S:
            self._looked = time.monotonic()
            self._update_line(glance)

    def _note(self) -> str:
        if self._frame is not None:
            if self._frame.kind == "untrusted":
                return "Colours show elements: this frame came before trust."
            return wording.outside(self._frame.novelty)
        if self._glance is None or not self._glance.state.trusted:
            return "Colours show elements until the model can be trusted."
        return wording.outside(self._glance.state.novelty)

    # The line of frames

    def _update_line(self, glance: Glance) -> None:
        series = self._campaign.series
        if len(series):
            self._timeline.last = int(series["id"][-1])
        key = (glance.state.queue, series.version)
        if key != self._marked:
            self._marked = key
            self._timeline.param.update(**self._ticks(glance.state.queue))
        self._say()

    def _ticks(self, queue: tuple[Query, ...]) -> dict[str, list[int]]:
        series = self._campaign.series
        done = [q.frame_id for q in queue if q.status in LABELLED]
        rest = [q.frame_id for q in queue if q.status not in LABELLED]
        gone = series["id"][series["rewound"] == 1].tolist()
        return {"flagged": thinned(rest), "labelled": thinned(done), "rewound": thinned(gone)}

    def _say(self) -> None:
        if self._frame is not None:
            self._timeline.text = self._frame_line(self._frame)
        elif self._glance is not None:
            self._timeline.text = f"live · step {wording.count(self._glance.step)}"

    def _frame_line(self, frame: Frame) -> str:
        queue = () if self._glance is None else self._glance.state.queue
        done = {q.frame_id for q in queue if q.status in LABELLED}
        said = [
            f"step {wording.count(frame.step)}",
            wording.frame_status(frame.kind, rewound=frame.rewound, labelled=frame.id in done),
        ]
        if frame.kind != KINDS[0] and np.isfinite(frame.energy_bound):
            said.append(f"± {wording.figures(wording.kcal(frame.energy_bound))} kcal/mol")
        return " · ".join(said)

    def _turn(self, direction: int) -> None:
        """Go to the next flagged frame, or to the one before."""
        if self._glance is None:
            return
        queue = self._glance.state.queue
        here = np.inf if self._selection.frame is None else self._selection.frame
        ids = sorted(q.frame_id for q in queue)
        beyond = [i for i in ids if (i - here) * direction > 0]
        if beyond:
            self._selection.show_frame(beyond[0 if direction > 0 else -1], queue)
        elif direction > 0:
            self._selection.go_live()

    def _choose(self, frame_id: int) -> None:
        if frame_id == (self._selection.frame or 0):
            return
        if frame_id == 0:
            self._selection.go_live()
        else:
            self._selection.show_frame(
                frame_id, () if self._glance is None else self._glance.state.queue
            )

    # Selection

    def _show(self, frame_id: int | None) -> None:
        try:
            frame = None if frame_id is None else self._campaign.reader.frame(frame_id)
        except CampaignError:  # the address of the page may ask for any frame
            self._selection.go_live()
            return
        self._frame, self._shown = frame, -1.0
        self._timeline.value = frame_id or 0
        name = self._campaign.title if frame is None else f"{self._campaign.title}-{frame.step}"
        self._molecule.param.update(picture_name=name, note=self._note())
        if frame is not None:
            self._draw(frame)
        else:
            self._show_newest()
        self._say()

    def _show_newest(self) -> None:
        if self._glance is not None and self._glance.live is not None:
            self.update(self._glance)
            return
        self._draw(self._campaign.reader.last_frame())

    def _draw(self, frame: Frame) -> None:
        known = bounds(frame.sigma_atoms, frame.force_bound, frame.kind != KINDS[0])
        self._molecule.move(frame.positions, known, frame.cell)

    def _show_query(self, query_id: int | None) -> None:
        state = self._campaign.glance().state
        if query_id is not None and 1 <= query_id <= len(state.queue):
            self._selection.frame = state.query(query_id).frame_id

    def _trace(self, atoms: list[int]) -> None:
        n = len(self._campaign.structure)
        if len(atoms) in (0, 2, 3, 4) and all(0 <= i < n for i in atoms):
            self._selection.coordinate = tuple(atoms)

    def paint(self, palette: theme.Palette) -> None:
        """Take the colours of a mode."""
        self._molecule.param.update(dark=palette.dark, canvas_color=palette.surface)


def thinned(ids: list[int]) -> list[int]:
    """Return at most `TICKS` of `ids`, spread over all of them."""
    return ids[:: -(-len(ids) // TICKS)] if ids else []


def bounds(sigma: np.ndarray, force_bound: float, trusted: bool) -> np.ndarray:
    """Return each atom's bound on its force error, (N,) eV/Å; nan while there is none.

    The calibrated bound holds for the largest error; the others share it in proportion to σ (N,).
    """
    largest = float(np.max(sigma)) if len(sigma) else 0.0
    if not trusted or not np.isfinite(force_bound) or not largest > 0:
        return np.full(len(sigma), np.nan)
    return sigma * (force_bound / largest)
