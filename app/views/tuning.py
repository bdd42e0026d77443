"""What may be changed while the campaign runs: who decides, the tolerances, the temperature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui

from app import theme, wording
from app.state import CampaignState, Glance
from core.campaign import events as ev
from core.campaign.state import State
from core.errors import SettingsError
from core.units import KCAL_PER_MOL

_CSS = ":host { padding: 14px 18px 14px; gap: 14px; }"
_MODE_CSS = """
:host { display: grid !important; grid-template-columns: auto 1fr; gap: 14px; }
.scroll-button { display: none; }
.label { align-self: center !important; }
"""
_FIELDS_CSS = """
:host { display: grid !important; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr));
  gap: 14px 12px; }
.scroll-button { display: none; }
"""
_HEAD_CSS = "h2 { margin: 0; font-size: 13px; font-weight: 600; line-height: 1.4; }"

MODE, ENERGY = "labelling.mode", "trust.energy_tolerance"
FORCE, TEMPERATURE = "trust.force_tolerance", "dynamics.temperature_K"


class Tuning(pn.viewable.Viewer):
    """The live settings; a change is posted as a command and shown once the worker took it."""

    def __init__(
        self, campaign: CampaignState, posted: Callable[[int], None], warn: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._campaign, self._posted, self._warn = campaign, posted, warn
        self._shown: dict[str, Any] = {}
        self._following = False
        make: dict[str, Any] = {"margin": 0, "size": "small", "sizing_mode": "stretch_width"}
        modes = {word: mode for mode, word in wording.MODES.items()}
        number = {**make, "format": "0[.]00"}
        self._inputs: dict[str, Any] = {
            MODE: pmui.RadioButtonGroup(options=modes, value="threshold", color="primary", **make),
            ENERGY: pmui.FloatInput(label="Energy ±, kcal/mol", step=0.1, **number),
            FORCE: pmui.FloatInput(label="Force ±, eV/Å", step=0.01, **number),
            TEMPERATURE: pmui.FloatInput(label="Temperature, K", step=10, **number),
        }
        for path, widget in self._inputs.items():
            widget.param.watch(lambda event, path=path: self._change(path, event.new), "value")
        head = pn.pane.HTML(
            "<h2>Flagged frames</h2>", stylesheets=[_HEAD_CSS], margin=0, css_classes=["label"]
        )
        mode, *numbers = self._inputs.values()
        self._layout = pn.Column(
            pn.Column(head, mode, margin=0, stylesheets=[_MODE_CSS]),
            pn.Column(*numbers, margin=0, stylesheets=[_FIELDS_CSS]),
            margin=0, css_classes=["tuning"], stylesheets=[theme.CARD, _CSS],
        )  # fmt: skip

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self, glance: Glance) -> None:
        """Follow the campaign's settings, whoever changed them."""
        now = shown(glance.state)
        if now == self._shown:
            return
        self._shown = now
        self._following = True
        try:
            for path, widget in self._inputs.items():
                widget.value = now[path]
        finally:
            self._following = False

    def _change(self, path: str, value: Any) -> None:
        if self._following or value == self._shown.get(path):
            return
        inner = value * KCAL_PER_MOL if path == ENERGY and value is not None else value
        try:
            self._campaign.glance().state.settings.with_value(path, inner)
        except SettingsError as error:
            self._warn(str(error).removeprefix("settings: "))
            self._shown = {}  # the next update puts the former value back
            return
        self._posted(self._campaign.post(ev.ChangeSetting(path=path, value=inner)))


def shown(state: State) -> dict[str, Any]:
    """Return the live settings as they stand on the screen."""
    force = state.force_tolerance
    return {
        MODE: state.mode,
        ENERGY: _rounded(state.energy_tolerance / KCAL_PER_MOL),
        FORCE: None if force is None else _rounded(force),
        TEMPERATURE: _rounded(state.settings.dynamics.temperature_K),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
