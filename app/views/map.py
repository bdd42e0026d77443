"""Where the simulation has been, as the pretrained model sees it: frames and labels on a map.

Every frame is a point in the space of the model's own features, drawn along the two directions in
which the frames differ most. Near points are alike to the model; a point far from every label is
where it has learned nothing. Click one to see its atoms. Asked for, the frames are numbered that
would tell most if they were labelled, and a press has them labelled.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
from bokeh.events import Tap
from bokeh.models import ColumnDataSource, LinearColorMapper, Range1d
from bokeh.plotting import figure

from app import theme, wording
from app.seat import Seat
from app.selection import Selection
from app.series import KINDS
from app.state import CampaignState, Glance
from app.widgets.form import SELECT_LABEL_HIDDEN, action
from core.campaign import events as ev
from core.campaign.state import LABELLED, WITHOUT_LABEL, State
from core.campaign.suggest import suggest

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
NUMBERS, SUGGESTED = (1, 2, 4, 8, 16, 32, 64), 8
"""How many frames can be suggested at once, and how many are by default."""
AT_WORK = ("running", "labelling", "deciding", "updating", "paused")
"""Phases in which frames can be had labelled."""

_CSS = """
:host { display: grid !important; grid-template-rows: auto minmax(200px, 1fr) auto auto; gap: 6px;
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

    def __init__(self, campaign: CampaignState, selection: Selection, seat: Seat) -> None:
        super().__init__()
        self._campaign, self._selection, self._seat = campaign, selection, seat
        self._suggested: tuple[int, ...] = ()
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
        self._picks = ColumnDataSource({"x": [], "y": [], "number": []})
        self._x, self._y = Range1d(start=-1, end=1), Range1d(start=-1, end=1)
        self._size = np.array([2.0, 2.0])
        self._figure = figure(
            x_range=self._x, y_range=self._y, sizing_mode="stretch_both", tools="",
            toolbar_location=None, min_border=6,
        )  # fmt: skip
        self._figure.axis.visible = False
        color: Any = {"field": "bound", "transform": self._mapper}
        self._dots = self._figure.scatter(
            "x", "y", source=self._frames, size=5.5, fill_color=color, line_width=0.7,
            line_alpha=0.6,
        )  # fmt: skip
        self._rings = self._figure.scatter(
            "x", "y", source=self._labels, size=9, fill_color=color, line_width=1.8
        )
        self._ring = self._figure.scatter(
            "x", "y", source=self._here, size=16, fill_color=None, line_width=2.4
        )
        self._squares = self._figure.scatter(
            "x", "y", source=self._picks, size=13, marker="square", fill_color=None, line_width=2
        )
        self._numbers = self._figure.text(
            "x", "y", "number", source=self._picks, x_offset=8, y_offset=-6, text_font_size="11px",
            text_font_style="bold",
        )  # fmt: skip
        self._figure.on_event(Tap, self._tap)
        selection.param.watch(lambda _: self._mark(), "frame")
        self._head, self._legend, self._said = _text(""), _text(""), _text("")
        self._many = pmui.Select(
            label="How many frames", options={wording.frames(n): n for n in NUMBERS},
            value=SUGGESTED, width=120, size="small", margin=0, stylesheets=[SELECT_LABEL_HIDDEN],
        )  # fmt: skip
        self._suggest = action("Suggest", "auto_awesome", "outlined", self.suggest)
        self._label = action("Label", "check", "contained", self.label)
        self._clear = action("Clear", "close", "text", self.clear)
        buttons = pn.Row(
            self._many, self._suggest, self._label, self._clear, self._said, margin=0,
            stylesheets=[":host { gap: 8px; flex-wrap: wrap; align-items: center; }"],
        )  # fmt: skip
        self._layout = pn.Column(
            self._head, pn.pane.Bokeh(self._figure, margin=0, sizing_mode="stretch_both",
                                      css_classes=["plot"]),
            self._legend, buttons,
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
        self._offer(glance)

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
        self._number()
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

    # ------------------------------------------------------------------ suggestions

    def suggest(self) -> None:
        """Number the frames that would tell most, of those drawn that have no label."""
        state = self._campaign.glance().state
        done = _without_use(state) | {int(i) for i in self._campaign.reader.rewound_frames(0)}
        drawn = self._ids[self._shown] if len(self._shown) else self._ids
        open_ = np.flatnonzero(np.isin(self._ids, drawn) & ~np.isin(self._ids, list(done)))
        known = np.isin(self._ids, [q.frame_id for q in state.queue if q.status in LABELLED])
        rows = np.concatenate(self._parts)
        picks = suggest(rows[open_], rows[known], self._many.value)
        self._suggested = tuple(int(self._ids[open_[k]]) for k in picks)
        self._number()
        self._offer(self._campaign.glance())

    def label(self) -> None:
        """Have the numbered frames labelled."""
        if self._suggested and self._seat.post(ev.LabelFrames(frame_ids=self._suggested)):
            self.clear()

    def clear(self) -> None:
        """Take the numbers away."""
        self._suggested = ()
        self._number()
        self._offer(self._campaign.glance())

    def _number(self) -> None:
        """Draw a number at each suggested frame."""
        at = np.searchsorted(self._ids, self._suggested)
        x, y = self._points[at].T if len(at) else ([], [])
        numbers = [str(k) for k in range(1, len(at) + 1)]
        self._picks.data = {"x": x, "y": y, "number": numbers}

    def _offer(self, glance: Glance) -> None:
        """Show what can be asked for now."""
        state = glance.state
        gone = _without_use(state)
        if gone & set(self._suggested):
            self._suggested = tuple(i for i in self._suggested if i not in gone)
            self._number()
        n = len(self._suggested)
        driving = self._seat.sharing.driving
        can = state.trusted and len(self._points) >= LEAST
        self._suggest.disabled = self._many.disabled = not can
        self._label.param.update(
            label=f"Label {'this one' if n == 1 else f'these {n}'}",
            visible=n > 0,
            disabled=not (driving and state.phase in AT_WORK and not state.choosing),
        )
        self._clear.visible = n > 0
        if not state.trusted:
            said = "Once the first labels are learned, frames worth one can be suggested here."
        elif state.choosing:
            said = f"{wording.frames(len(state.choosing))} chosen; the engine judges them."
        elif n and state.phase not in AT_WORK:
            said = "They can be labelled while the campaign runs; settings can add steps."
        elif n:
            cost = wording.cost(glance, n)
            said = f"{cost[0].upper()}{cost[1:]}; 1 tells most, each adds to those before it."
        else:
            said = "Numbers the frames, flagged or not, that would tell most beside the labels."
        self._said.object = f"<p>{said}</p>"

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
        self._dots.glyph.line_color = palette.muted
        self._rings.glyph.line_color = palette.text
        self._squares.glyph.line_color = palette.warn
        self._numbers.glyph.text_color = palette.warn
        self._ring.glyph.line_color = palette.accent


def _without_use(state: State) -> set[int]:
    """Return the ids of frames whose label there is already, or is being computed."""
    return {q.frame_id for q in state.queue if q.status not in WITHOUT_LABEL}


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
