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
_FIELDS_CSS = ":host { display: grid !important; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 14px 12px; }\n.scroll-button { display: none; }"
_HEAD_CSS = "h2 { margin: 0; font-size: 13px; font-weight: 600; line-height: 1.4; }"

_READ: dict[str, Callable[[State], float | None]] = {
    "trust.energy_tolerance": lambda s: s.energy_tolerance / KCAL_PER_MOL,
    "trust.force_tolerance": lambda s: s.force_tolerance,
    "dynamics.temperature_K": lambda s: s.settings.dynamics.temperature_K,
}
_SCALE = {"trust.energy_tolerance": KCAL_PER_MOL}


class Tuning(pn.viewable.Viewer):
    """The live settings; a change is posted as a command and shown once the worker took it."""

    def __init__(
        self, campaign: CampaignState, posted: Callable[[int], None], warn: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._campaign, self._posted, self._warn = campaign, posted, warn
        self._following = False
        self._mode = pmui.RadioButtonGroup(
            options={v: k for k, v in wording.MODES.items()}, size="small", color="primary",
            margin=0, sizing_mode="stretch_width",
        )  # fmt: skip
        make: dict[str, Any] = {"margin": 0, "size": "small", "sizing_mode": "stretch_width", "format": "0[.]00"}
        self._fields = {
            "trust.energy_tolerance": pmui.FloatInput(label="Energy ±, kcal/mol", step=0.1, **make),
            "trust.force_tolerance": pmui.FloatInput(label="Force ±, eV/Å", step=0.01, **make),
            "dynamics.temperature_K": pmui.FloatInput(label="Temperature, K", step=10, **make),
        }
        self._mode.param.watch(lambda e: self._change("labelling.mode", e.new), "value")
        for path, field in self._fields.items():
            field.param.watch(lambda e, path=path: self._change(path, e.new), "value")
        head = pn.pane.HTML("<h2>Flagged frames</h2>", stylesheets=[_HEAD_CSS], margin=0, css_classes=["label"])
        self._layout = pn.Column(
            pn.Column(head, self._mode, margin=0, stylesheets=[_MODE_CSS]),
            pn.Column(*self._fields.values(), margin=0, stylesheets=[_FIELDS_CSS]),
            margin=0, css_classes=["tuning"], stylesheets=[theme.CARD, _CSS],
        )  # fmt: skip

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def update(self, glance: Glance) -> None:
        """Follow the campaign's settings, whoever changed them."""
        shown = {path: _rounded(read(glance.state)) for path, read in _READ.items()}
        now = (glance.state.mode, shown)
        if now == self.__dict__.get("_now"):
            return
        self._now = now
        self._following = True
        try:
            self._mode.value = glance.state.mode
            for path, value in shown.items():
                self._fields[path].value = value
        finally:
            self._following = False

    def _change(self, path: str, value: Any) -> None:
        state = self._campaign.glance().state
        known = state.mode if path == "labelling.mode" else _rounded(_READ[path](state))
        if self._following or value == known:
            return
        inner = value * _SCALE.get(path, 1.0) if isinstance(value, (int, float)) else value
        try:
            state.settings.with_value(path, inner)
        except SettingsError as error:
            self._warn(str(error).removeprefix("settings: "))
            self._now = None
            return
        self._posted(self._campaign.post(ev.ChangeSetting(path=path, value=inner)))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
