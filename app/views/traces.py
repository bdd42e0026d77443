"""How unsure the model is, along the run: bounds on the errors of energy and force."""

from __future__ import annotations

from typing import Any

import numpy as np
import panel as pn
from bokeh.models import BasicTicker, ColumnDataSource, CustomJSTickFormatter, Range1d
from bokeh.models.annotations import BoxAnnotation, Label, Span
from bokeh.plotting import figure

from app import theme, wording
from app.state import CampaignState, Glance
from app.wording import kcal
from core.campaign.state import LABELLED, Query

ROLLOVER = 4000
"""Points kept on the screen; a longer run is thinned when the page opens, then rolls over."""

_TITLES = {
    "energy": ("Error bound of the energy", "kcal/mol"),
    "force": ("Error bound of the largest force", "eV/Å"),
}
_LEGEND = '<span><i class="flagged"></i>flagged</span><span><i class="labelled"></i>labelled</span>'
_THOUSANDS = "return tick.toString().replace(/\\B(?=(\\d{3})+(?!\\d))/g, '\\u202f')"

_CSS = ":host { padding: 12px 8px 4px 8px; }"
_HEAD_CSS = """
.head { display: flex; align-items: baseline; gap: 4px 14px; flex-wrap: wrap; padding: 0 10px;
  font-size: 13px; line-height: 1.4; }
.head b { font-weight: 600; } .head span { color: var(--fw-muted); font-size: 12px; }
.head .now { margin-left: auto; color: var(--fw-text); font-size: 13px;
  font-variant-numeric: tabular-nums; }
.head .over { color: var(--fw-bad); }
i { display: inline-block; width: 8px; height: 8px; border-radius: 50%; margin-right: 4px;
  box-sizing: border-box; }
i.flagged { border: 1.6px solid var(--fw-warn); } i.labelled { background: var(--fw-accent); }
"""


class Traces(pn.viewable.Viewer):
    """Two plots over the steps, fed by one stream."""

    def __init__(self, campaign: CampaignState) -> None:
        super().__init__()
        self._campaign = campaign
        self._frame_id, self._last_step = 0, -1
        self._queue: tuple[Query, ...] = ()
        self._trusted_from: int | None = None
        self._palette = theme.LIGHT
        self._source = ColumnDataSource({name: [] for name in ("step", "energy", "force")})
        self._marks = ColumnDataSource(marks((), self._palette))
        self._x = Range1d(start=0, end=100)
        self._plots = {key: Plot(key, self._source, self._marks, self._x) for key in _TITLES}
        self._plots["energy"].figure.xaxis.visible = False
        self._plots["energy"].figure.min_border_bottom = 10
        self._heads = {key: pn.pane.HTML("", stylesheets=[_HEAD_CSS], margin=0) for key in _TITLES}
        rows: list[pn.viewable.Viewable] = []
        for key, plot in self._plots.items():
            self._heads[key].sizing_mode = "stretch_width"
            pane = pn.pane.Bokeh(plot.figure, margin=0, sizing_mode="stretch_both", min_height=110)
            rows += [self._heads[key], pane]
        self._layout = pn.Column(
            *rows, margin=0, css_classes=["traces"], stylesheets=[theme.CARD, _CSS]
        )

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self, glance: Glance) -> None:
        """Add the frames that are new."""
        state = glance.state
        rows = self._campaign.reader.frames_since(self._frame_id)
        if len(rows["id"]):
            self._add(rows, first=self._frame_id == 0)
            self._frame_id = int(rows["id"][-1])
        if state.queue is not self._queue:
            self._queue = state.queue
            self._mark()
        self._x.end = max(100, glance.step * 1.02)
        edge = self._x.end if self._trusted_from is None else self._trusted_from
        tolerances = {"energy": kcal(state.energy_tolerance), "force": state.force_tolerance}
        for key, plot in self._plots.items():
            plot.set_limits(tolerances[key], edge)
            self._heads[key].object = _head(key, glance, tolerances[key])

    def _add(self, rows: dict[str, np.ndarray], *, first: bool) -> None:
        trusted = rows["kind"] != "untrusted"
        if self._trusted_from is None and trusted.any():
            self._trusted_from = int(rows["step"][int(np.argmax(trusted))])
        judged = trusted & np.isfinite(rows["energy_bound"])
        if not judged.any():
            return
        step = rows["step"][judged].astype(float)
        thin = slice(None, None, -(-len(step) // ROLLOVER) if first else 1)
        columns = with_gaps(
            self._last_step,
            step[thin],
            kcal(rows["energy_bound"][judged][thin]),
            rows["force_bound"][judged][thin],
        )
        self._last_step = int(step[-1])
        self._source.stream(columns, rollover=ROLLOVER)

    def _mark(self) -> None:
        self._marks.data = marks(self._queue, self._palette)

    def paint(self, palette: theme.Palette) -> None:
        """Take the colours of a mode."""
        self._palette = palette
        for plot in self._plots.values():
            plot.paint(palette)
        self._mark()


class Plot:
    """One trace with its tolerance, marks and the stretch without trust."""

    def __init__(
        self, column: str, source: ColumnDataSource, marked: ColumnDataSource, x: Range1d
    ) -> None:
        self._y = Range1d(start=0, end=1)
        self.figure = figure(
            x_range=x, y_range=self._y, sizing_mode="stretch_both", tools="",
            toolbar_location=None, min_border_left=44, min_border_right=14, min_border_top=6,
        )  # fmt: skip
        self.figure.xgrid.visible = False
        self.figure.yaxis.ticker = BasicTicker(desired_num_ticks=4)
        self.figure.xaxis.formatter = CustomJSTickFormatter(code=_THOUSANDS)
        self._line = self.figure.line("step", column, source=source, line_width=1.6)
        self.figure.scatter(
            "step", column, source=marked, size=8, line_width=1.6, line_color="line",
            fill_color="fill",
        )  # fmt: skip
        self._limit = Span(location=0, dimension="width", line_width=1.4, line_dash="dashed")
        self._limit_text = _label(y=0, y_offset=2)
        self._shade = BoxAnnotation(left=0, right=0, fill_alpha=0.14, line_color=None)
        self._shade_text = _label(y=6, y_units="screen", text="untrusted")
        for item in (self._limit, self._limit_text, self._shade, self._shade_text):
            self.figure.add_layout(item)

    def set_limits(self, tolerance: float | None, trusted_from: float) -> None:
        """Draw the tolerance, scale the axis to it, and shade what came before trust."""
        self._limit.visible = self._limit_text.visible = tolerance is not None
        if tolerance is not None:
            self._limit.location = self._limit_text.y = tolerance
            self._limit_text.text = f"tolerance {wording.figures(tolerance)}"
            self._y.end = 2.5 * tolerance
        self._shade.right = trusted_from

    def paint(self, p: theme.Palette) -> None:
        """Take the colours of a mode."""
        theme.style_figure(self.figure, p)
        self._line.glyph.line_color = p.accent
        self._limit.line_color = self._limit_text.text_color = p.bad
        self._shade.fill_color = p.shade
        self._shade_text.text_color = p.muted


def _label(**given: Any) -> Label:
    given = {"text": "", **given}
    return Label(
        x=6, x_units="screen", text_font=theme.FONT, text_font_size="11px", text_baseline="bottom",
        **given,
    )  # fmt: skip


def _head(key: str, glance: Glance, tolerance: float | None) -> str:
    title, unit = _TITLES[key]
    share = f"{100 * glance.state.settings.trust.confidence:g} %"
    value = float("nan")
    if glance.live is not None and glance.state.trusted:
        live = glance.live
        value = kcal(live.energy_bound) if key == "energy" else live.force_bound
    over = " over" if tolerance is not None and value > tolerance else ""
    return (
        f'<div class="head"><b>{title} ({share})</b>{_LEGEND if key == "energy" else ""}'
        f'<span class="now{over}">{wording.figures(value)} {unit}</span></div>'
    )


def marks(queue: tuple[Query, ...], p: theme.Palette) -> dict[str, Any]:
    """Return the columns of the marks: flagged frames open, labelled ones filled."""
    flagged = [q for q in queue if "initial" not in q.reasons]
    filled = [q.status in LABELLED for q in flagged]
    return {
        "step": [q.step for q in flagged],
        "energy": [kcal(q.energy_bound) for q in flagged],
        "force": [q.force_bound for q in flagged],
        "line": [p.accent if f else p.warn for f in filled],
        "fill": [p.accent if f else p.surface for f in filled],
    }


def with_gaps(last: int, step: np.ndarray, energy: np.ndarray, force: np.ndarray) -> dict[str, Any]:
    """Return columns with a gap wherever the step goes back (the dynamics were rewound).

    `last` is the step before the first of `step` (S,).
    """
    back = np.flatnonzero(np.diff(np.concatenate([[last], step])) < 0)
    columns = {"step": step, "energy": energy, "force": force}
    return {name: np.insert(values, back, np.nan) for name, values in columns.items()}
