"""One frozen set of colours, light and dark, from which page, widgets and plots take theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FONT = "Inter, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
"""Whatever of these the machine has; nothing is fetched."""

ERROR_SCALE = ("#2f6db3", "#86b4da", "#e9e4d8", "#efa257", "#c43d1d")
"""Error from none (blue) over the tolerance (pale, the middle) to twice the tolerance (red)."""


@dataclass(frozen=True)
class Palette:
    """Colours of one mode.

    Attributes:
        page, surface: backgrounds. line: borders and grids. text, muted: writing.
        accent: the one colour that asks to be clicked or followed.
        good, warn, bad: states. shade: fill of stretches without trust.
    """

    name: str
    page: str
    surface: str
    raised: str
    line: str
    text: str
    muted: str
    accent: str
    on_accent: str
    good: str
    warn: str
    bad: str
    shade: str

    @property
    def dark(self) -> bool:
        """True for the dark set."""
        return self.name == "dark"


LIGHT = Palette(
    name="light", page="#f4f5f7", surface="#ffffff", raised="#eef0f3", line="#dfe3e8",
    text="#1b2430", muted="#5d6875", accent="#0f6e7c", on_accent="#ffffff",
    good="#2b7a3d", warn="#a05a00", bad="#b3261e", shade="#8a94a0",
)  # fmt: skip

DARK = Palette(
    name="dark", page="#0f141a", surface="#171d25", raised="#1f2731", line="#2b3541",
    text="#e4e9ef", muted="#98a4b1", accent="#4fb7c6", on_accent="#06181b",
    good="#6cc080", warn="#e0a14a", bad="#f0796d", shade="#7c8896",
)  # fmt: skip


def palette(dark: bool) -> Palette:
    """Return the colours of a mode."""
    return DARK if dark else LIGHT


def material(p: Palette) -> dict[str, Any]:
    """Return the theme that the Material components of a mode are given."""
    return {
        "palette": {
            "mode": p.name,
            "primary": {"main": p.accent, "contrastText": p.on_accent},
            "success": {"main": p.good},
            "warning": {"main": p.warn},
            "error": {"main": p.bad},
            "background": {"default": p.page, "paper": p.surface},
            "text": {"primary": p.text, "secondary": p.muted},
            "divider": p.line,
        },
        "typography": {
            "fontFamily": FONT,
            "fontSize": 13,
            "button": {"textTransform": "none", "fontWeight": 550},
        },
        "shape": {"borderRadius": 6},
    }


def variables(p: Palette) -> str:
    """Return the colours of a mode as CSS variables; set on the page's root, all inherit them."""
    names = ("page", "surface", "raised", "line", "text", "muted", "accent", "good", "warn", "bad")
    values = "".join(f"--fw-{name}:{getattr(p, name)};" for name in names)
    return f":host{{{values}color-scheme:{p.name};color:var(--fw-text);font-family:{FONT};}}"


def in_header(p: Palette) -> dict[str, str]:
    """Return the `sx` of a button in the page's header, which is white there by itself."""
    return {"color": f"{p.accent} !important", "borderColor": f"{p.accent} !important"}


CARD = """
.scroll-button { display: none !important; }
:host { background: var(--fw-surface); border: 1px solid var(--fw-line); border-radius: 10px;
  box-sizing: border-box; overflow: hidden; }
"""
"""A panel of the screen."""


def style_figure(figure: Any, p: Palette) -> None:
    """Give a Bokeh figure the colours of a mode."""
    figure.background_fill_color = p.surface
    figure.border_fill_color = p.surface
    figure.outline_line_color = None
    for axis in (*figure.xaxis, *figure.yaxis):
        axis.axis_line_color = p.line
        axis.major_tick_line_color = p.line
        axis.minor_tick_line_color = None
        axis.major_label_text_color = p.muted
        axis.axis_label_text_color = p.muted
        axis.major_label_text_font = axis.axis_label_text_font = FONT
        axis.axis_label_text_font_style = "normal"
    for grid in (*figure.xgrid, *figure.ygrid):
        grid.grid_line_color = p.line
        grid.grid_line_alpha = 0.6
