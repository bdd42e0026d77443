"""Units at the border. Inside the program: eV, Å, fs, K; quantities typed by people pass here."""

from __future__ import annotations

import math
import re

from core.errors import SettingsError

KCAL_PER_MOL = 0.0433641153087705
"""One kcal/mol in eV."""

BOLTZMANN = 8.617333262145e-5
"""Boltzmann's constant in eV/K."""

ENERGY_UNITS = {
    "eV": 1.0,
    "meV": 1e-3,
    "kcal/mol": KCAL_PER_MOL,
    "kJ/mol": KCAL_PER_MOL / 4.184,
    "Hartree": 27.211386245988,
}
FORCE_UNITS = {
    "eV/Å": 1.0,
    "eV/A": 1.0,
    "meV/Å": 1e-3,
    "meV/A": 1e-3,
    "kcal/mol/Å": KCAL_PER_MOL,
    "kcal/mol/A": KCAL_PER_MOL,
    "Hartree/Bohr": 27.211386245988 / 0.529177210903,
}

STRESS_UNITS = {"eV/Å³": 1.0, "GPa": 1 / 160.21766208, "kbar": 1 / 1602.1766208}
GPA = STRESS_UNITS["GPa"]
"""One gigapascal in eV/Å³."""

_QUANTITY = re.compile(r"\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(.*?)\s*")


def parse_quantity(text: str | float, units: dict[str, float], what: str) -> float:
    """Return `text` ("0.5 kcal/mol", or a bare number already in the inner unit) as a float.

    Raises:
        SettingsError: no number, or a unit that is not in `units`.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return float(text)
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    names = [name for name in units if not name.endswith("/A")]
    accepted = ", ".join(names)
    try:
        value = float(match.group(1)) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or math.isnan(value):
        raise SettingsError(
            f"{what}: {text!r} is not a number with a unit; write for example '0.5 {names[0]}' "
            f"(accepted units: {accepted})."
        )
    unit = match.group(2) or names[0]
    if unit not in units:
        raise SettingsError(
            f"{what}: the unit {unit!r} in {text!r} is not known; accepted: {accepted}."
        )
    return value * units[unit]


def parse_energy(text: str | float, what: str = "energy") -> float:
    """Return an energy in eV from "0.5 kcal/mol", "20 meV" or a number in eV."""
    return parse_quantity(text, ENERGY_UNITS, what)


def parse_stress(text: str | float, what: str = "stress") -> float:
    """Return a stress in eV/Å³ from "0.2 GPa", "2 kbar" or a number in eV/Å³."""
    return parse_quantity(text, STRESS_UNITS, what)


def parse_force(text: str | float, what: str = "force") -> float:
    """Return a force in eV/Å from "0.15 eV/Å", "3 kcal/mol/Å" or a number in eV/Å."""
    return parse_quantity(text, FORCE_UNITS, what)
