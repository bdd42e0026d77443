"""The rules that flag a frame, and that a campaign keeps to them over an interruption."""

from collections import Counter

import numpy as np
import pytest

from core import worker
from core.calibration import Assessment
from core.campaign import events as ev
from core.campaign.learner import Learner
from core.campaign.loop import advance
from core.campaign.reader import CampaignReader
from core.campaign.rules import LIKELIER_OUTSIDE, REMEMBERED, Rule
from core.campaign.state import WINDOW, State
from core.settings import LabellingSettings, Settings, StructureSettings, TrustSettings

SURE = Assessment(0.99, 0.01, 0.05, (), within=0.99)
UNSURE = Assessment(0.4, 0.05, 0.2, ("energy",), within=0.4)
EACH, RUN = TrustSettings(promise="frame"), TrustSettings(promise="run", confidence=0.95)


class Asked:
    """A rule that is asked in the state of a campaign, which takes up what passes."""

    def __init__(self, rule, state):
        self.rule, self.state, self.watches = rule, state, rule.watches

    def __getattr__(self, name):
        return lambda *given: getattr(self.rule, name)(*given, self.state)

    def at(self, step, seen, sigma_force):
        found = self.rule.at(step, seen, sigma_force, self.state)
        checked = ev.FrameChecked(
            frame_id=step, step=step, key="", snapshot=1, reasons=found, within=seen.within
        )
        self.state, _ = advance(self.state, checked)
        return found


def rule(recent=(), within=(), trust=EACH, **given):
    settings = Settings(structure=StructureSettings(smiles="C"), trust=trust)
    state = State(settings, n_atoms=5, started=True, trusted=True, within=tuple(within))
    return Asked(Rule(LabellingSettings(**given), recent), state)


def unsure(within):
    return Assessment(0.99, 0.01, 0.2, ("force",), within=within)


def test_by_tolerance_the_assessment_decides():
    assert rule().at(7, SURE, 9.0) == () and rule().at(7, UNSURE, 0.0) == ("energy",)
    assert rule().watches and not rule(rule="sigma").watches and not rule(every=5).watches


def test_for_the_run_a_frame_passes_while_enough_are_expected_within():
    sure = [0.99] * 9
    assert rule(within=sure, trust=RUN).at(1, unsure(0.6), 0.1) == ()  # (8.91 + 0.6)/10 = 0.951
    assert rule(within=sure, trust=RUN).at(1, unsure(0.58), 0.1) == ("force",)  # 0.949
    assert rule(within=sure, trust=EACH).at(1, unsure(0.6), 0.1) == ("force",)
    assert rule(trust=RUN).at(1, unsure(0.94), 0.1) == ("force",)  # nothing to make up for it
    assert rule(within=[0.2] * 9, trust=RUN).at(1, SURE, 0.1) == ()  # no tolerance is at risk


def test_what_passed_by_other_tolerances_counts_no_more():
    passing = rule(within=[1.0] * 9, trust=RUN)
    for path, value, counts in (
        ("trust.confidence", 0.9, 9), ("trust.force_tolerance", 0.1, 0),
    ):  # fmt: skip
        passing.state, _ = advance(passing.state, ev.ChangeSetting(path=path, value=value))
        assert len(passing.state.within) == counts


def test_a_frame_that_may_break_a_tolerance_is_doubted_even_if_it_passes():
    passing = rule(within=[1.0] * WINDOW, trust=RUN)
    assert passing.doubts(1, unsure(0.9), 0.1) and not passing.asks(1, unsure(0.9), 0.1)
    assert not passing.doubts(1, SURE, 0.1)
    fixed = rule(rule="sigma", rule_value=0.1)
    assert fixed.doubts(1, SURE, 0.11) and not fixed.doubts(1, UNSURE, 0.09)


def test_what_passed_counts_against_the_next_and_what_is_labelled_does_not():
    passing = rule(within=[1.0] * (WINDOW - 1), trust=RUN)
    asked = [bool(passing.at(i, unsure(0.6), 0.1)) for i in range(20)]
    assert asked == [False] * 6 + [True] * 14  # six misses of 0.4 are 2.4 of 50, seven 2.8
    assert not passing.asks(21, SURE, 0.1)


def test_what_is_likelier_wrong_than_right_never_passes():
    passing = rule(within=[1.0] * WINDOW, trust=RUN)
    assert passing.asks(1, unsure(LIKELIER_OUTSIDE - 0.01), 0.1) == ("force",)
    assert passing.asks(1, unsure(LIKELIER_OUTSIDE + 0.01), 0.1) == ()


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
