"""How unsure the model is, along the run: error bounds of energy and force with their tolerances."""

from __future__ import annotations

from typing import Any

import numpy as np
import panel as pn
from bokeh.models import BoxAnnotation, ColumnDataSource, CustomJSTickFormatter, Label, Range1d, Span
from bokeh.plotting import figure

from app import theme, wording
from app.state import CampaignState, Glance
from core.campaign.state import LABELLED
from core.units import KCAL_PER_MOL

_MARK_COLUMNS = ("step", "energy", "force", "line", "fill")

ROLLOVER = 4000
"""Points kept on the screen; a longer run is thinned when the page opens, then rolls over."""

_CSS = ":host { padding: 12px 8px 4px 8px; }"

_HEAD_CSS = """
.head { display: flex; align-items: baseline; gap: 4px 14px; flex-wrap: wrap; padding: 0 10px;
  font-size: 13px; line-height: 1.4; }
.head b { font-weight: 600; } .head span { color: var(--fw-muted); font-size: 12px; }
.head .now { margin-left: auto; color: var(--fw-text); font-variant-numeric: tabular-nums; font-size: 13px; }
.head .over { color: var(--fw-bad); }
i { display: inline-block; width: 8px; height: 8px; border-radius: 50%; margin-right: 4px; box-sizing: border-box; }
i.flagged { border: 1.6px solid var(--fw-warn); } i.labelled { background: var(--fw-accent); }
"""


class Traces(pn.viewable.Viewer):
    """Two plots over the steps, fed by one stream."""

    def __init__(self, campaign: CampaignState) -> None:
        super().__init__()
        self._campaign = campaign
        self._frame_id = 0
        self._queue: tuple[Any, ...] = ()
        self._last_step = -1
        self._trusted_from: int | None = None
        self._source = ColumnDataSource({"step": [], "energy": [], "force": []})
        self._marks = ColumnDataSource({name: [] for name in _MARK_COLUMNS})
        self._x = Range1d(0, 100)
        self._palette = theme.LIGHT
        self._plots = {
            "energy": _Plot("energy", self._source, self._marks, self._x),
            "force": _Plot("force", self._source, self._marks, self._x),
        }
        self._plots["energy"].figure.xaxis.visible = False
        self._plots["energy"].figure.min_border_bottom = 10
        self._heads = {k: pn.pane.HTML("", stylesheets=[_HEAD_CSS], margin=0, sizing_mode="stretch_width") for k in self._plots}
        panes = []
        for key, plot in self._plots.items():
            pane = pn.pane.Bokeh(plot.figure, margin=0, sizing_mode="stretch_both", min_height=120)
            panes += [self._heads[key], pane]
        self._layout = pn.Column(
            *panes, margin=0, css_classes=["traces"], stylesheets=[theme.CARD, _CSS]
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
        tolerances = {
            "energy": state.energy_tolerance / KCAL_PER_MOL, "force": state.force_tolerance,
        }  # fmt: skip
        edge = self._trusted_from if self._trusted_from is not None else self._x.end
        for key, plot in self._plots.items():
            plot.set_limits(tolerances[key], edge)
        self._say(glance, tolerances)

    def _add(self, rows: dict[str, np.ndarray], *, first: bool) -> None:
        trusted = rows["kind"] != "untrusted"
        if self._trusted_from is None and trusted.any():
            self._trusted_from = int(rows["step"][int(np.argmax(trusted))])
        judged = trusted & np.isfinite(rows["energy_bound"])
        step = rows["step"][judged].astype(float)
        energy = rows["energy_bound"][judged] / KCAL_PER_MOL
        force = rows["force_bound"][judged]
        if not len(step):
            return
        keep = slice(None, None, max(1, -(-len(step) // ROLLOVER))) if first else slice(None)
        columns = broken_lines(self._last_step, step[keep], energy[keep], force[keep])
        self._last_step = int(step[-1])
        self._source.stream(columns, rollover=ROLLOVER)

    def _mark(self) -> None:
        p = self._palette
        flagged = [q for q in self._queue if "initial" not in q.reasons]
        filled = [q.status in LABELLED for q in flagged]
        self._marks.data = {
            "step": [q.step for q in flagged],
            "energy": [q.energy_bound / KCAL_PER_MOL for q in flagged],
            "force": [q.force_bound for q in flagged],
            "line": [p.accent if f else p.warn for f in filled],
            "fill": [p.accent if f else p.surface for f in filled],
        }

    def _say(self, glance: Glance, tolerances: dict[str, float | None]) -> None:
        share = f"{100 * glance.state.settings.trust.confidence:g} %"
        live = glance.live
        values = {"energy": np.nan, "force": np.nan}
        if live is not None and glance.state.trusted:
            values = {"energy": live.energy_bound / KCAL_PER_MOL, "force": live.force_bound}
        titles = {
            "energy": (f"Error bound of the energy ({share})", "kcal/mol"),
            "force": (f"Error bound of the largest force ({share})", "eV/Å"),
        }
        for key, (title, unit) in titles.items():
            limit, value = tolerances[key], values[key]
            over = " over" if limit is not None and value > limit else ""
            legend = '<span><i class="flagged"></i>flagged</span><span><i class="labelled"></i>labelled</span>'
            self._heads[key].object = (
                f'<div class="head"><b>{title}</b>{legend if key == "energy" else ""}'
                f'<span class="now{over}">{wording.figures(float(value))} {unit}</span></div>'
            )

    def paint(self, palette: theme.Palette) -> None:
        """Take the colours of a mode."""
        self._palette = palette
        for plot in self._plots.values():
            plot.paint(palette)
        self._mark()


class _Plot:
    """One trace with its tolerance, marks and the stretch without trust."""

    def __init__(
        self, column: str, source: ColumnDataSource, marks: ColumnDataSource, x: Range1d
    ) -> None:
        self.figure = figure(
            x_range=x, y_range=Range1d(0, 1), sizing_mode="stretch_both", tools="",
            toolbar_location=None, min_border_left=44, min_border_right=14, min_border_top=6,
            output_backend="canvas",
        )  # fmt: skip
        self.figure.xgrid.visible = False
        self.figure.yaxis.ticker.desired_num_ticks = 4
        self.figure.xaxis.formatter = CustomJSTickFormatter(
            code="return tick.toString().replace(/\\B(?=(\\d{3})+(?!\\d))/g, '\\u202f')"
        )
        self._line = self.figure.line("step", column, source=source, line_width=1.6)
        self._dots = self.figure.scatter(
            "step", column, source=marks, size=8, line_color="line", fill_color="fill",
            line_width=1.6,
        )  # fmt: skip
        self._limit = Span(location=0, dimension="width", line_width=1.4, line_dash="dashed")
        self._limit_text = Label(
            x=6, x_units="screen", y=0, text="tolerance", text_font=theme.FONT, text_font_size="11px",
            text_baseline="bottom", y_offset=2,
        )  # fmt: skip
        self._shade = BoxAnnotation(left=0, right=0, fill_alpha=0.14, line_color=None)
        self._shade_text = Label(
            x=6, x_units="screen", y=6, y_units="screen", text="untrusted", text_font=theme.FONT,
            text_font_size="11px", text_baseline="bottom",
        )  # fmt: skip
        for item in (self._limit, self._limit_text, self._shade, self._shade_text):
            self.figure.add_layout(item)

    def set_limits(self, tolerance: float | None, trusted_from: float) -> None:
        """Draw the tolerance, scale the axis to it, and shade what came before trust."""
        self._limit.visible = self._limit_text.visible = tolerance is not None
        if tolerance is not None:
            self._limit.location = self._limit_text.y = tolerance
            self._limit_text.text = f"tolerance {wording.figures(tolerance)}"
            self.figure.y_range.end = 2.5 * tolerance
        self._shade.right = trusted_from

    def paint(self, p: theme.Palette) -> None:
        """Take the colours of a mode."""
        theme.style_figure(self.figure, p)
        self._line.glyph.line_color = p.accent
        self._limit.line_color = p.bad
        self._limit_text.text_color = p.bad
        self._shade.fill_color = p.shade
        self._shade_text.text_color = p.muted


def broken_lines(
    last: int, step: np.ndarray, energy: np.ndarray, force: np.ndarray
) -> dict[str, np.ndarray]:
    """Return columns with a gap wherever the step goes back (the dynamics were rewound)."""
    back = np.flatnonzero(np.diff(np.concatenate([[last], step])) < 0)
    return {
        "step": np.insert(step, back, np.nan),
        "energy": np.insert(energy, back, np.nan),
        "force": np.insert(force, back, np.nan),
    }
