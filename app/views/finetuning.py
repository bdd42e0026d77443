"""Other strategies tried on the labels of this campaign, beside it: curves, receipts, side by side.

The simulation is not touched: each fine-tuning is a process of its own and leaves a bundle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import panel as pn
import panel_material_ui as pmui
from bokeh.models import BasicTicker, ColumnDataSource, FixedTicker, NumeralTickFormatter
from bokeh.plotting import figure

from app import theme, wording
from app.seat import Seat
from app.state import CampaignState, Glance
from app.widgets.rows import Rows
from core.campaign import study
from core.campaign.study import Study
from core.errors import FlywiseError

LOOK_S, LOOK_BESIDE_S = 1.0, 10.0
"""Seconds between two looks at the fine-tunings, and at the campaigns beside this one."""
STRATEGIES = {
    "naive": ("All weights", "Most accurate on one system; forgets the others."),
    "freeze-products": ("Products and readouts", "Elements and messages stay as they are."),
    "freeze-readouts": ("Readouts only", "Moves least, and learns least."),
    "lora": ("Low rank (LoRA)", "Every matrix moves, by a change of low rank."),
    "replay": ("Replay", "Frames of the pretraining are rehearsed in a head of their own."),
    "pseudolabel-replay": ("Replay, own predictions", "Rehearses what the foundation predicts."),
    "replay-lora": ("Replay with low rank", "Published as worse than either alone."),
}
"""Name of a strategy -> what it is called, and what to know of it."""
STEPS = {"Quick": 300, "Usual": 1500, "Long": 6000}
_CSS = """
:host { display: grid !important; height: 100%; box-sizing: border-box;
  grid-template-columns: minmax(190px, 0.8fr) minmax(0, 1.4fr); overflow-y: auto; }
.ask { padding: 10px 12px 0 16px; border-right: 1px solid var(--fw-line); height: 100%;
  min-height: 260px; }
.found { padding: 10px 12px 8px 14px; }
@media (max-width: 620px) {
  :host { grid-template-columns: minmax(0, 1fr); height: auto; }
  .ask { border-right: none; border-bottom: 1px solid var(--fw-line); height: 420px; }
}
"""
_ASK_CSS = """
:host { gap: 8px; }
.runs { min-height: 0; border-top: 1px solid var(--fw-line); }
"""
_FOUND_CSS = ".plots { flex: none; min-height: 170px; margin: 4px 0 8px; }"
_PLOTS_CSS = """
:host { display: grid !important; grid-template-columns: 1fr 1fr; gap: 8px; height: 170px; }
.scroll-button { display: none !important; }
"""
_TEXT_CSS = """
:host { color: var(--fw-text); }
h2 { font-size: 13px; font-weight: 600; margin: 0 0 4px; line-height: 1.4; }
h2 span { font-weight: 400; color: var(--fw-muted); font-size: 12px; margin-left: 8px; }
p { margin: 0 0 4px; line-height: 1.45; font-size: 12.5px; color: var(--fw-muted); }
p.bad { color: var(--fw-bad); overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: 12.5px; line-height: 1.6; width: 100%;
  margin: 4px 0 10px; font-variant-numeric: tabular-nums; }
th { color: var(--fw-muted); font-weight: 400; text-align: right; padding: 0 0 0 8px;
  white-space: nowrap; }
td { text-align: right; padding: 0 0 0 8px; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding: 0; color: var(--fw-muted); }
tr.here td { color: var(--fw-text); font-weight: 600; }
"""
_NOTHING = (
    "<h2>Nothing tried yet</h2><p>Another strategy can be tried on the labels, beside the "
    "simulation: what it would reach on labels it has not seen, and what it forgets of "
    "other molecules. The result is a model of its own.</p>"
)
_TONES = {"running": "busy", "done": "done", "failed": "bad", "stopped": "idle"}


class Finetuning(pn.viewable.Viewer):
    """A strategy and a start; the fine-tunings so far; curves and receipt of the chosen one."""

    def __init__(self, campaign: CampaignState, seat: Seat) -> None:
        super().__init__()
        self._campaign, self._seat = campaign, seat
        self._studies: list[Study] = []
        self._looked = self._looked_beside = 0.0
        self._shown: Any = None
        self._palette = theme.LIGHT
        self._strategy = pmui.Select(
            label="Strategy", options={t: n for n, (t, _) in STRATEGIES.items()}, value="naive",
            size="small", margin=0, sizing_mode="stretch_width",
        )  # fmt: skip
        self._strategy.param.watch(lambda _: self._advise(), "value")
        self._steps = pmui.RadioButtonGroup(
            options=STEPS, value=STEPS["Usual"], color="primary", size="small", margin=0,
            sizing_mode="stretch_width",
        )  # fmt: skip
        self._advice = _text("")
        self._others = pmui.MultiChoice(
            label="Also the labels of", options={}, margin=0,
            sizing_mode="stretch_width", visible=False,
        )  # fmt: skip
        self._go = pmui.Button(
            label="Fine-tune", icon="play_arrow", variant="contained", size="small", margin=0,
            color="primary", disable_elevation=True, on_click=lambda _: self._act(self._begin),
        )  # fmt: skip
        self._on = pmui.Button(
            label="Go on", icon="play_arrow", variant="outlined", size="small", margin=0,
            visible=False, on_click=lambda _: self._act(self._go_on),
        )  # fmt: skip
        self._runs = Rows(
            label="Fine-tunings", css_classes=["runs"], margin=0, sizing_mode="stretch_both"
        )
        self._runs.param.watch(lambda _: self._show(force=True), "chosen")
        self._text = _text(_NOTHING)
        self._curve = ColumnDataSource({"epoch": [], "loss": [], "unseen": []})
        self._loss_plot = _plot("epoch", "log")
        self._loss = self._loss_plot.line("epoch", "loss", source=self._curve, line_width=1.6)
        self._unseen = self._loss_plot.line("epoch", "unseen", source=self._curve, line_width=1.6)
        self._parity = ColumnDataSource({"reference": [], "before": [], "after": []})
        self._parity_plot = _plot("reference, eV/Å", "linear")
        self._old = self._parity_plot.scatter("reference", "before", source=self._parity, size=4)
        self._new = self._parity_plot.scatter("reference", "after", source=self._parity, size=4)
        self._plots = pn.Column(
            self._loss_plot, self._parity_plot, margin=0, stylesheets=[_PLOTS_CSS],
            sizing_mode="stretch_width", visible=False, css_classes=["plots"],
        )  # fmt: skip
        self._table = _text("")
        self._layout = pn.Column(
            pn.Column(
                self._strategy, self._advice, self._steps, self._others, self._go, self._on,
                self._runs, margin=0, css_classes=["ask"], stylesheets=[_ASK_CSS],
            ),
            pn.Column(
                self._text, self._plots, self._table,
                margin=0, css_classes=["found"], stylesheets=[_FOUND_CSS],
            ),
            margin=0, stylesheets=[theme.CARD, _CSS],
        )  # fmt: skip
        self._advise()

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self, glance: Glance) -> None:
        """Look at what is under way."""
        if glance.at - self._looked >= LOOK_S:
            self._looked = glance.at
            self._studies = study.studies(self._campaign.directory)
        if glance.at - self._looked_beside >= LOOK_BESIDE_S:
            self._looked_beside = glance.at
            self._look_beside()
        running = any(s.status == "running" for s in self._studies)
        learned = glance.state.counts["trained"]
        enough = learned >= study.LEAST
        self._go.param.update(
            label="Stop" if running else "Fine-tune",
            icon="stop" if running else "play_arrow",
            disabled=not self._seat.sharing.driving or not (running or enough),
        )
        chosen = self._chosen()
        stopped = chosen is not None and chosen.status == "stopped"
        self._on.param.update(
            visible=stopped and not running, disabled=not self._seat.sharing.driving
        )
        self._runs.param.update(
            rows=[_row(s) for s in reversed(self._studies)],
            empty="" if enough else f"{study.LEAST} labels have to be learned first.",
        )
        self._show()

    def _look_beside(self) -> None:
        found = study.sources(self._campaign.directory)
        options = {f"{d.name}, {n} label{'s' * (n > 1)}": d for d, n in found.items()}
        if options != self._others.options:
            kept = [d for d in self._others.value or () if d in found]
            self._others.param.update(options=options, value=kept, visible=bool(options))

    def _advise(self) -> None:
        self._advice.object = f"<p>{STRATEGIES[self._strategy.value][1]}</p>"

    def _act(self, what: Callable[[], None]) -> None:
        """Do what a button says, if this page drives, and show what came of it."""
        if not self._seat.may_act():
            return
        try:
            what()
        except FlywiseError as error:
            self._seat.warn(str(error))
        self._looked = 0.0
        self.update(self._campaign.glance())

    def _begin(self) -> None:
        running = [s for s in self._studies if s.status == "running"]
        if running:
            study.stop(running[-1])
            return
        self._runs.chosen = study.start(
            self._campaign.directory, self._strategy.value, steps=self._steps.value,
            model=self._campaign.glance().state.settings.potential.model,
            others=self._others.value or (),
        )  # fmt: skip

    def _go_on(self) -> None:
        chosen = self._chosen()
        if chosen is not None:
            study.go_on(chosen)

    def _chosen(self) -> Study | None:
        by_number = {s.number: s for s in self._studies}
        newest = self._studies[-1] if self._studies else None
        return by_number.get(self._runs.chosen, newest)

    def _show(self, *, force: bool = False) -> None:
        chosen = self._chosen()
        now = (chosen, [s.status for s in self._studies])
        if chosen is None or (now == self._shown and not force):
            return
        self._shown = now
        self._text.object = _headline(chosen)
        self._plots.visible = len(chosen.epochs) > 1
        epochs = chosen.epochs
        self._curve.data = {
            "epoch": [e["epoch"] for e in epochs],
            "loss": [e["loss"] for e in epochs],
            "unseen": [e.get("validation", float("nan")) for e in epochs],
        }
        parity = (chosen.receipt or {}).get("parity", {})
        names = ("reference", "before", "after")
        self._parity.data = {name: parity.get(name, []) for name in names}
        self._parity_plot.visible = bool(parity)
        done = [s for s in self._studies if s.receipt is not None]
        table = side_by_side(done, chosen.number) if done else ""
        self._table.object = table + (what_moved(chosen.receipt) if chosen.receipt else "")

    def paint(self, palette: theme.Palette) -> None:
        """Take the colours of a mode."""
        for plot in (self._loss_plot, self._parity_plot):
            theme.style_figure(plot, palette)
        self._loss.glyph.line_color = palette.muted
        self._unseen.glyph.line_color = palette.accent
        self._old.glyph.update(fill_color=palette.muted, line_color=None, fill_alpha=0.45)
        self._new.glyph.update(fill_color=palette.accent, line_color=None, fill_alpha=0.8)


def side_by_side(done: Sequence[Study], here: int) -> str:
    """Return finished fine-tunings in one table, the foundation above them."""
    rows = [_cells("Before", done[-1].receipt or {}, after=False)]
    for s in done:
        title = f"{s.number} · {STRATEGIES.get(s.strategy, (s.strategy, ''))[0]}"
        mark = ' class="here"' if s.number == here else ""
        rows.append(_cells(title, s.receipt or {}, after=True, mark=mark))
    named = _measured(done[-1].receipt or {})[0]
    return (
        "<table><tr><th>Error, side by side</th><th>meV/Å</th><th>meV/atom</th>"
        f"<th>others, meV/Å</th><th>s</th></tr>{''.join(rows)}</table>"
        f"<p>On labels {named}; others are molecules of the pretraining.</p>"
    )


def what_moved(receipt: dict[str, Any]) -> str:
    """Return the rest of a receipt: blocks and how far, isolated atoms, weights, notes."""
    rows = []
    for part in dict.fromkeys(b["part"] for b in receipt["blocks"]):
        blocks = [b for b in receipt["blocks"] if b["part"] == part]
        moved = [b for b in blocks if b["before"] != b["after"]]
        farthest = f"{100 * max(b['relative'] for b in moved):.2g} %" if moved else "–"
        rows.append(
            f"<tr><td>{escape(part)}</td><td>{len(moved)} of {len(blocks)}</td>"
            f"<td>{farthest}</td></tr>"
        )
    atoms = receipt["isolated"]
    shifts = ", ".join(f"{k} {v['shift_eV']:+.3f}" for k, v in atoms["elements"].items())
    said = [
        f"Energies of isolated atoms: {atoms['how']}, shifted by {shifts} eV; off by "
        f"{1e3 * atoms['before_eV_per_atom']:.1f} meV/atom before, "
        f"{1e3 * atoms['after_eV_per_atom']:.1f} after.",
        f"Weights {receipt['weights_before'][:8]} → {receipt['weights_after'][:8]}.",
        *receipt["notes"],
    ]
    return (
        "<table><tr><th>Part of the network</th><th>blocks moved</th><th>farthest</th></tr>"
        f"{''.join(rows)}</table>" + "".join(f"<p>{escape(line)}</p>" for line in said)
    )


def _measured(receipt: dict[str, Any]) -> tuple[str, list[dict[str, float]]]:
    """Return the errors on the labels that say most, and which those are."""
    errors = receipt["errors"]
    for name, words in (
        ("held out", "held out"), ("validation", "set aside"), ("trained", "it was trained on"),
    ):  # fmt: skip
        if name in errors:
            return words, errors[name]
    return "", []


def _cells(title: str, receipt: dict[str, Any], *, after: bool, mark: str = "") -> str:
    k = 1 if after else 0
    found = _measured(receipt)[1][k]
    own = receipt["errors"].get("foundation's own")
    other = "–" if own is None else f"{1e3 * own[k]['force_mae']:.0f}"
    seconds = f"{receipt['seconds']:.0f}" if after else ""
    within = f"{1e3 * found['energy_within']:.2f}" if found["frames"] > 1 else "–"
    return (
        f"<tr{mark}><td>{escape(title)}</td><td>{1e3 * found['force']:.0f}</td>"
        f"<td>{within}</td><td>{other}</td><td>{seconds}</td></tr>"
    )


def _headline(s: Study) -> str:
    title = STRATEGIES.get(s.strategy, (s.strategy, ""))[0]
    said = f"{s.n_labels} labels"
    text = ""
    if s.status == "running" and not s.epochs:
        text = "<p>It begins: the model is loaded.</p>"
    elif s.status == "running":
        left = wording.duration(s.seconds_left)
        said += f" · epoch {s.epochs[-1]['epoch']} of {s.epochs_total}, {left} left at most"
        text = "<p>Loss by epoch: grey on its labels, coloured on those set aside.</p>"
    elif s.status == "failed":
        text = f"<p class='bad'>{escape(s.problem)}</p>"
    elif s.status == "stopped":
        said += " · stopped"
        text = "<p>It was ended before it was done; it can go on after its last epoch.</p>"
    else:
        said += " · done"
        place = f"{escape(s.folder.parent.name)}/{escape(s.folder.name)}"
        text = (
            f"<p>The model is in <code>{place}</code>. Left: loss by epoch. Right: forces before "
            "(grey) and after.</p>"
        )
    return f"<h2>{s.number} · {title}<span>{said}</span></h2>{text}"


def _row(s: Study) -> dict[str, Any]:
    figure = ""
    if s.receipt is not None:
        figure = f"{1e3 * _measured(s.receipt)[1][1]['force']:.0f} meV/Å"
    elif s.epochs:
        figure = f"{100 * s.epochs[-1]['epoch'] / s.epochs_total:.0f} %"
    at = time.strftime("%H:%M:%S", time.localtime(s.started))
    return {
        "id": s.number, "tone": _TONES[s.status], "status": s.status, "figure": figure,
        "title": f"{s.number} · {STRATEGIES.get(s.strategy, (s.strategy, ''))[0]}",
        "detail": f"{s.n_labels} labels · {at}", "over": False, "marked": False,
    }  # fmt: skip


def _plot(x: str, scale: Any) -> figure:
    made = figure(
        sizing_mode="stretch_both", tools="", toolbar_location=None, y_axis_type=scale,
        x_axis_label=x, min_border_left=40, min_border_right=8, min_border_top=6,
    )  # fmt: skip
    made.xaxis.ticker = BasicTicker(desired_num_ticks=4)
    if scale == "log":
        ticks = [step * 10.0**power for power in range(-6, 4) for step in (1, 3)]
        made.yaxis.ticker = FixedTicker(ticks=ticks)
        made.yaxis.formatter = NumeralTickFormatter(format="0.[00000]")
    else:
        made.yaxis.ticker = BasicTicker(desired_num_ticks=4)
    return made


def _text(html: str) -> pn.pane.HTML:
    return pn.pane.HTML(html, stylesheets=[_TEXT_CSS], margin=0, sizing_mode="stretch_width")
