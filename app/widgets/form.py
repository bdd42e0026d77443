"""A form derived from the settings schema: one input for each field, errors beside it.

Knows no campaign: whoever makes the form is asked about each change and answers with the reason
where it is not accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import panel as pn
import panel_material_ui as pmui

from core import settings as schema
from core.errors import SettingsError
from core.settings import Settings
from core.units import GPA, KCAL_PER_MOL

SECTIONS = {
    "structure": "Structure",
    "potential": "Model",
    "dynamics": "Dynamics",
    "trust": "Accuracy",
    "finetuning": "What moves",
    "posterior": "Uncertainty",
    "labelling": "Labels",
}
"""Section of the settings -> heading."""

FIELDS: dict[str, dict[str, Any]] = {entry["path"]: entry for entry in schema.fields()}
"""Path -> what `core.settings.fields` says of it."""

LABEL_ABOVE: dict[str, Any] = {
    ".MuiInputLabel-root": {
        "position": "static", "transform": "none", "whiteSpace": "normal", "lineHeight": 1.35,
        "fontSize": "12.5px", "marginBottom": "5px", "maxWidth": "none", "overflow": "visible",
    },
    ".MuiOutlinedInput-notchedOutline": {"top": 0},
    ".MuiOutlinedInput-notchedOutline legend": {"display": "none"},
    ".MuiFormHelperText-root": {"margin": "4px 0 0", "fontSize": "11.5px", "lineHeight": 1.35},
}  # fmt: skip
"""Text inputs whose label stands above them and may take several lines."""

SELECT_LABEL_ABOVE = """
.MuiInputLabel-root { position: static !important; transform: none !important;
  white-space: normal !important; line-height: 1.35 !important; font-size: 12.5px !important;
  margin-bottom: 5px; max-width: none !important; overflow: visible !important; }
.MuiOutlinedInput-notchedOutline { top: 0 !important; }
.MuiOutlinedInput-notchedOutline legend { display: none !important; }
.MuiFormHelperText-root { margin: 4px 0 0 !important; font-size: 11.5px; line-height: 1.35; }
"""
"""The same for selects, whose label lies outside what their `sx` reaches."""

LABEL_HIDDEN = """
.MuiFormLabel-root, .MuiInputLabel-root { position: absolute !important; width: 1px; height: 1px;
  overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
"""
"""A label that only screen readers need, because a heading says the same."""

SELECT_LABEL_HIDDEN = f"""{LABEL_HIDDEN}
.MuiOutlinedInput-notchedOutline {{ top: 0 !important; }}
.MuiOutlinedInput-notchedOutline legend {{ display: none !important; }}
"""
"""The same for selects, whose outline has a gap for the label."""


def action(label: str, icon: str, variant: str, act: Callable[[], None]) -> pmui.Button:
    """Return a small button that does one thing."""
    return pmui.Button(
        label=label, icon=icon, variant=variant, on_click=lambda _: act(), margin=0, size="small",
        color="primary", disable_elevation=True,
    )  # fmt: skip


_CSS = """
:host { display: grid !important; gap: 16px 20px; align-items: start; width: 100%;
  grid-auto-rows: max-content; flex: none !important;
  grid-template-columns: repeat(auto-fill, minmax(min(220px, 100%), 1fr)); }
.scroll-button { display: none !important; }
"""


class Form(pn.viewable.Viewer):
    """Inputs for the fields `paths`.

    Args:
        changed: called with a path and the text a person gave; returns why it is not accepted,
            None if it is.
    """

    def __init__(
        self, given: Settings, paths: Iterable[str], changed: Callable[[str, str], str | None]
    ) -> None:
        super().__init__()
        self._changed = changed
        self._shown: dict[str, Any] = {}
        self._following = False
        self._given = given
        self.inputs = {path: _input(FIELDS[path]) for path in paths}
        for path, widget in self.inputs.items():
            widget.param.watch(lambda event, path=path: self._change(path, event.new), "value")
        self._layout = pn.Column(
            *self.inputs.values(), margin=0, css_classes=["form"], stylesheets=[_CSS]
        )
        self.follow(given)

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def follow(self, given: Settings) -> None:
        """Follow settings that changed elsewhere; what is being corrected stays as it is."""
        now = {path: value_at(given, path) for path in self.inputs}
        if now == self._shown:
            self._hide(given)
            return
        self._following = True
        try:
            for path, widget in self.inputs.items():
                if path not in self._shown or now[path] != self._shown[path]:
                    widget.param.update(
                        value=text_of(path, now[path]), error_state=False,
                        helper_text=hint(FIELDS[path], text_of(path, now[path])),
                    )  # fmt: skip
        finally:
            self._following = False
        self._shown = now
        self._hide(given)

    def reset(self, given: Settings) -> None:
        """Show settings as they are, whatever was typed."""
        self._shown = {}
        self.follow(given)

    def _change(self, path: str, text: str) -> None:
        if self._following:
            return
        problem = self._changed(path, text.strip())
        shown = hint(FIELDS[path], text) if problem is None else problem
        self.inputs[path].param.update(error_state=problem is not None, helper_text=shown)
        self._hide(self._given)

    def _hide(self, given: Settings) -> None:
        """Show the fields that have a meaning with what is chosen here, or elsewhere was given.

        One that is still to be corrected stays, however little it means.
        """
        self._given = given
        for path, widget in self.inputs.items():
            widget.visible = widget.error_state or applies(path, self._chosen)

    def _chosen(self, path: str) -> str:
        if path in self.inputs:
            return str(self.inputs[path].value)
        return text_of(path, value_at(self._given, path))


def applies(path: str, chosen: Callable[[str], str]) -> bool:
    """Return whether a field has a meaning, given what is `chosen` in each other one."""
    section = path.partition(".")[0]
    return all(
        chosen(f"{section}.{name}") in accepted for name, accepted in FIELDS[path]["only"].items()
    )


def _input(entry: dict[str, Any]) -> Any:
    common: dict[str, Any] = {
        "label": label_of(entry), "size": "small", "margin": 0, "sizing_mode": "stretch_width",
        "helper_text": hint(entry),
    }  # fmt: skip
    if options := _options(entry):
        return pmui.Select(
            options=options,
            value=text_of(entry["path"], entry["default"]),
            stylesheets=[SELECT_LABEL_ABOVE],
            **common,
        )
    return pmui.TextInput(placeholder="none" if entry["optional"] else "", sx=LABEL_ABOVE, **common)


def _options(entry: dict[str, Any]) -> list[str]:
    return list(_BOOLEAN.values()) if entry["type"] == "boolean" else list(entry.get("enum", ()))


def label_of(entry: dict[str, Any]) -> str:
    """Return the title of a field, or its description where that is short enough to have none."""
    return str(entry["title"] or entry["help"].rstrip("."))


def hint(entry: dict[str, Any], chosen: str = "") -> str:
    """Return description (where a title stands above), unit, bounds and default of a field.

    Where something is known of what was `chosen` among several, that comes in place of the rest.
    """
    if about := entry["choices"].get(chosen):
        return str(about)
    said = [str(entry["help"]).rstrip(".")] if entry["title"] else []
    path = entry["path"]
    if _options(entry):
        return " · ".join([*said, f"default {text_of(path, entry['default'])}"])
    unit, scale, accepted = _UNITS.get(path, ("", 1.0, entry["unit"]))
    if accepted:
        said.append(str(accepted))
    bounds = [
        f"{word} {entry[name] / scale:.12g}" if entry[name] == 0 or not unit
        else f"{word} {entry[name] / scale:.4g} {unit}"
        for name, word in (
            ("exclusiveMinimum", "above"), ("minimum", "at least"),
            ("exclusiveMaximum", "below"), ("maximum", "at most"),
        )
        if name in entry
    ]  # fmt: skip
    said += [", ".join(bounds)] if bounds else []
    if entry["default"] is not None:
        said.append(f"default {text_of(path, entry['default'])}")
    if entry["optional"]:
        said.append("empty for " + ("the default" if entry["default"] is None else "none"))
    return " · ".join(said)


_BOOLEAN = {False: "no", True: "yes"}
_READABLE = {
    "eV": ("kcal/mol", KCAL_PER_MOL, "kcal/mol, eV or kJ/mol"),
    "eV/Å³": ("GPa", GPA, "GPa, kbar or eV/Å³"),
}
_UNITS = {
    path: _READABLE[entry["unit"]]
    for path, entry in FIELDS.items()
    if entry["unit"] in _READABLE and entry["type"] == "number"
}
"""Path -> the unit a quantity is shown in, its size in the inner unit, and all units accepted."""


def text_of(path: str, value: Any) -> str:
    """Return a value as it stands in its input; energies in kcal/mol, stress in GPa."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return _BOOLEAN[value]
    if path in _UNITS:
        unit, scale, _ = _UNITS[path]
        return f"{value / scale:.4g} {unit}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def said_of(path: str, value: Any) -> str:
    """Return a value with its unit, for a sentence or a table."""
    unit = FIELDS[path]["unit"]
    text = text_of(path, value)
    return text if unit is None or path in _UNITS else f"{text} {unit}"


def value_at(given: Settings, path: str) -> Any:
    """Return the value of a field."""
    section, _, name = path.partition(".")
    return getattr(getattr(given, section), name)


def tried(given: Settings, path: str, text: str) -> Settings:
    """Return the settings with a field set to what a person wrote; nothing means none.

    Raises:
        SettingsError: it is not accepted; the message is for this field alone.
    """
    empty = text == "" and FIELDS[path]["optional"]
    try:
        return given.with_value(path, None if empty else text)
    except SettingsError as error:
        said = str(error).removeprefix("settings: ").removeprefix(f"{path}: ")
        raise SettingsError(said) from error
