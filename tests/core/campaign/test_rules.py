"""The rules that flag a frame, and that a campaign keeps to them over an interruption."""

from collections import Counter

import numpy as np
import pytest

from core import worker
from core.calibration import Assessment
from core.campaign import events as ev
from core.campaign.export import frame_text
from core.campaign.learner import Learner
from core.campaign.loop import advance
from core.campaign.reader import CampaignReader
from core.campaign.report import summary
from core.campaign.rules import REMEMBERED, Rule
from core.campaign.state import WINDOW, State
from core.settings import LabellingSettings, Settings, StructureSettings

SURE = Assessment(0.99, 0.01, 0.05, (), within=0.99)
UNSURE = Assessment(0.4, 0.05, 0.2, ("energy",), within=0.4)


def rule(recent=(), **given):
    return Rule(LabellingSettings(**given), recent)


def test_by_tolerance_the_assessment_decides():
    assert rule().at(7, SURE, 9.0) == () and rule().at(7, UNSURE, 0.0) == ("energy",)
    assert rule().watches and not rule(rule="sigma").watches and not rule(every=5).watches


def test_the_share_expected_within_is_of_the_last_frames_without_a_label():
    settings = Settings(structure=StructureSettings(smiles="C"))
    state = State(settings, n_atoms=5, started=True, trusted=True)

    def checked(within, reasons=()):
        return ev.FrameChecked(
            frame_id=1, step=1, key="", snapshot=1, reasons=reasons, within=within
        )

    for event in (checked(0.9), checked(0.2, ("force",)), checked(None), checked(0.8)):
        state, _ = advance(state, event)
    assert state.within == (0.9, 0.8)
    for path, value, counts in (
        ("trust.confidence", 0.9, 2), ("trust.force_tolerance", 0.1, 0),
    ):  # fmt: skip
        state, _ = advance(state, ev.ChangeSetting(path=path, value=value))
        assert len(state.within) == counts, path
    for _ in range(WINDOW + 5):
        state, _ = advance(state, checked(0.99))
    assert state.within == (0.99,) * WINDOW


def test_the_share_expected_within_is_kept_reported_and_exported(finished):
    with CampaignReader(finished) as reader:
        rows, state, told = reader.frames_since(1), reader.state(), summary(reader)
        text = frame_text(reader.structure, reader.frame(int(rows["id"][-1])), None, None)
    within = rows["within"][(rows["kind"] == "trusted") & (rows["rewound"] == 0)]
    assert len(within) and ((within > 0) & (within <= 1)).all()
    assert state.within == tuple(within[-WINDOW:])
    assert told["expected_within"] == pytest.approx(within.mean())
    assert "within=" in text


def test_every_nth_step_whatever_the_model_says():
    periodic = rule(every=5)
    assert periodic.at(10, SURE, 0.0) == ("periodic",) and periodic.at(11, UNSURE, 9.0) == ()


def test_a_fixed_threshold_on_sigma():
    fixed = rule(rule="sigma", rule_value=0.1)
    assert fixed.at(1, UNSURE, 0.09) == () and fixed.at(2, SURE, 0.11) == ("force",)


def test_the_running_mean_is_that_of_the_frames_before():
    moving = rule(rule="moving-average", rule_value=0.5)
    assert moving.at(1, SURE, 1.0) == ()  # nothing before it
    assert moving.at(2, SURE, 1.4) == () and moving.at(3, SURE, 1.81) == ("force",)
    mean = (1.0 + 1.4 + 1.81) / 3
    assert moving.reasons(SURE, 1.49 * mean) == () and moving.reasons(SURE, 1.51 * mean)
    old = rule(rule="moving-average", rule_value=0.5, recent=[100.0] + [1.0] * REMEMBERED)
    assert old.at(9, SURE, 1.6) == ("force",)  # the hundred is forgotten


@pytest.mark.parametrize("value", [0.01, 1e6])
def test_a_campaign_by_the_running_mean(tmp_path, make_settings, value):
    def flagged(directory):
        with CampaignReader(directory) as reader:
            rows = reader.frames_since(0)
        return rows["step"][rows["kind"] == "flagged"].tolist(), rows

    given = {"labelling__rule": "moving-average", "labelling__rule_value": value}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for directory in (whole, parts):
        worker.prepare(directory, make_settings(**given))
    worker.run_inline(whole)
    worker.run_inline(parts, until=lambda state: state.trusted and state.step >= 60)
    worker.run_inline(parts)
    steps, rows = flagged(whole)
    assert flagged(parts)[0] == steps and bool(steps) == (value < 1)
    judged = rows["sigma_force"][rows["kind"] != "untrusted"]
    over = [s > (1 + value) * np.mean(judged[:i]) for i, s in enumerate(judged) if i]
    assert sum(over) == len(steps)


def test_to_ask_is_not_to_remember():
    moving = rule(rule="moving-average", rule_value=0.5, recent=[1.0])
    assert moving.asks(1, SURE, 1.6) and moving.asks(1, SURE, 1.6)
    assert moving.at(1, SURE, 1.6) == ("force",) and not moving.asks(2, SURE, 1.6)
    assert rule(every=5).asks(10, SURE, 0.0) and not rule(every=5).asks(11, UNSURE, 9.0)


def test_few_samples_judge_a_step_and_all_decide_whether_to_pay_for_a_label(
    tmp_path, make_settings, monkeypatch
):
    judge, told = Learner.judge, []

    def judged(self, knowledge, structure, *, quick=False):
        told.append((structure.key, quick))
        return judge(self, knowledge, structure, quick=quick)

    monkeypatch.setattr(Learner, "judge", judged)
    worker.prepare(tmp_path, make_settings(trust__force_tolerance=2e-4))
    worker.run_inline(tmp_path)
    with CampaignReader(tmp_path) as reader:
        keys = {q.frame_id for q in reader.state().queue if "initial" not in q.reasons}
    by_all = Counter(key for key, quick in told if not quick)
    twice = [key for key, times in by_all.items() if times == 2]  # to flag it, and to score it
    assert len(twice) == len(keys) and len(by_all) < len({key for key, _ in told})
