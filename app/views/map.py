"""Where the simulation has been, as the pretrained model sees it: frames and labels on a map.

Every frame is a point in the space of the model's own features, drawn along the two directions in
which the frames differ most. Near points are alike to the model; a point far from every label is
where it has learned nothing. Click one to see its atoms.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import panel as pn
from bokeh.events import Tap
from bokeh.models import ColumnDataSource, LinearColorMapper, Range1d
from bokeh.plotting import figure

from app import theme, wording
from app.selection import Selection
from app.series import KINDS
from app.state import CampaignState, Glance
from core.campaign.state import LABELLED

LOOK_S, BITE = 1.0, 1000
"""Seconds between two looks at new frames, and how many are read at once."""
FITTED, SHOWN = 2000, 3000
"""Frames the directions are found from, and frames drawn, evenly spread over all there are."""
GROWN = 1.3
"""The directions are found again when there are this many times as many frames."""
REACH = 0.03
"""A click finds the nearest point within this fraction of the map's width."""
LEAST = 3
"""Frames below which there is nothing to draw."""

_CSS = """
:host { display: grid !important; grid-template-rows: auto minmax(200px, 1fr) auto; gap: 6px;
  padding: 12px 16px; height: 100%; box-sizing: border-box; overflow-y: auto; }
.plot { min-height: 200px; }
"""
_TEXT_CSS = """
:host { color: var(--fw-text); }
.head { display: flex; flex-wrap: wrap; gap: 0 10px; align-items: baseline; font-size: 13px;
  line-height: 1.4; }
.head b { font-weight: 600; } .head span, p { color: var(--fw-muted); font-size: 12px; }
p { margin: 0; line-height: 1.5; }
i { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin: 0 4px 0 10px; }
i.ring { border: 2px solid var(--fw-text); box-sizing: border-box; }
i.here { border: 2px solid var(--fw-accent); box-sizing: border-box; }
i.scale { width: 56px; border-radius: 3px; }
"""


class Map(pn.viewable.Viewer):
    """Frames along the two main directions of their features, coloured by the bound."""

    def __init__(self, campaign: CampaignState, selection: Selection) -> None:
        super().__init__()
        self._campaign, self._selection = campaign, selection
        self._looked = 0.0
        self._ids = np.zeros(0, dtype=np.int64)
        self._parts: list[np.ndarray] = []
        self._fit: tuple[int, np.ndarray, np.ndarray, float] | None = None
        self._points = np.zeros((0, 2))
        self._seen: object = None
        self._shown = np.zeros(0, dtype=np.int64)
        self._mapper = LinearColorMapper(palette=list(theme.ERROR_SCALE), low=0, high=0.3)
        columns = ("x", "y", "bound", "id")
        self._frames = ColumnDataSource({name: [] for name in columns})
        self._labels = ColumnDataSource({name: [] for name in columns})
        self._here = ColumnDataSource({"x": [], "y": []})
        self._x, self._y = Range1d(start=-1, end=1), Range1d(start=-1, end=1)
        self._size = np.array([2.0, 2.0])
        self._figure = figure(
            x_range=self._x, y_range=self._y, sizing_mode="stretch_both", tools="",
            toolbar_location=None, min_border=6,
        )  # fmt: skip
        self._figure.axis.visible = False
        color: Any = {"field": "bound", "transform": self._mapper}
        self._figure.scatter("x", "y", source=self._frames, size=5, color=color, fill_alpha=0.75)
        self._rings = self._figure.scatter(
            "x", "y", source=self._labels, size=9, fill_color=color, line_width=1.8
        )
        self._ring = self._figure.scatter(
            "x", "y", source=self._here, size=16, fill_color=None, line_width=2.4
        )
        self._figure.on_event(Tap, self._tap)
        selection.param.watch(lambda _: self._mark(), "frame")
        self._head, self._legend = _text(""), _text("")
        self._layout = pn.Column(
            self._head, pn.pane.Bokeh(self._figure, margin=0, sizing_mode="stretch_both",
                                      css_classes=["plot"]),
            self._legend,
            margin=0, css_classes=["map"], stylesheets=[theme.CARD, _CSS],
            sizing_mode="stretch_both",
        )  # fmt: skip
        self._say(None)

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self, glance: Glance) -> None:
        """Take in new frames and labels, now and then."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        self._campaign.series.follow()
        self._read()
        state = glance.state
        done = frozenset(q.frame_id for q in state.queue if q.status in LABELLED)
        seen = (len(self._ids), done, state.force_tolerance, self._campaign.series.version)
        if seen != self._seen and len(self._ids) >= LEAST:
            self._seen = seen
            self._project()
            self._draw(done, state.force_tolerance)
        self._say(state.force_tolerance)

    def _read(self) -> None:
        last = int(self._ids[-1]) if len(self._ids) else 0
        ids, rows = self._campaign.reader.activations_since(last, BITE)
        if len(ids):
            self._ids = np.concatenate([self._ids, ids])
            self._parts.append(rows)

    def _project(self) -> None:
        """Find the two directions where there are many more frames; place the new ones."""
        n = len(self._ids)
        if self._fit is None or n > GROWN * self._fit[0]:
            rows = np.concatenate(self._parts)
            self._parts = [rows]
            mean, directions, share = main_directions(rows[spread(n, FITTED)], self._fit)
            self._fit = n, mean, directions, share
            self._points = (rows - mean) @ directions
        else:
            placed, rows = len(self._points), np.concatenate(self._parts)
            _, mean, directions, _ = self._fit
            self._points = np.concatenate([self._points, (rows[placed:] - mean) @ directions])

    def _draw(self, done: frozenset[int], tolerance: float | None) -> None:
        series = self._campaign.series
        at = np.searchsorted(series["id"], self._ids)
        known = at < len(series)
        at = np.minimum(at, max(len(series) - 1, 0))
        bound = np.full(len(at), np.nan)
        if len(series):
            judged = known & (series["kind"][at] != KINDS.index("untrusted"))
            bound = np.where(judged, series["force_bound"][at], np.nan)
        labelled = np.isin(self._ids, list(done))
        shown = spread(len(self._ids), SHOWN)
        shown = shown[~labelled[shown]]
        self._shown = np.concatenate([shown, np.flatnonzero(labelled)])
        self._mapper.high = 2 * tolerance if tolerance else 0.3
        for source, which in ((self._frames, shown), (self._labels, np.flatnonzero(labelled))):
            x, y = self._points[which].T
            source.data = {"x": x, "y": y, "bound": bound[which], "id": self._ids[which]}
        low, high = self._points.min(axis=0), self._points.max(axis=0)
        margin = 0.06 * np.maximum(high - low, 1e-9)
        self._size = high - low + 2 * margin
        self._x.update(start=low[0] - margin[0], end=high[0] + margin[0])
        self._y.update(start=low[1] - margin[1], end=high[1] + margin[1])
        self._mark()

    def _mark(self) -> None:
        """Ring the frame on show; the newest one where the picture is live."""
        if not len(self._points):
            return
        frame = self._selection.frame
        at = len(self._points) - 1
        if frame is not None:
            at = int(np.searchsorted(self._ids[: len(self._points)], frame))
            if at >= len(self._points) or self._ids[at] != frame:
                self._here.data = {"x": [], "y": []}
                return
        x, y = self._points[at]
        self._here.data = {"x": [x], "y": [y]}

    def _tap(self, event: Any) -> None:
        found = self.nearest(event.x, event.y)
        if found is not None:
            self._selection.show_frame(found, self._campaign.glance().state.queue)

    def nearest(self, x: float, y: float) -> int | None:
        """Return the frame drawn nearest to a point of the map, None where none is near."""
        if not len(self._shown):
            return None
        apart = np.linalg.norm((self._points[self._shown] - [x, y]) / self._size, axis=1)
        at = int(np.argmin(apart))
        return int(self._ids[self._shown[at]]) if apart[at] < REACH else None

    def _say(self, tolerance: float | None) -> None:
        n = len(self._points)
        if n < LEAST or self._fit is None:
            self._head.object = '<div class="head"><b>Map of the frames</b></div>'
            self._legend.object = (
                "<p>Nothing to draw yet: every frame that is checked from here on appears as a "
                "point; near points are alike to the model.</p>"
            )
            return
        share = f"two directions hold {100 * self._fit[3]:.0f} % of their differences"
        self._head.object = (
            f'<div class="head"><b>Map of the frames</b><span>{wording.count(n)} frames; {share}'
            "</span></div>"
        )
        high = 2 * tolerance if tolerance else 0.3
        scale = f"background: linear-gradient(90deg, {', '.join(theme.ERROR_SCALE)})"
        self._legend.object = (
            f'<p>0 <i class="scale" style="{scale}"></i> {wording.figures(high)} eV/Å bound on the '
            'force error, grey before trust <i class="ring"></i>labelled <i class="here"></i>on '
            "show</p>"
        )

    def paint(self, palette: theme.Palette) -> None:
        """Take the colours of a mode."""
        theme.style_figure(self._figure, palette)
        self._figure.grid.grid_line_color = None
        self._mapper.nan_color = palette.shade
        self._rings.glyph.line_color = palette.text
        self._ring.glyph.line_color = palette.accent


def spread(n: int, most: int) -> np.ndarray:
    """Return the indices of at most `most` of n rows, evenly spread, the last among them."""
    if n <= most:
        return np.arange(n)
    return np.unique(np.linspace(0, n - 1, most).astype(np.int64))


def main_directions(
    rows: np.ndarray, before: tuple[int, np.ndarray, np.ndarray, float] | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return mean (D,), the two directions (D, 2) in which rows (F, D) differ most, their share.

    Signs are chosen so that a map drawn `before` is not turned over.
    """
    mean = rows.mean(axis=0, dtype=np.float64)
    centred = rows - mean
    values, vectors = np.linalg.eigh(centred.T @ centred)
    directions = vectors[:, :-3:-1]
    if directions.shape[1] < 2:
        directions = np.pad(directions, ((0, 0), (0, 2 - directions.shape[1])))
    if before is not None:
        signs = np.sign((directions * before[2]).sum(axis=0))
        directions = directions * np.where(signs == 0, 1, signs)
    total = float(np.maximum(values, 0).sum())
    share = float(np.maximum(values[-2:], 0).sum() / total) if total > 0 else 1.0
    return mean, directions, share


def _text(html: str) -> pn.pane.HTML:
    return pn.pane.HTML(html, stylesheets=[_TEXT_CSS], margin=0, sizing_mode="stretch_width")
