import pytest

from app import wording
from app.state import Glance
from core.campaign.state import Query, State
from core.settings import from_dict

SETTINGS = from_dict({"structure": {"name": "CH3CH2OH"}})


def glance(alive=True, **given):
    return Glance(State(SETTINGS, n_atoms=9, **given), None, alive, at=0.0)


def query(status="waiting", reasons=("energy",), **given):
    numbers = dict.fromkeys(("sigma_energy", "sigma_force", "energy_bound", "force_bound"), 0.1)
    return Query(
        id=1, step=120, frame_id=3, key="k", reasons=reasons, probability=0.6, snapshot=1, at=0.0,
        energy_tolerance=0.02, force_tolerance=0.15, status=status, **numbers, **given,
    )  # fmt: skip


def test_a_frame_outside_what_the_labels_cover_is_said():
    assert wording.outside(None) == wording.outside(1.0) == wording.outside(float("nan")) == ""
    assert "3.2 times" in wording.outside(3.2) and "infinitely" in wording.outside(float("inf"))
    running = {"started": True, "trusted": True}
    assert wording.status(glance(**running, novelty=1.0)).detail.startswith("Flagged frames")
    assert "2.0 times as far" in wording.status(glance(**running, novelty=2.0)).detail


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "Ready"),
        ({"started": True}, "Simulating"),
        ({"started": True, "updating": True}, "Learning"),
        ({"started": True, "paused": "Paused by person."}, "Paused"),
        ({"started": True, "stopped": True}, "Stopped"),
        ({"started": True, "step": 5000, "trusted": True}, "Finished"),
        ({"failure": "Traceback\nModelError: no model"}, "Stopped by an error"),
        ({"started": True, "trusted": True, "queue": (query(),)}, "Your turn"),
        ({"started": True, "trusted": True, "queue": (query("labelling"),)}, "Labelling"),
    ],
)
def test_every_phase_has_a_word(given, word):
    assert wording.status(glance(**given)).word == word


def test_work_without_a_worker_is_called_stopped():
    assert wording.status(glance(alive=False, started=True)).word == "Engine stopped"
    assert wording.status(glance(alive=False)).word == "Ready"


def test_an_error_is_told_by_its_last_line():
    said = wording.status(glance(failure="Traceback\n  File\nModelError: no model"))
    assert said.detail == "ModelError: no model"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (float("nan"), "–"), (0.0, "0.01 s"), (0.42, "0.4 s"), (2.5, "2.5 s"), (9, "9 s"),
     (12.4, "12 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)  # fmt: skip
def test_durations_read_like_speech(seconds, text):
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("inf"), "–"), (0, "0"), (0.5, "0.50"), (0.0013, "0.0013"), (12.3, "12")],
)
def test_figures_are_significant(value, text):
    assert wording.figures(value) == text


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [
        (0.1034, 0.1, "0.103"), (0.09996, 0.1, "0.09996"), (0.1, 0.1, "0.10"), (0.13, 0.1, "0.13"),
        (0.1 + 1e-9, 0.1, "0.1000"), (0.1034, None, "0.10"), (float("nan"), 0.1, "–"),
    ],
)  # fmt: skip
def test_a_bound_is_told_from_its_tolerance(value, limit, text):
    assert wording.beside(value, limit) == text


def test_reasons_name_what_may_be_wrong():
    both = wording.reasons(query(reasons=("energy", "force")))
    assert both.startswith("The energy and a force may be off")
    all_three = wording.reasons(query(reasons=("energy", "force", "stress")))
    assert all_three.startswith("The energy, a force and the stress may be off")
    assert wording.reasons(query(reasons=("stress",))).startswith("The stress may be off")
    assert "offset" in wording.reasons(query(reasons=("initial",)))
    assert "within the tolerances" in wording.reasons(query(reasons=()))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (1.9, "now"), (2, "2 s ago"), (119, "119 s ago"), (150, "2 min ago"),
     (7199, "119 min ago"), (7300, "2 h ago")],
)  # fmt: skip
def test_how_long_ago_is_one_whole_number(seconds, text):
    assert wording.age(seconds) == text


def test_the_share_expected_within_stands_beside_what_was_asked():
    assert wording.expected_within(State(SETTINGS, n_atoms=9)) == "– <small>asked 95</small>"
    text = wording.expected_within(State(SETTINGS, n_atoms=9, within=(1.0, 0.9, 0.98)))
    assert "96 % <small>asked 95</small>" in text and "last 3 checks" in text
