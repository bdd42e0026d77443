"""The run in numbers: energy, temperature, the bounds on both errors, a coordinate of choice.

Small plots over one axis of steps, fed by a stream that is thinned here, so that a long run costs
the page no more than a short one. Linked to the 3D view by the page's selection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
from bokeh.core.property.descriptors import UnsetValueError
from bokeh.events import Tap
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    CustomJSHover,
    CustomJSTickFormatter,
    HoverTool,
    Range1d,
    WheelZoomTool,
)
from bokeh.models.annotations import BoxAnnotation, Span
from bokeh.models.tools import PanTool
from bokeh.plotting import figure

from app import theme, wording
from app.selection import Selection
from app.series import KINDS, Series, extremes
from app.state import CampaignState, Glance
from app.wording import kcal
from core import geometry
from core.campaign.state import LABELLED, Query
from core.structures import Structure
from core.units import GPA

POINTS = 2000
"""Points of a trace on the screen, at most; beyond them it is thinned again."""
FINE, COARSE = 130, 10
"""Bins a thinned trace is cut into: within the axis, and on either side of it."""
MARKS = 150
"""Bins of the marks."""
NEAR_PX = 12
"""A click so near to a mark means the mark."""

BOUNDS = ("energy_bound", "force_bound", "stress_bound")
_LEVELS = (2.5, 5.0, 10.0, 20.0, 50.0)
"""Upper end of an axis of bounds, in tolerances: the first that holds nine frames of ten."""

_THOUSANDS = ".toString().replace(/\\B(?=(\\d{3})+(?!\\d))/g, '\\u202f')"
_CSS = ":host { padding: 8px 8px 2px 8px; min-height: 0; }"
_LEGEND_CSS = """
:host { flex: 1; min-width: 0; }
.legend { display: flex; gap: 2px 14px; flex-wrap: wrap; padding: 0 10px; font-size: 12px;
  line-height: 26px; color: var(--fw-muted); }
i { display: inline-block; width: 8px; height: 8px; border-radius: 50%; margin-right: 5px;
  box-sizing: border-box; }
i.flagged { border: 1.6px solid var(--fw-warn); } i.labelled { background: var(--fw-accent); }
i.rewound { border-radius: 0; height: 0; border-top: 2px solid var(--fw-muted); width: 12px;
  vertical-align: middle; }
"""
_HEAD_CSS = """
.head { display: flex; align-items: baseline; gap: 8px; padding: 0 10px; line-height: 16px;
  white-space: nowrap; overflow: hidden; }
.head b { font-weight: 600; font-size: 12px; overflow: hidden; text-overflow: ellipsis; }
.head .limit { margin-left: auto; font-size: 11px; color: var(--fw-muted); }
.head .limit::before { content: ""; display: inline-block; width: 15px; margin-right: 5px;
  border-top: 1px dashed currentColor; vertical-align: middle; }
.head i { font-style: normal; }
.head .bound { color: var(--fw-bad); }
.head .now { min-width: 84px; text-align: right; font-size: 12px;
  font-variant-numeric: tabular-nums; }
.head .now:nth-child(2) { margin-left: auto; }
.head .over { color: var(--fw-bad); }
@media (max-width: 500px) {
  .head { gap: 5px; } .head i { display: none; } .head .now { min-width: 0; }
  .head .limit::before { width: 9px; margin-right: 3px; }
}
"""
_FOLLOW_CSS = ":host { margin: 0 6px 0 auto !important; } button { padding: 0 8px; height: 24px; }"


@dataclass(frozen=True)
class Trace:
    """What one plot shows: its column, its words, and the digits of its figure."""

    column: str
    title: str
    unit: str
    digits: int = 1


TRACES = (
    Trace("energy", "Potential energy, relative", "kcal/mol"),
    Trace("temperature", "Temperature", "K", 0),
    Trace("energy_bound", "Error bound of the energy", "kcal/mol", 2),
    Trace("force_bound", "Error bound of the largest force", "eV/Å", 2),
)
STRESS = Trace("stress_bound", "Error bound of the stress", "GPa", 2)
"""Shown too where there is a tolerance on it."""


def reach(step: int, end: float) -> float:
    """Return the end of the axis: `end` while it suits, so that the plots keep still."""
    suits = step <= end <= max(100, 1.25 * step)
    return end if suits else max(100, 1.12 * step)


class Traces(pn.viewable.Viewer):
    """The plots, their stream and their marks."""

    def __init__(self, campaign: CampaignState, selection: Selection) -> None:
        super().__init__()
        self._campaign, self._selection = campaign, selection
        self._series: Series = campaign.series
        self._drawn = np.zeros(0, np.int64)
        self._read = 0
        self._key: tuple[Any, ...] = ()
        self._marked: tuple[Any, ...] = ()
        self._queue: tuple[Query, ...] | None = None
        self._labelled: frozenset[int] = frozenset()
        self._palette = theme.LIGHT
        self._glance: Glance | None = None
        self._moving = False
        crystal = campaign.glance().state.stress_tolerance is not None
        traces = (*TRACES, STRESS) if crystal else TRACES
        names = (*(trace.column for trace in (*TRACES, STRESS)), "coordinate")
        empty: dict[str, list[float]] = {name: [] for name in ("step", *names, "status")}
        self._kept, self._gone = ColumnDataSource(empty), ColumnDataSource(empty)
        self._marks = ColumnDataSource(_no_marks(names))
        self.following = True
        self._x: Any = Range1d(start=0, end=100, min_interval=20)
        self._plots = {
            trace.column: Plot(trace, self._kept, self._gone, self._marks, self._x, self._clicked)
            for trace in (_coordinate((), campaign.structure), *traces)
        }
        self._plots[traces[-1].column].figure.xaxis.visible = True  # one for all, at the bottom
        for end in ("start", "end"):
            self._x.on_change(end, self._moved_by_hand)
        self._follow = pmui.Button(
            label="Follow", icon="last_page", variant="text", size="small", color="primary",
            visible=False, margin=0, on_click=lambda _: self.follow(), stylesheets=[_FOLLOW_CSS],
            description="Show the whole run again, and go on with it",
        )  # fmt: skip
        legend = pn.pane.HTML(
            '<div class="legend"><span><i class="flagged"></i>flagged</span>'
            '<span><i class="labelled"></i>labelled</span>'
            '<span><i class="rewound"></i>rewound</span></div>',
            stylesheets=[_LEGEND_CSS], margin=0,
        )  # fmt: skip
        top = pn.Row(legend, self._follow, margin=0, sizing_mode="stretch_width")
        self._layout = pn.Column(
            top, *(plot.row for plot in self._plots.values()), margin=0,
            sizing_mode="stretch_both", css_classes=["traces"], stylesheets=[theme.CARD, _CSS],
        )  # fmt: skip
        selection.param.watch(lambda _: self._point(), "frame")
        selection.param.watch(lambda _: self._choose_coordinate(), "coordinate")
        self._choose_coordinate()

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self, glance: Glance) -> None:
        """Add the frames that are new."""
        self._glance = glance
        self._series.follow()
        if glance.state.queue is not self._queue:
            self._queue = glance.state.queue
            self._labelled = frozenset(q.frame_id for q in self._queue if q.status in LABELLED)
        if self.following:
            self._set_x(0, reach(glance.step, self._x.end))
        self._draw()
        self._scale(glance)
        self._mark()
        self._point()
        for plot in self._plots.values():
            plot.say(self._value(plot.trace, glance), glance)

    # Data

    def _draw(self) -> None:
        coordinate = self._coordinate_values()
        key = (
            self._series.version, self._series.trusted_from, self._labelled,
            self._selection.coordinate, len(coordinate) < len(self._series),
            None if self.following else (self._x.start, self._x.end),
        )  # fmt: skip
        new = np.arange(self._read, len(self._series))
        behind = len(coordinate) < len(self._series) and bool(self._selection.coordinate)
        if key != self._key or behind or len(self._drawn) + len(new) > POINTS:
            self._redraw(coordinate)
        elif len(new):
            new = new[self._series["rewound"][new] == 0]
            self._kept.stream(self._columns(new, coordinate))
            self._drawn = np.concatenate([self._drawn, new])
        self._key, self._read = key, len(self._series)

    def _redraw(self, coordinate: np.ndarray) -> None:
        gone = self._series["rewound"] == 1
        self._drawn = self._thinned(np.flatnonzero(~gone), coordinate)
        self._kept.data = self._columns(self._drawn, coordinate)
        lost = np.flatnonzero(gone)
        lost = lost[extremes([self._series["energy"][lost]], POINTS // 4)]
        self._gone.data = with_gaps(self._columns(lost, coordinate))

    def _thinned(self, rows: np.ndarray, coordinate: np.ndarray) -> np.ndarray:
        """Return those of `rows` (steps ascending) that are worth drawing."""
        cuts = np.searchsorted(self._series["step"][rows], (self._x.start, self._x.end))
        kept = []
        for part, bins in zip(np.split(rows, cuts), (COARSE, FINE, COARSE), strict=True):
            columns = [self._series[name][part] for name in ("energy", "temperature", *BOUNDS)]
            if self._selection.coordinate:
                columns.append(_padded(coordinate, len(self._series))[part])
            kept.append(part[extremes(columns, bins)])
        return np.concatenate(kept)

    def _columns(self, rows: np.ndarray, coordinate: np.ndarray) -> dict[str, Any]:
        return {**self._numbers(rows, coordinate), "status": self._statuses(rows)}

    def _numbers(self, rows: np.ndarray, coordinate: np.ndarray) -> dict[str, np.ndarray]:
        series = self._series
        trusted = series["kind"][rows] > 0
        bounds = {n: np.where(trusted, series[n][rows], np.nan) for n in BOUNDS}
        return {
            "step": series["step"][rows].astype(float),
            "energy": kcal(series.relative_energy[rows]).astype("<f4"),
            "temperature": series["temperature"][rows].astype("<f4"),
            "energy_bound": kcal(bounds["energy_bound"]).astype("<f4"),
            "force_bound": bounds["force_bound"].astype("<f4"),
            "stress_bound": (bounds["stress_bound"] / GPA).astype("<f4"),
            "coordinate": _padded(coordinate, len(series))[rows].astype("<f4"),
        }

    def _statuses(self, rows: np.ndarray) -> list[str]:
        ids, kinds, gone = (self._series[name][rows] for name in ("id", "kind", "rewound"))
        return [
            wording.frame_status(KINDS[k], rewound=bool(g), labelled=i in self._labelled)
            for i, k, g in zip(ids.tolist(), kinds, gone, strict=True)
        ]

    def _coordinate_values(self) -> np.ndarray:
        atoms = self._selection.coordinate
        return self._series.coordinate(atoms) if atoms else np.zeros(0)

    # Marks

    def _mark(self) -> None:
        key = (self._queue, self._key, self._palette, tuple(p.top for p in self._plots.values()))
        if key == self._marked:
            return
        self._marked = key
        series, p = self._series, self._palette
        found = [series.index(q.frame_id) for q in self._queue or ()]
        flagged = np.array([i for i in found if i is not None], dtype=np.int64)
        ends = stretch_ends(series["rewound"], series["step"])
        rows = np.unique(np.concatenate([flagged, ends]))
        rows = rows[extremes([series[name][rows] for name in BOUNDS], MARKS)]
        columns = self._columns(rows, self._coordinate_values())
        done = np.isin(series["id"][rows], list(self._labelled))
        gone = series["rewound"][rows] == 1
        line = np.where(done, p.accent, np.where(gone & ~np.isin(rows, flagged), p.muted, p.warn))
        columns["line"] = line.tolist()
        columns["fill"] = np.where(done, p.accent, p.surface).tolist()
        columns["id"] = series["id"][rows]
        for name, plot in self._plots.items():
            values = columns[name]
            above = values > plot.top
            columns[name] = np.where(above, 0.95 * plot.top, values)
            shape = np.where(above, "triangle", np.where(gone, "x", "circle"))
            columns[f"{name}_shape"] = shape.tolist()
        self._marks.data = columns

    # Axes

    def _scale(self, glance: Glance) -> None:
        state, series = glance.state, self._series
        inside = self._drawn
        if not self.following:
            steps = series["step"][inside]
            inside = inside[(steps >= self._x.start) & (steps <= self._x.end)]
        columns = self._numbers(inside, self._coordinate_values())
        first = series.trusted_from
        edge = self._x.end if first is None else float(series["step"][first])
        stress = state.stress_tolerance
        limits = {
            "energy_bound": kcal(state.energy_tolerance), "force_bound": state.force_tolerance,
            "temperature": state.settings.dynamics.temperature_K,
            "stress_bound": None if stress is None else stress / GPA,
        }  # fmt: skip
        for name, plot in self._plots.items():
            values = columns[name]
            plot.scale(values[np.isfinite(values)], limits.get(name), edge)

    def _set_x(self, start: float, end: float) -> None:
        self._moving = True
        try:
            self._x.update(start=start, end=end)
        finally:
            self._moving = False

    def _moved_by_hand(self, attr: str, old: float, new: float) -> None:
        if not self._moving and self.following:
            self.following, self._follow.visible = False, True

    def follow(self) -> None:
        """Show the whole run again, and go on with it."""
        self.following, self._follow.visible = True, False
        if self._glance is not None:
            self.update(self._glance)

    # Selection

    def _clicked(self, plot: Plot, event: Any) -> None:
        if event.x is None:
            return
        frame = self._marked_frame(plot, event.x, event.y)
        frame = self._nearest_frame(event.x) if frame is None else frame
        if frame is not None:
            self._selection.show_frame(frame, self._queue or ())

    def _marked_frame(self, plot: Plot, x: float, y: float) -> int | None:
        data = self._marks.data
        across, up = plot.pixels(np.asarray(data["step"]) - x, np.asarray(data[plot.column]) - y)
        away = np.hypot(across, up)
        away = np.where(np.isfinite(away), away, np.inf)
        if not len(away) or away.min() > NEAR_PX:
            return None
        return int(data["id"][int(np.argmin(away))])

    def _nearest_frame(self, step: float) -> int | None:
        rows = np.flatnonzero(self._series["rewound"] == 0)
        if not len(rows):
            return None
        away = np.abs(self._series["step"][rows] - step)
        return int(self._series["id"][rows[int(np.argmin(away))]])

    def _point(self) -> None:
        row = None if self._selection.frame is None else self._series.index(self._selection.frame)
        for plot in self._plots.values():
            plot.point(None if row is None else float(self._series["step"][row]))

    def _choose_coordinate(self) -> None:
        atoms = self._selection.coordinate
        plot = self._plots["coordinate"]
        plot.trace = _coordinate(atoms, self._campaign.structure)
        plot.dotted(len(atoms) == 4)
        plot.row.visible = bool(atoms)

    def _value(self, trace: Trace, glance: Glance) -> float:
        """Return what a plot's heading says: of the frame on show, or now."""
        frame, live = self._selection.frame, glance.live
        row = len(self._series) - 1 if frame is None else self._series.index(frame)
        if row is None or row < 0:
            return float("nan")
        if frame is None and live is not None and trace.column == "temperature":
            return live.temperature
        value = self._numbers(np.array([row]), self._coordinate_values())[trace.column][0]
        return float(value)

    def paint(self, palette: theme.Palette) -> None:
        """Take the colours of a mode."""
        self._palette = palette
        for plot in self._plots.values():
            plot.paint(palette)
        self._mark()


class Plot:
    """One trace with its marks, its limit and the stretch without trust.

    Attributes:
        row: heading and figure. column: of the sources. top: upper end of the axis.
    """

    def __init__(
        self,
        trace: Trace,
        kept: ColumnDataSource,
        gone: ColumnDataSource,
        marks: ColumnDataSource,
        x: Range1d,
        clicked: Callable[[Plot, Any], None],
    ) -> None:
        self.trace, self.column = trace, trace.column
        self._x: Any = x
        self._y: Any = Range1d(start=0, end=1)
        pan, wheel = PanTool(dimensions="width"), WheelZoomTool(dimensions="width")
        self.figure = figure(
            x_range=x, y_range=self._y, sizing_mode="stretch_both", tools=[pan, wheel],
            active_drag=pan, active_scroll=wheel, toolbar_location=None, min_border_left=48,
            min_border_right=14, min_border_top=4, min_border_bottom=6, min_height=40,
        )  # fmt: skip
        self.figure.xgrid.visible = False
        self.figure.xaxis.visible = False
        self.figure.yaxis.ticker = BasicTicker(desired_num_ticks=2)
        self.figure.xaxis.formatter = CustomJSTickFormatter(code=f"return tick{_THOUSANDS}")
        self._lost = self.figure.line("step", self.column, source=gone, line_width=1.2)
        self._line = self.figure.line("step", self.column, source=kept, line_width=1.5)
        self._dots = self.figure.scatter("step", self.column, source=kept, size=2.5, visible=False)
        self.figure.scatter(
            "step", self.column, source=marks, size=8, line_width=1.6, line_color="line",
            fill_color="fill", marker=f"{self.column}_shape",
        )  # fmt: skip
        self._limit: Any = Span(location=0, dimension="width", line_width=1.3, line_dash="dashed")
        self._shade = BoxAnnotation(left=0, right=0, fill_alpha=0.14, line_color=None)
        self._here = Span(location=0, dimension="height", line_width=1.2, visible=False)
        for item in (self._limit, self._shade, self._here):
            self.figure.add_layout(item)
        self._hover = HoverTool(
            renderers=[self._line], mode="vline", line_policy="nearest", show_arrow=False,
            formatters={"@step": CustomJSHover(code=f"return value{_THOUSANDS}")},
        )  # fmt: skip
        self.figure.add_tools(self._hover)
        self.figure.on_event(Tap, lambda event: clicked(self, event))
        self._head = pn.pane.HTML("", stylesheets=[_HEAD_CSS], margin=0, height=16)
        self._head.sizing_mode = "stretch_width"
        pane = pn.pane.Bokeh(self.figure, margin=0, sizing_mode="stretch_both", min_height=40)
        self.row = pn.Column(
            self._head, pane, margin=0, sizing_mode="stretch_both", css_classes=[self.column]
        )

    @property
    def top(self) -> float:
        """Upper end of the axis."""
        return float(self._y.end)

    def scale(self, values: np.ndarray, limit: float | None, trusted_from: float) -> None:
        """Fit the axis to finite values on the screen, draw the limit, shade what lacks trust."""
        self._limit.visible = limit is not None
        if limit is not None:
            self._limit.location = limit
        if self.column in BOUNDS:
            low, high = 0.0, bound_axis(values, limit)
        else:
            given = values if limit is None else np.append(values, limit)
            low, high = data_axis(given, (self._y.start, self._y.end))
        self._y.update(start=low, end=high)
        self._shade.right = trusted_from

    def say(self, value: float, glance: Glance) -> None:
        """Write the heading."""
        trace, share = self.trace, glance.state.settings.trust.confidence
        title = f"{trace.title} ({100 * share:g} %)" if self.column in BOUNDS else trace.title
        over, limit = "", self._limit.location if self._limit.visible else None
        if self.column in BOUNDS:
            shown = wording.beside(value, limit)
            over = " over" if limit is not None and value > limit else ""
        else:
            shown = f"{value:.{trace.digits}f}".replace("-", "\N{MINUS SIGN}")
            shown = shown if np.isfinite(value) else "–"
        self._head.object = (
            f'<div class="head"><b>{title}</b>{self._limit_shown()}'
            f'<span class="now{over}">{shown} {trace.unit}</span></div>'
        )

    def _limit_shown(self) -> str:
        """Return what the dashed line stands for, in its colour, or nothing."""
        if not self._limit.visible:
            return ""
        target = self.column == "temperature"
        number = wording.figures(self._limit.location, 3 if target else 2)
        kind, word = ("", "target") if target else (" bound", "tolerance")
        return f'<span class="limit{kind}"><i>{word}</i> {number}</span>'

    def point(self, step: float | None) -> None:
        """Mark a step with a vertical line, or none."""
        self._here.visible = step is not None
        if step is not None:
            self._here.location = step

    def dotted(self, yes: bool) -> None:
        """Draw dots for what jumps from one end of its axis to the other."""
        self._dots.visible = yes
        self._line.glyph.line_alpha = self._lost.glyph.line_alpha = 0.0 if yes else 1.0

    def pixels(self, across: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return distances along the axes in pixels."""
        width, height = _drawn_size(self.figure)
        return (
            across * width / (self._x.end - self._x.start),
            up * height / (self._y.end - self._y.start),
        )

    def paint(self, p: theme.Palette) -> None:
        """Take the colours of a mode."""
        theme.style_figure(self.figure, p)
        for axis in (*self.figure.xaxis, *self.figure.yaxis):
            axis.major_label_text_font_size = "11px"
        self._line.glyph.line_color = self._dots.glyph.line_color = p.accent
        self._dots.glyph.fill_color = p.accent
        self._lost.glyph.line_color = p.muted
        target = self.column == "temperature"
        self._limit.line_color = p.muted if target else p.bad
        self._shade.fill_color = p.shade
        self._here.line_color = p.text
        self._hover.tooltips = (
            f'<div style="margin:-5px;padding:4px 9px;background:{p.raised};color:{p.text};'
            f'font:12px {theme.FONT}">step @step{{custom}} · @{self.column}{{0.00}} '
            f"{self.trace.unit} · @status</div>"
        )


def _drawn_size(shown: figure) -> tuple[float, float]:
    """Return the inner width and height of a figure in pixels, as the page told them."""
    try:
        return float(shown.inner_width), float(shown.inner_height)
    except UnsetValueError:  # not drawn yet
        return 500.0, 60.0


def _no_marks(names: tuple[str, ...]) -> dict[str, list[Any]]:
    shapes = [f"{name}_shape" for name in names]
    return {name: [] for name in ("step", *names, *shapes, "line", "fill", "id", "status")}


def _coordinate(atoms: tuple[int, ...], structure: Structure) -> Trace:
    """Return the trace of the internal coordinate of `atoms`."""
    title = wording.coordinate(atoms, structure.numbers.tolist()) if atoms else ""
    digits = 3 if len(atoms) == 2 else 1
    return Trace("coordinate", title, geometry.UNITS.get(len(atoms), ""), digits)


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    out = np.full(size, np.nan)
    out[: len(values)] = values[:size]
    return out


def bound_axis(values: np.ndarray, tolerance: float | None) -> float:
    """Return the upper end of an axis of bounds: whole levels, so that it seldom moves."""
    most = float(np.quantile(values, 0.9)) if len(values) else 0.0
    if tolerance is None:
        return 1.25 * most if most > 0 else 0.3
    return tolerance * next((level for level in _LEVELS if most <= level * tolerance), _LEVELS[-1])


def data_axis(values: np.ndarray, now: tuple[float, float]) -> tuple[float, float]:
    """Return the ends of an axis for `values`: those of `now` while they still fit well."""
    if not len(values):
        return now
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 1e-3)
    if now[0] <= low and high <= now[1] and span > 0.6 * (now[1] - now[0]):
        return now
    return low - 0.12 * span, high + 0.12 * span


def stretch_ends(rewound: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return the indices of the frames at which the dynamics were given up, of F frames."""
    after = np.append(step[1:] <= step[:-1], False)
    return np.flatnonzero((rewound == 1) & (after | (np.append(rewound[1:], 0) == 0)))


def with_gaps(columns: dict[str, Any]) -> dict[str, Any]:
    """Return columns (R,) with a gap wherever the step goes back."""
    step = columns["step"]
    breaks = 1 + np.flatnonzero(np.diff(step) <= 0)
    gaps = {name: np.insert(v, breaks, np.nan) for name, v in columns.items() if name != "status"}
    return {**gaps, "status": np.insert(np.array(columns["status"], object), breaks, "").tolist()}
