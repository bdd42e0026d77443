"""What a person is told who looks elsewhere: notices, and the name on the browser's tab."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app import wording
from app.state import Glance

Tone = Literal["info", "success", "warning", "error"]

MARKS = {"ask": "● ", "bad": "▲ ", "done": "✓ "}
"""Before the name on the tab, by the tone of the state."""


@dataclass(frozen=True)
class Notice:
    """One line that appears and goes."""

    tone: Tone
    text: str


def notices(before: Glance, after: Glance) -> list[Notice]:
    """Return what happened between two glances that matters to whoever is not looking."""
    found = []
    was, now = before.state, after.state
    if now.trusted and not was.trusted:
        found.append(
            Notice("success", "The first labels are learned: from here on the model is trusted.")
        )
    failed = {q.id for q in was.queue if q.status == "failed"}
    found += [
        Notice("warning", f"No label for step {wording.count(q.step)}: {q.failure}")
        for q in now.queue
        if q.status == "failed" and q.id not in failed
    ]
    if now.updates_refused > was.updates_refused:
        found.append(Notice("warning", _refused(before, after)))
    said = wording.status(after)
    stopped = after.orphaned or after.stuck is not None or now.phase == "failed"
    if stopped and said.word != wording.status(before).word:
        found.append(Notice("error", f"{said.word}. {said.detail}"))
    if now.phase != was.phase:
        if now.phase == "finished" and not now.stopped:
            found.append(Notice("success", said.detail))
        if now.phase == "paused" and now.paused and not now.paused.startswith("Paused by"):
            found.append(Notice("warning", f"Paused. {now.paused}"))
    return found


def _refused(before: Glance, after: Glance) -> str:
    """Return what became of new weights that the canary did not let in, and of bad labels."""
    known = {q.id for q in before.state.queue if q.status == "withdrawn"}
    aside = [q for q in after.state.queue if q.status == "withdrawn" and q.id not in known]
    text = "New weights were refused; the simulation goes on with the former ones."
    if aside:
        steps = ", ".join(wording.count(q.step) for q in aside)
        text += f" The label of step {steps} contradicts what is known and was set aside."
    return text


def tab_name(glance: Glance, title: str) -> str:
    """Return the name on the browser's tab: it says whether the campaign needs somebody."""
    said = wording.status(glance)
    mark = MARKS.get(said.tone, "")
    return f"{mark}{said.word} · {title} · Flywise" if mark else f"{title} · Flywise"
