"""Is the uncertainty honest, and what would another tolerance have cost? Labels against bounds."""

from __future__ import annotations

from html import escape
from typing import Any, Literal

import numpy as np
import panel as pn
import panel_material_ui as pmui
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    FixedTicker,
    NumeralTickFormatter,
    Range1d,
)
from bokeh.plotting import figure

from app import theme, wording
from app.state import CampaignState, Glance
from app.wording import kcal
from core.campaign import quality, whatif
from core.campaign.quality import Coverage, Judged, Quality, Scores
from core.campaign.store import Snapshot
from core.units import KCAL_PER_MOL

FRAMES_S = 2.0
"""Seconds between two looks at new frames."""
BITE = 2000
"""Frames read at once; a long run is caught up with in several looks."""
SMALLEST_SHOWN = 0.01
"""Errors below this fraction of the median bound are drawn there; their axis is logarithmic."""
STEPS = np.linspace(0.1, 4.0, 79)
"""Tolerances of the what-if, as multiples of the one in force."""

_CSS = """
:host { display: grid !important; gap: 8px;
  grid-template-rows: minmax(min-content, 1fr) max-content max-content;
  padding: 12px 16px 12px; overflow-y: auto !important; }
.plots, .table, .whatif { width: auto; height: auto; margin: 0; }
"""
_PLOTS_CSS = """
:host { display: grid !important; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr));
  gap: 8px 16px; }
.scroll-button { display: none !important; }
.cell { width: auto; height: auto; margin: 0; min-height: 130px; }
"""
_TEXT_CSS = """
:host { color: var(--fw-text); }
.head { display: flex; align-items: baseline; flex-wrap: wrap; gap: 0 10px; font-size: 13px;
  line-height: 1.4; }
.head b { font-weight: 600; } .head span, p, small { color: var(--fw-muted); font-size: 12px; }
p { margin: 6px 0 0; line-height: 1.5; } p.empty { font-size: 13px; max-width: 46ch; }
table { border-collapse: collapse; font-size: 12.5px; line-height: 1.55; width: 100%;
  font-variant-numeric: tabular-nums; }
th { color: var(--fw-muted); font-weight: 400; text-align: right; padding: 0 0 0 8px; }
td { text-align: right; padding: 0 0 0 8px; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding: 0; color: var(--fw-muted); }
tr.rule > * { border-bottom: 1px solid var(--fw-line); }
.off { color: var(--fw-bad); }
"""
_SLIDER_SX: dict[str, Any] = {
    "& .MuiTypography-root, & .MuiFormLabel-root": {"fontSize": "12.5px"},
    "& .MuiFormLabel-root.Mui-disabled": {"color": "text.secondary"},
    "& .MuiSlider-markLabel": {"fontSize": "11.5px", "top": "22px"},
    "& .MuiSlider-root": {"marginBottom": "14px"},
}
_NOTHING = "Nothing recorded yet: this begins with the first frames of a trusted model."


class Calibration(pn.viewable.Viewer):
    """Errors against bounds, reliability, coverage; below, the what-if of the energy tolerance."""

    def __init__(self, campaign: CampaignState) -> None:
        super().__init__()
        self._campaign = campaign
        self._seen: tuple[object, ...] = ()
        self._frame_id, self._looked = 0, 0.0
        self._snapshots: list[Snapshot] = []
        self._trace: whatif.Trace | None = None
        self._cost: whatif.Cost | None = None
        self._asked: tuple[Any, ...] = ()
        self._curve: whatif.Curve | None = None
        self._errors, self._reliability = ErrorPlot(), ReliabilityPlot()
        self._note = _text()
        self._left = _cell(_text(_ERRORS_HEAD), self._errors.figure)
        self._right = _cell(_text(_RELIABILITY_HEAD), self._reliability.figure)
        self._table = _text(css="table")
        self._head, self._told = _text(), _text()
        self._slider = pmui.FloatSlider(
            label="Energy tolerance, kcal/mol", start=0.05, end=2.0, step=0.025, value=0.5,
            disabled=True, margin=(4, 8, 0, 8), size="small", sizing_mode="stretch_width",
            sx=_SLIDER_SX,
        )  # fmt: skip
        self._slider.param.watch(lambda event: self._tell(), "value")
        plots = pn.Column(
            self._left, self._right, self._note,
            margin=0, css_classes=["plots"], stylesheets=[_PLOTS_CSS],
        )  # fmt: skip
        self._layout = pn.Column(
            plots,
            self._table,
            pn.Column(self._head, self._slider, self._told, margin=0, css_classes=["whatif"]),
            margin=0, css_classes=["calibration"], stylesheets=[theme.CARD, _CSS],
        )  # fmt: skip

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self, glance: Glance) -> None:
        """Judge again if labels were learned; take in new frames now and then."""
        state = glance.state
        seen = (state.snapshot, state.updates_refused, state.settings.trust.confidence)
        if seen != self._seen:
            self._seen = seen
            self._judge()
        if glance.at - self._looked >= FRAMES_S:
            self._look(glance)
        asked = (kcal(state.energy_tolerance), state.force_tolerance, self._cost, self._frame_id)
        if asked != self._asked:
            moved, self._asked = asked[:1] != self._asked[:1], asked
            self._ask(moved)

    def _judge(self) -> None:
        judged = quality.collect(self._campaign.reader)
        found = quality.assess(judged)
        self._cost = whatif.cost(self._campaign.reader)
        self._left.visible = found.tested > 0
        self._right.visible = found.enough
        self._note.visible = not found.enough
        self._note.object = "" if found.enough else f'<p class="empty">{escape(found.verdict)}</p>'
        self._table.object = table(found) if found.enough else ""
        self._errors.show(judged)
        self._reliability.show(found.reliability)

    def _look(self, glance: Glance) -> None:
        rows = self._campaign.reader.frames_since(self._frame_id, BITE)
        if len(rows["id"]) < BITE:
            self._looked = glance.at
        if not len(rows["id"]):
            return
        self._frame_id = int(rows["id"][-1])
        if not self._snapshots or rows["snapshot"].max() > self._snapshots[-1].id:
            self._snapshots = self._campaign.reader.snapshots()
        fresh = whatif.trace(rows, self._snapshots)
        if len(fresh):
            self._trace = fresh if self._trace is None else whatif.joined([self._trace, fresh])

    def _ask(self, moved: bool) -> None:
        """Compute the curve; `moved` is true where the tolerance in force is another."""
        tolerance, force, *_ = self._asked
        if self._trace is not None:
            grid = STEPS * tolerance * KCAL_PER_MOL
            self._curve = whatif.curve(self._trace, grid, force, self._cost)
        if moved:
            self._slider.param.update(
                start=float(STEPS[0] * tolerance), end=float(STEPS[-1] * tolerance),
                step=float((STEPS[1] - STEPS[0]) * tolerance), value=tolerance,
                marks=[{"value": tolerance, "label": f"in force {wording.figures(tolerance)}"}],
            )  # fmt: skip
        self._slider.disabled = self._curve is None
        self._tell()

    def _tell(self) -> None:
        frames = 0 if self._trace is None else len(self._trace)
        in_force, force = self._asked[:2] if self._asked else (None, None)
        self._head.object = _whatif_head(frames, force)
        self._told.object = told(self._curve, self._slider.value, in_force)

    def paint(self, palette: theme.Palette) -> None:
        """Take the colours of a mode."""
        self._errors.paint(palette)
        self._reliability.paint(palette)


class ErrorPlot:
    """Size of the errors against the bound in force then; in the shade the bound was kept."""

    def __init__(self) -> None:
        self._palette = theme.LIGHT
        self._shown: Judged | None = None
        self._source = ColumnDataSource({name: [] for name in ("bound", "error", "color")})
        self._x, self._y = Range1d(start=0.1, end=10), Range1d(start=0.001, end=10)
        self.figure = _figure(self._x, self._y, scale="log")
        self._kept = ColumnDataSource({"x": [], "y": []})
        self._wedge = self.figure.patch("x", "y", source=self._kept, line_color=None)
        self.figure.scatter(
            "bound", "error", source=self._source, size=6, fill_color="color", line_color=None,
            fill_alpha=0.85,
        )  # fmt: skip

    def show(self, judged: Judged) -> None:
        """Draw the labels that were judged by a calibration."""
        self._shown = judged
        at = judged.tested
        bound, error = kcal(judged.bound[at]), kcal(np.abs(judged.error[at]))
        if not len(bound):
            return
        low, high = float(bound.min()) / 1.3, float(bound.max()) * 1.3
        floor = SMALLEST_SHOWN * float(np.median(bound))
        p = self._palette
        self._source.data = {
            "bound": bound,
            "error": np.maximum(error, floor),
            "color": [p.bad if out else p.accent for out in error > bound],
        }
        self._x.update(start=low, end=high)
        self._y.update(start=floor / 1.3, end=1.3 * max(high, float(error.max())))
        self._kept.data = {"x": [low, low, high, high], "y": [floor / 2, low, high, floor / 2]}

    def paint(self, palette: theme.Palette) -> None:
        """Take the colours of a mode."""
        self._palette = palette
        theme.style_figure(self.figure, palette)
        self._wedge.glyph.update(fill_color=palette.accent, fill_alpha=0.12)
        if self._shown is not None:
            self.show(self._shown)


class ReliabilityPlot:
    """Observed against expected coverage in per cent, with its interval; honest is the diagonal."""

    def __init__(self) -> None:
        columns = ("expected", "observed", "low", "high")
        self._source = ColumnDataSource({name: [] for name in columns})
        self.figure = _figure(Range1d(start=0, end=100), Range1d(start=0, end=100))
        self._band = self.figure.varea("expected", "low", "high", source=self._source)
        self._honest = self.figure.line([0, 100], [0, 100], line_dash="dashed", line_width=1.2)
        self._line = self.figure.line("expected", "observed", source=self._source, line_width=1.8)
        self._dots = self.figure.scatter("expected", "observed", source=self._source, size=4)

    def show(self, curve: quality.Reliability) -> None:
        """Draw a curve."""
        names = ("expected", "observed", "low", "high")
        self._source.data = {name: 100 * getattr(curve, name) for name in names}

    def paint(self, palette: theme.Palette) -> None:
        """Take the colours of a mode."""
        theme.style_figure(self.figure, palette)
        self._band.glyph.update(fill_color=palette.accent, fill_alpha=0.14)
        self._honest.glyph.line_color = palette.muted
        self._line.glyph.line_color = palette.accent
        self._dots.glyph.update(fill_color=palette.accent, line_color=None)


def _figure(x: Range1d, y: Range1d, scale: Literal["linear", "log"] = "linear") -> figure:
    made = figure(
        x_range=x, y_range=y, sizing_mode="stretch_both", tools="", toolbar_location=None,
        x_axis_type=scale, y_axis_type=scale,
        min_border_left=34, min_border_right=10, min_border_top=6, min_border_bottom=20,
    )  # fmt: skip
    for axis, steps in ((made.xaxis, (1, 3)), (made.yaxis, (1,))):
        if scale == "log":
            ticks = [step * 10.0**power for power in range(-4, 4) for step in steps]
            axis.ticker = FixedTicker(ticks=ticks)
            axis.formatter = NumeralTickFormatter(format="0.[0000]")
        else:
            axis.ticker = BasicTicker(desired_num_ticks=5)
    return made


def _text(html: str = "", css: str = "") -> pn.pane.HTML:
    classes = [css] if css else []
    return pn.pane.HTML(
        html, stylesheets=[_TEXT_CSS], margin=0, sizing_mode="stretch_width", css_classes=classes
    )


def _cell(head: pn.pane.HTML, plot: figure) -> pn.Column:
    pane = pn.pane.Bokeh(plot, margin=0, sizing_mode="stretch_both", min_height=105)
    return pn.Column(head, pane, margin=0, css_classes=["cell"])


_ERRORS_HEAD = (
    '<div class="head"><b>Error against bound</b><span>kcal/mol; shaded: kept</span></div>'
)
_RELIABILITY_HEAD = (
    '<div class="head"><b>Reliability</b><span>% observed against expected</span></div>'
)


def _whatif_head(frames: int, force: float | None) -> str:
    kept = "" if force is None else f", force {wording.figures(force)} eV/Å"
    seen = (
        f"on {wording.count(frames)} recorded frame{'s' * (frames != 1)}{kept}, the model unchanged"
    )
    said = seen if frames else _NOTHING
    return f'<div class="head"><b>Another tolerance</b><span>{said}</span></div>'


def table(found: Quality) -> str:
    """Return coverage, z-scores and likelihood as HTML."""
    rows = [*found.energy, found.force]
    ranks = "".join(_observed(c) for c in found.conformal) + "<td></td>"
    names = [f"{100 * c.level:g} %" for c in found.energy]
    head = "".join(f"<th>{name}</th>" for name in [*names, f"force {100 * found.force.level:g} %"])
    seen = "".join(_observed(c) for c in rows)
    counts = "".join(f"<td><small>{c.inside} of {c.n}</small></td>" for c in rows)
    ends = "".join(f"<td>{_interval(c)}</td>" for c in rows)
    return (
        f'<table><tr class="rule"><th>Bound for</th>{head}</tr>'
        f"<tr><td>held</td>{seen}</tr><tr><td>labels</td>{counts}</tr>"
        f"<tr><td>95 % interval</td>{ends}</tr>"
        f"<tr><td>conformal held</td>{ranks}</tr></table>"
        f"<p>{_summary(found)}</p>"
    )


def _observed(c: Coverage) -> str:
    off = ' class="off"' if c.high < c.level else ""
    share = "–" if not c.n else f"{100 * c.fraction:.0f} %"
    return f"<td{off}>{share}</td>"


def _interval(c: Coverage) -> str:
    return f"{100 * c.low:.0f}–{100 * c.high:.0f} %" if c.n else "–"


def _summary(found: Quality) -> str:
    parts = [
        f"{found.tested} labels",
        f"z {_spread(found.z)} raw, {_spread(found.calibrated_z)} calibrated",
        f"NLL {found.nll:.2f} nats (kcal/mol)",
        f"RMSE {wording.figures(kcal(found.rmse))} kcal/mol",
    ]
    return " · ".join(parts).replace("-", "\N{MINUS SIGN}")


def _spread(scores: Scores) -> str:
    return f"{scores.mean:.1f} ± {scores.std:.1f}"


def told(curve: whatif.Curve | None, chosen: float, in_force: float | None) -> str:
    """Return labels, time and misses at the tolerance chosen and at the one in force, as HTML."""
    if curve is None or in_force is None:
        return ""
    rows = [
        _told_row(curve, chosen, f"at {wording.figures(chosen)} kcal/mol"),
        _told_row(curve, in_force, f"at {wording.figures(in_force)}, in force"),
    ]
    head = "<th></th><th>labels</th><th>time</th><th>misses expected</th>"
    return f'<table><tr class="rule">{head}</tr>{"".join(rows)}</table>'


def _few(expected: float) -> str:
    return wording.figures(expected) if expected >= 0.01 else "below 0.01"


def _told_row(curve: whatif.Curve, tolerance: float, name: str) -> str:
    at = int(np.argmin(np.abs(curve.tolerances - tolerance * KCAL_PER_MOL)))
    cells = (
        wording.count(int(curve.labels[at])),
        wording.duration(float(curve.seconds[at])),
        _few(float(curve.misses[at])),
    )
    return f"<tr><td>{name}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
