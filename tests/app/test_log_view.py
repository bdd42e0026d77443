import time
from dataclasses import fields, replace

import pytest

from app import state as app_state
from app.views import log
from app.views.log import Log, by_step, describe, topic_of, who
from core.campaign import events as ev
from core.campaign.store import Store
from core.worker import LOG

from .test_wording import glance, query

VALUES = {
    "int": 3, "float": 0.5, "float | None": 0.5, "tuple[int, ...]": (1, 2),
    "tuple[str, ...]": ("energy",),
    "dict[str, Any]": {}, "Any": 300.0,
}  # fmt: skip
"""Type of a field -> a value; text for all others."""


def example(kind):
    """An event of a kind with every field filled in."""
    given = {
        f.name: VALUES.get(f.type, "text") for f in fields(kind) if f.name not in ("at", "who")
    }
    if kind is ev.ChangeSetting:
        given["path"] = "dynamics.temperature_K"
    return kind(**given)


@pytest.fixture
def campaign(argon, monkeypatch):
    monkeypatch.setattr(app_state, "FRESH_S", 0.0)
    return app_state.campaign(argon())


def journal(campaign, *events):
    keeper = Store(campaign.directory)
    for event in events:
        keeper.add_event(event)
    keeper.close()


@pytest.mark.parametrize("kind", ev.KINDS.values(), ids=list(ev.KINDS))
def test_every_kind_of_event_has_a_sentence(kind):
    said = describe(example(kind))
    assert kind in log._SENTENCES, f"{kind.__name__} has only the generic sentence {said!r}"
    assert said[0].isupper() and "None" not in said and "{" not in said


def test_compiled_steps_are_told_with_what_they_save_or_why_there_are_none():
    made = ev.StepCompiled(step=120, before_ms=5.81, after_ms=0.795)
    assert describe(made) == "Steps are compiled from step 120 on: 5.8 → 0.8 ms each."
    failed = ev.StepCompiled(step=60, problem="InvalidCxxCompiler: No working C++ compiler found")
    assert "could not be compiled: InvalidCxxCompiler: No working C++" in describe(failed)


def test_an_unknown_kind_has_a_generic_sentence():
    class MoonRose(ev.Fact):
        pass

    assert (describe(MoonRose()), topic_of(MoonRose())) == ("Moon rose.", "run")


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (ev.Approve(ids=(4,)), "Approved frame 4 for labelling."),
        (ev.Reject(ids=(1, 2)), "Rejected 2 frames."),
        (ev.ChangeSetting(path="dynamics.temperature_K", value=350.0), "Temperature set to 350 K."),
        (
            ev.ChangeSetting(path="trust.force_tolerance", value=None),
            "Force tolerance set to none.",
        ),
        (
            ev.ChangeSetting(path="trust.energy_tolerance", value=0.0433641153087705),
            "Energy tolerance set to 1 kcal/mol.",
        ),
        (ev.ChangeSetting(path="labelling.mode", value="approve"), "Flagged frames set to ask me."),
        (ev.WorkerFailed(traceback="Traceback\nOSError: full"), "an error: OSError: full"),
        (ev.LabelFailed(query_id=2, failure="timeout"), "frame 2 (timeout): no reason given"),
    ],
)
def test_sentences_say_what_happened(event, text):
    assert text in describe(event)


def test_frames_are_named_by_their_step():
    names = by_step((query(),))
    assert describe(ev.LabelArrived(query_id=1, wall_s=0.4), names) == (
        "Labelled the frame at step 120 in 0.4 s."
    )
    assert "frame 2" in describe(ev.LabelArrived(query_id=2), names)


def test_newest_first_with_who_decided_and_without_trusted_frames(campaign):
    view = Log(campaign)
    view.update(campaign.glance())
    assert "Nothing yet" in view._lines.object
    checked = ev.FrameChecked(frame_id=2, step=10, key="k", snapshot=0)
    journal(campaign, ev.Start(who="page 1", at=1.0), replace(checked, at=2.0), ev.Pause(at=3.0))
    view.update(campaign.glance())
    page = view._lines.object
    assert page.count("<li") == 2 and page.index("Paused.") < page.index("Started.")
    assert "page 1" in page and who(checked) == ""


def test_only_the_topic_asked_for_is_shown(campaign):
    view = Log(campaign)
    journal(campaign, ev.Start(), ev.WorkerStarted(pid=7), ev.UpdateRefused(reason="<b>unstable"))
    view.update(campaign.glance())
    view._topic.value = "Problems"
    page = view._lines.object
    assert page.count("<li") == 1 and "&lt;b&gt;unstable" in page


def test_a_long_journal_is_read_in_slices_and_shown_in_pages(campaign):
    keeper = Store(campaign.directory)
    with keeper.transaction():
        keeper.add_event(ev.Start(at=0.0))
        for second in range(1, log.SLICE + 20):
            keeper.add_event(ev.WorkerStarted(pid=second, at=float(second)))
    keeper.close()
    view = Log(campaign)
    view.update(campaign.glance())
    assert len(view._read.lines) == log.SLICE
    view.update(campaign.glance())
    assert len(view._read.lines) == log.SLICE + 20
    assert f"process {log.SLICE + 19})" in view._lines.object
    assert view._lines.object.count("<li") == log.PAGE
    assert view._newer.disabled and not view._older.disabled
    for _ in range(20):
        view._turn(1)
    assert "Started." in view._lines.object and view._older.disabled


def test_lines_are_capped(campaign, monkeypatch):
    monkeypatch.setattr(log, "KEPT", 3)
    view = Log(campaign)
    journal(campaign, ev.Start(at=0.0), *(ev.WorkerStarted(pid=i, at=float(i)) for i in (1, 2, 3)))
    view.update(campaign.glance())
    assert [line.at for line in view._read.lines] == [3.0, 2.0, 1.0]


def test_a_refused_command_is_a_problem_with_its_reason(campaign):
    view = Log(campaign)
    number = campaign.post(ev.Undo(who="page 2"))
    view.update(campaign.glance())
    assert "Refused" not in view._lines.object
    keeper = Store(campaign.directory)
    keeper.finish_command(number, "There is nothing to take back.")
    keeper.close()
    for _ in range(3):
        view.update(campaign.glance())
    page = view._lines.object
    assert page.count("Refused: The last decision was taken back. There is nothing") == 1
    assert "page 2" in page


def test_after_a_failure_the_last_the_engine_wrote_is_shown(campaign):
    view = Log(campaign)
    (campaign.directory / LOG).write_text("\n".join(f"line {i}" for i in range(100)) + "\n<end>")
    view.update(campaign.glance())
    assert "<pre>" not in view._lines.object
    view.update(glance(failure="broken"))
    page = view._lines.object
    assert "&lt;end&gt;" in page and page.count("line ") == log.TAIL - 1


def test_nothing_is_drawn_twice(campaign):
    view = Log(campaign)
    journal(campaign, ev.Start())
    view.update(campaign.glance())
    drawn = []
    view._lines.param.watch(drawn.append, "object")
    view.update(campaign.glance())
    assert drawn == []


def test_the_time_of_another_day_has_its_date():
    assert "<br>" in log._clock(0.0) and "<br>" not in log._clock(time.time())
