"""What the screen says: phases, reasons and numbers in a chemist's words. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from app.state import Glance
from core import geometry
from core.campaign.state import OUTSIDE, Query, State
from core.settings import Settings
from core.units import KCAL_PER_MOL

MODES = {"approve": "Ask me", "threshold": "Automatic", "batch": "In batches"}
"""Who decides about a flagged frame, as the person chooses it."""

MODE_HELP = {
    "approve": "Every frame above a tolerance waits for your decision.",
    "threshold": "Frames above a tolerance are labelled without asking.",
    "batch": "Frames collect; a diverse batch is proposed and decided as one.",
}


@dataclass(frozen=True)
class Status:
    """What the campaign is doing: a word, a sentence, and how it is toned.

    `tone` is one of "idle", "busy", "ask", "bad", "done".
    """

    word: str
    detail: str
    tone: str


def count(number: int) -> str:
    """Return 12345 as "12 345", with spaces that do not break."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def figures(value: float | None, digits: int = 2) -> str:
    """Return a number with so many significant digits; a dash where it is not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 6)}f}"


def beside(value: float, limit: float | None, digits: int = 2) -> str:
    """Return a number with as many digits as tell it from the limit it is shown beside, up to 4."""
    shown = figures(value, digits)
    if limit is None or value == limit or not math.isfinite(value):
        return shown
    while digits < 4 and float(shown) == float(figures(limit, digits)):
        digits += 1
        shown = figures(value, digits)
    return shown


def duration(seconds: float | None) -> str:
    """Return "0.4 s", "12 s", "3 min 05 s" or "2 h 10 min"."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 1:
        return f"{max(seconds, 0.01):.1g} s"
    if seconds < 10:
        return f"{seconds:.3g} s" if seconds == int(seconds) else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def roughly(seconds: float | None) -> str:
    """Return "12 s", "31 min" or "2.5 h": a time that is estimated."""
    if seconds is None or seconds < 90:
        return duration(seconds)
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.2g} h"


def age(seconds: float | None) -> str:
    """Return how long ago something was, in one whole unit, so that it does not flicker."""
    if seconds is None:
        return "–"
    if seconds < 2:
        return "now"
    size, unit = next((s, u) for s, u in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= 2 * s)
    return f"{math.floor(seconds / size)} {unit} ago"


def kcal(energy: Any) -> Any:
    """Return an energy, or an array of them, in eV as kcal/mol."""
    return energy / KCAL_PER_MOL


def formula(text: str) -> str:
    """Return "C2H6O" with subscripts, as HTML."""
    return "".join(f"<sub>{c}</sub>" if c.isdigit() else c for c in text)


def method(reference: str) -> str:
    """Return a level of theory as it is written in papers."""
    names = {"gfn1-xtb": "GFN1-xTB", "gfn2-xtb": "GFN2-xTB"}
    if reference.startswith("teacher:"):
        return "teacher potential"
    if reference.startswith(("dft:", "ase:")):
        return reference.partition(":")[2].partition(" ")[0]
    return names.get(reference, reference)


def outside(novelty: float | None) -> str:
    """Return the warning that a frame lies outside what the labels cover; "" where it does not."""
    if novelty is None or not novelty > OUTSIDE:
        return ""
    far = f"{novelty:.1f} times" if math.isfinite(novelty) else "infinitely"
    return (
        f"Outside what the labels cover, {far} as far as any label from the others: "
        "the bounds may be too small here."
    )


def conditions(settings: Settings) -> str:
    """Return temperature, model and reference in one line."""
    kelvin = f"{settings.dynamics.temperature_K:g} K"
    model = settings.potential.model.rstrip("/").rsplit("/", 1)[-1]
    return f"{kelvin} · {model} model · {method(settings.labelling.reference)} labels"


def status(glance: Glance) -> Status:
    """Say what a campaign is doing."""
    state = glance.state
    reference = method(state.settings.labelling.reference)
    if glance.stuck is not None and not glance.alive:
        return Status("Engine does not start", f"The reason is in {glance.stuck}.", "bad")
    if glance.orphaned:
        return Status(
            "Engine stopped", "Nothing is lost. Press Start to go on from the last frame.", "bad"
        )
    match state.phase:
        case "ready":
            return Status("Ready", "Press Start: the atoms begin to move.", "idle")
        case "running":
            return _running(state)
        case "deciding":
            return _deciding(state)
        case "labelling":
            n = len(state.ids("approved", "labelling"))
            return Status("Labelling", f"{reference} computes {frames(n)}.", "busy")
        case "updating":
            return Status("Learning", "The model takes in the new labels.", "busy")
        case "paused":
            return Status("Paused", state.paused or "", "idle")
        case "failed":
            return Status("Stopped by an error", _last_line(state.failure), "bad")
    if state.stopped:
        return Status("Stopped", "Press Start to go on from here.", "idle")
    done = f"All {count(state.steps_total)} steps are done. Settings can add more."
    return Status("Finished", done, "done")


def _last_line(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return lines[-1][:300] if lines else ""


def _running(state: State) -> Status:
    if state.collecting:
        found = len(state.ids("waiting", "approved", "labelling", "labelled", "trained"))
        wanted = state.settings.trust.initial_labels
        return Status(
            "Simulating", f"Collecting first frames to label: {found} of {wanted}.", "busy"
        )
    if not state.trusted:
        return Status("Simulating", "The first labels are on their way.", "busy")
    usual = f"Flagged frames: {MODES[state.mode].lower()}."
    return Status("Simulating", outside(state.novelty) or usual, "busy")


def _deciding(state: State) -> Status:
    if failed := state.ids("failed"):
        return Status("Your turn", f"{frames(len(failed))} could not be labelled.", "ask")
    if state.proposing:
        return Status("Choosing a batch", "Picking the frames that tell most together.", "busy")
    n = len(state.proposal or state.ids("waiting"))
    return Status(
        "Your turn", f"{frames(n)} {'waits' if n == 1 else 'wait'} for a decision.", "ask"
    )


def frames(n: int) -> str:
    """Return "1 frame" or "3 frames"."""
    return "1 frame" if n == 1 else f"{n} frames"


def reasons(query: Query) -> str:
    """Say in one sentence why a frame was flagged."""
    if "initial" in query.reasons:
        return "One of the first frames: its label sets the energy offset and the calibration."
    if "chosen" in query.reasons:
        return "Chosen on the map, for what its label would tell beside the others."
    said = []
    if "energy" in query.reasons:
        said.append("the energy")
    if "force" in query.reasons:
        said.append("a force")
    if "stress" in query.reasons:
        said.append("the stress")
    if not said:
        return "The model has since learned enough: this frame is within the tolerances."
    what = f"{', '.join(said[:-1])} and {said[-1]}" if said[1:] else said[0]
    return f"{what[0].upper()}{what[1:]} may be off by more than the tolerance."


def expected_within(state: State) -> str:
    """Return the share of the last unlabelled frames that is expected within all tolerances."""
    asked = f"<small>asked {100 * state.settings.trust.confidence:g}</small>"
    if not state.within:
        return f"– {asked}"
    share = 100 * sum(state.within) / len(state.within)
    return (
        f'<span title="Of the last {len(state.within)} checks without a label, the share expected '
        f'within all tolerances.">{share:.0f} % {asked}</span>'
    )


def decider(who: str) -> str:
    """Say who decided about a frame."""
    return {"threshold": "automatically", "model": "by the model"}.get(who, f"by {who}")


def abbreviated(path: Path) -> str:
    """Return a path with "~" for the home directory."""
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)


def cost(glance: Glance, frames: int = 1) -> str:
    """Say what labels would cost, from those bought so far."""
    if glance.label_s is None:
        return "not known before the first label"
    return f"about {duration(glance.label_s * frames)}"


def frame_status(kind: str, *, rewound: bool = False, labelled: bool = False) -> str:
    """Return what became of a stored frame: "flagged", "labelled, rewound"."""
    word = "labelled" if labelled else kind
    return f"{word}, rewound" if rewound else word


def coordinate(atoms: Sequence[int], numbers: Sequence[int]) -> str:
    """Return "Distance C1–C2" for the internal coordinate of `atoms`; they count from 0."""
    names = "–".join(f"{chemical_symbols[numbers[i]]}{i + 1}" for i in atoms)
    return f"{geometry.NAMES[len(atoms)].capitalize()} {names}"
