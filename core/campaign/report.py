"""What happened so far, as figures and as lines for a terminal. Reads only; loads no torch."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

import numpy as np

from core.campaign import events as ev
from core.campaign.reader import CampaignReader
from core.campaign.state import LABELLED, State
from core.campaign.store import LabelRow
from core.units import KCAL_PER_MOL


def summary(reader: CampaignReader) -> dict[str, Any]:
    """Return the figures of a campaign as JSON values.

    coverage: of labels bought because a frame was flagged, the fraction whose error lay within the
    interval shown for it. expected_within: mean P(within all tolerances) of the frames that were
    kept without a label. wall_s: time with a worker at work, all sessions together.
    """
    state = reader.state()
    events = [event for _, event in reader.events_since(0)]
    inside = within_interval(reader.labels(), state)
    frames = reader.frames_since(1)
    kinds = Counter(frames["kind"].tolist())
    kept = (frames["kind"] == "trusted") & (frames["rewound"] == 0)
    within = frames["within"][kept & np.isfinite(frames["within"])]
    updates = [e.seconds for e in events if isinstance(e, ev.Updated)][1:]
    return {
        "phase": state.phase,
        "reason": state.failure or state.paused,
        "steps": state.step,
        "steps_total": state.steps_total,
        "steps_run": state.steps_run,
        "labels": state.n_labels,
        "labels_by_reason": dict(_reasons(state)),
        "labels_failed": sum(q.failure is not None for q in state.queue),
        "wall_s": round(worked(events), 3),
        "trusted": state.trusted,
        "untrusted_steps": _untrusted_steps(state, events),
        "checks": dict(kinds),
        "coverage": sum(inside) / len(inside) if inside else None,
        "expected_within": float(within.mean()) if len(within) else None,
        "intervention_median_s": statistics.median(updates) if updates else None,
        "intervention_max_s": max(updates, default=None),
        "updates": sum(isinstance(e, ev.Updated) for e in events),
        "updates_refused": state.updates_refused,
        "rewinds": state.rewinds,
        "queue": dict(state.counts),
        "energy_tolerance_eV": state.energy_tolerance,
        "mode": state.mode,
    }


def _reasons(state: State) -> Counter[str]:
    return Counter("+".join(q.reasons) for q in state.queue if q.status in LABELLED)


def worked(events: list[ev.Event]) -> float:
    """Return the seconds from each start of a worker to its last event."""
    total, began, last = 0.0, None, 0.0
    for event in events:
        if isinstance(event, ev.WorkerStarted):
            total += last - began if began is not None else 0.0
            began = event.at
        last = event.at
    return total + (last - began if began is not None else 0.0)


def _untrusted_steps(state: State, events: list[ev.Event]) -> int:
    """Return the step at which trust began, or the present one."""
    step = 0
    for event in events:
        if isinstance(event, ev.Updated):
            return step
        if isinstance(event, ev.FrameChecked):
            step = event.step
    return state.step


def within_interval(labels: list[LabelRow], state: State) -> list[bool]:
    """Say of each label bought because a frame was flagged if its error kept to the interval."""
    inside = []
    for label in labels:
        query = state.query(label.query_id)
        if label.predicted is not None and "initial" not in query.reasons:
            inside.append(abs(label.energy - label.predicted) <= query.energy_bound)
    return inside


def lines(figures: dict[str, Any]) -> list[str]:
    """Return the summary as lines for people."""
    reason = figures["reason"]
    trust = "trusted" if figures["trusted"] else "not trusted yet"
    reasons = ", ".join(f"{n} {name}" for name, n in figures["labels_by_reason"].items())
    shown = [
        figures["phase"] + (f": {reason.strip().splitlines()[-1]}" if reason else ""),
        f"steps      {figures['steps']} of {figures['steps_total']}, {trust} "
        f"({figures['untrusted_steps']} untrusted, {figures['rewinds']} rewinds)",
        f"labels     {figures['labels']}" + (f" ({reasons})" if reasons else ""),
        f"tolerance  {figures['energy_tolerance_eV'] / KCAL_PER_MOL:.3g} kcal/mol, "
        f"mode {figures['mode']}",
        f"updates    {figures['updates']}, {figures['updates_refused']} refused",
    ]
    waiting = {k: n for k, n in figures["queue"].items() if k in ("waiting", "failed")}
    if waiting:
        shown.append("to decide  " + ", ".join(f"{n} {name}" for name, n in waiting.items()))
    if figures["intervention_median_s"] is not None:
        shown.append(
            f"waits      {figures['intervention_median_s']:.2f} s median, "
            f"{figures['intervention_max_s']:.2f} s longest"
        )
    if figures["expected_within"] is not None:
        share = 100 * figures["expected_within"]
        shown.append(f"expected   {share:.1f} % of unlabelled frames within the tolerances")
    if figures["coverage"] is not None:
        shown.append(f"coverage   {100 * figures['coverage']:.0f} % of labels inside the interval")
    return [*shown, f"time       {figures['wall_s']:.0f} s of work"]
