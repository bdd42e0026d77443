"""The report of an evaluation as one HTML file that needs nothing else: verdicts, then plots."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from bokeh.embed import components
from bokeh.models.annotations import Legend
from bokeh.palettes import Category10_8
from bokeh.plotting import figure
from bokeh.resources import INLINE

from app.theme import FONT, LIGHT
from core.units import KCAL_PER_MOL

MARKS = {"good": "✓", "doubtful": "!", "bad": "✗", "unknown": "?"}
TITLES = {
    "accuracy": "Accuracy on the labels", "repulsion": "Short-range repulsion",
    "dynamics": "Stability of dynamics", "structure": "Distances in a simulation",
    "vibrations": "Vibrations", "search": "Random structure search",
    "memory": "Memory of the pretraining",
}  # fmt: skip
SIZE = 360
MOST_CURVES = 6
"""Pairs of elements shown, those that differ most."""
_CSS = f"""
<style>
body {{ font: 15px/1.5 {FONT}; color: {LIGHT.text}; background: {LIGHT.surface}; margin: 0;
  padding: 28px max(20px, calc(50vw - 560px)); }}
h1 {{ font-size: 24px; margin: 0 0 4px; }} h2 {{ font-size: 18px; margin: 28px 0 8px; }}
p {{ margin: 4px 0; max-width: 75ch; }} .muted {{ color: {LIGHT.muted}; }}
.wide {{ overflow-x: auto; }} .plots {{ display: flex; flex-wrap: wrap; gap: 8px; }}
table {{ border-collapse: collapse; width: 100%; min-width: 640px; }}
th, td {{ text-align: left; vertical-align: top; padding: 8px 12px 8px 0;
  border-bottom: 1px solid {LIGHT.line}; }}
.mark {{ display: inline-block; width: 1.3em; font-weight: 700; }}
.good {{ color: {LIGHT.good}; }} .doubtful {{ color: {LIGHT.warn}; }}
.bad {{ color: {LIGHT.bad}; }}
.unknown {{ color: {LIGHT.muted}; }}
.chosen {{ border-left: 4px solid {LIGHT.accent}; padding: 8px 14px;
  background: {LIGHT.raised}; margin: 16px 0; }}
</style>
"""


def write(result: dict[str, Any], path: Path) -> None:
    """Write the report to `path` and its figures beside it as JSON."""
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    path.write_text(html(result), encoding="utf-8")


def html(result: dict[str, Any]) -> str:
    """Return the report of what `core.campaign.evaluate` returned."""
    by_test: dict[str, dict[str, Any]] = {}
    for model, findings in result["models"].items():
        for finding in findings:
            by_test.setdefault(finding["name"], {})[model] = finding
    drawn = {
        test: draw({m: f for m, f in by_test[test].items() if f["series"]})
        for test, draw in _PLOTS.items()
        if any(f["series"] for f in by_test.get(test, {}).values())
    }
    library = "".join(f"<script>{text}</script>" for text in INLINE.js_raw)
    script, places = components({f"{t}{k}": p for t, ps in drawn.items() for k, p in enumerate(ps)})
    plots = "".join(
        f"<h2>{TITLES[test]}</h2>{_NOTES.get(test, '')}<div class='plots'>"
        + "".join(places[f"{test}{k}"] for k in range(len(made)))
        + "</div>"
        for test, made in drawn.items()
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Evaluation</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"{_CSS}{library}{script}</head><body>"
        f"{_head(result)}{_table(by_test, list(result['models']))}{plots}</body></html>"
    )


def _head(result: dict[str, Any]) -> str:
    labels, made = result["labels"], result["made"]
    chosen = "No model is fit for use." if result["deploy"] is None else (
        f"Deploy {escape(result['deploy'])}."
    )  # fmt: skip
    reference = f", reference {escape(result['reference'])}" if result["reference"] else ""
    return (
        f"<h1>Evaluation</h1><p class='muted'>{labels['n']} labels of {escape(labels['file'])} "
        f"({escape(labels['level'])}){reference}; {made['date']}, torch {escape(made['torch'])}, "
        f"{made['dtype']}, seed {made['seed']}</p>"
        f"<div class='chosen'><b>{chosen}</b><p>{escape(result['because'])}</p></div>"
    )


def _table(by_test: dict[str, dict[str, Any]], models: list[str]) -> str:
    head = "".join(f"<th>{escape(m)}</th>" for m in models)
    rows = []
    for test, findings in by_test.items():
        cells = "".join(
            f"<td><span class='mark {f['verdict']}' title='{f['verdict']}'>{MARKS[f['verdict']]}"
            f"</span>{escape(f['said'])}</td>"
            for f in (findings[m] for m in models)
        )
        rows.append(f"<tr><th>{TITLES[test]}</th>{cells}</tr>")
    key = "✓ good · ! doubtful · ✗ speaks against deploying · ? could not be tested"
    return (
        f"<div class='wide'><table><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"
        f"<p class='muted'>{key}</p>"
    )


def _figure(title: str, x: str, y: str) -> Any:
    made = figure(
        title=title, x_axis_label=x, y_axis_label=y, width=SIZE, height=SIZE - 60,
        toolbar_location="right", tools="pan,wheel_zoom,reset,save",
    )  # fmt: skip
    made.toolbar.autohide = True
    return made


def _colours(models: Any) -> dict[str, str]:
    return {m: Category10_8[k % 8] for k, m in enumerate(models)}


def _parity(found: dict[str, Any]) -> list[Any]:
    plots = []
    for quantity, unit in (("energy", "eV/atom"), ("force", "eV/Å")):
        for model, colour in _colours(found).items():
            reference, predicted = found[model]["series"][quantity]
            if quantity == "energy":
                shift = sum(p - r for p, r in zip(predicted, reference, strict=True))
                shift /= len(reference)
                middle = sum(reference) / len(reference)
                predicted = [p - shift - middle for p in predicted]
                reference = [r - middle for r in reference]
            plot = _figure(f"{quantity}: {model}", f"reference, {unit}", f"model, {unit}")
            ends = [min(reference), max(reference)]
            plot.line(ends, ends, color="#9aa5b1")
            plot.scatter(reference, predicted, size=4, alpha=0.5, color=colour)
            plots.append(plot)
    return plots


def _by_pair(found: dict[str, Any], x: str, y: str, *, of_labels: bool) -> list[Any]:
    """Draw a curve of each model for some pairs of elements."""
    colours = _colours(found)
    names = list(next(iter(found.values()))["series"]["curves"])
    if of_labels:

        def moved(name: str) -> float:
            return max(f["figures"]["by_pair_A"].get(name, 0.0) for f in found.values())

        names.sort(key=moved, reverse=True)
    plots = []
    for name in names[:MOST_CURVES]:
        plot = _figure(name, x, y)
        for k, (model, finding) in enumerate(found.items()):
            if name not in finding["series"]["curves"]:
                continue
            lengths, *values = finding["series"]["curves"][name]
            if of_labels and k == 0:
                plot.line(lengths, values[0], color="#52606d", legend_label="labels", line_width=2)
            plot.line(lengths, values[-1], color=colours[model], legend_label=model)
        _small(plot.legend)
        plots.append(plot)
    return plots


def _small(legend: Legend) -> None:
    legend.label_text_font_size = "11px"
    legend.background_fill_alpha = 0.6
    legend.click_policy = "hide"


def _frequencies(found: dict[str, Any]) -> list[Any]:
    plot = _figure("", "reference, cm⁻¹", "model minus reference, cm⁻¹")
    for model, colour in _colours(found).items():
        expected, values = found[model]["series"]["frequencies"]
        off = [v - e for v, e in zip(values, expected, strict=True)]
        plot.scatter(expected, off, size=7, color=colour, legend_label=model, alpha=0.8)
    _small(plot.legend)
    return [plot]


def _depths(found: dict[str, Any]) -> list[Any]:
    plot = _figure("", "random start", "above the known minimum, kcal/mol per atom")
    for model, colour in _colours(found).items():
        depths = sorted(found[model]["series"]["depths_eV_per_atom"])
        heights = [d / KCAL_PER_MOL for d in depths]
        plot.scatter(list(range(1, len(depths) + 1)), heights, size=7, color=colour,
                     legend_label=model)  # fmt: skip
    _small(plot.legend)
    return [plot]


_NOTES = {
    "accuracy": "<p class='muted'>Energies about their mean, without a constant between model and "
    "reference.</p>",
    "structure": f"<p class='muted'>The {MOST_CURVES} pairs of elements that differ most.</p>",
}
_PLOTS = {
    "accuracy": _parity,
    "repulsion": lambda found: _by_pair(found, "distance, Å", "energy, eV", of_labels=False),
    "structure": lambda found: _by_pair(found, "distance, Å", "density, 1/Å", of_labels=True),
    "vibrations": _frequencies,
    "search": _depths,
}
