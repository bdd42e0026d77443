"""Fine-tunings beside a campaign: the processes, and what the tab shows of them."""

import time

import pytest

from app import state as app_state
from app.lease import Lease
from app.seat import Seat
from app.views import finetuning
from app.views.finetuning import Finetuning, side_by_side
from core import settings, worker
from core.campaign import study
from core.campaign.study import Study
from core.errors import InputError
from core.finetuning.strategies import STRATEGIES


def done(number=1, strategy="lora", **receipt):
    pair = [{"frames": 9, "force": 0.1, "force_mae": 0.05, "energy_within": 0.002}]
    pair.append({"frames": 9, "force": 0.03, "force_mae": 0.02, "energy_within": 0.001})
    errors = {"trained": pair, "foundation's own": pair}
    given = {"errors": errors, "seconds": 12.0, "notes": ["One composition."]} | receipt
    return Study(number, None, strategy, 300, 9, 0.0, "done", receipt=given)


@pytest.fixture(scope="module")
def molecule(tmp_path_factory):
    """A short campaign of a real molecule, whose model can be fine-tuned."""
    folder = tmp_path_factory.mktemp("molecule")
    given = settings.from_dict(
        {
            "structure": {"name": "CH4"}, "dynamics": {"steps": 40},
            "trust": {"initial_labels": 3, "initial_stride": 10},
            "posterior": {"iterations": 1, "members": 4},
        }
    )  # fmt: skip
    app_state.create(folder / "methane", given)
    worker.run_inline(folder / "methane")
    return folder / "methane"


def wait_for_the_end(directory):
    """Processes of their own tell nobody when they end: they are looked at now and then."""
    end = time.monotonic() + 120
    while study.studies(directory)[-1].status == "running" and time.monotonic() < end:
        time.sleep(0.3)


def test_every_strategy_has_words():
    assert list(finetuning.STRATEGIES) == list(STRATEGIES)


def test_strategies_stand_side_by_side_below_what_was_before():
    page = side_by_side([done(1), done(2, "naive")], here=2)
    assert page.index("Before") < page.index("1 · Low rank") < page.index("2 · All weights")
    assert page.count("<td>30</td>") == 2 and "<td>100</td>" in page and 'class="here"' in page
    assert "it was trained on" in page
    held = done(
        1, errors=done().receipt["errors"] | {"held out": done().receipt["errors"]["trained"]}
    )
    assert "labels held out" in side_by_side([held], 1)


def test_one_label_alone_has_no_error_within_its_composition():
    errors = done().receipt["errors"]
    alone = done(errors=errors | {"validation": [e | {"frames": 1} for e in errors["trained"]]})
    page = side_by_side([alone], 1)
    assert "set aside" in page and page.count("<td>–</td>") == 2


def test_another_strategy_is_tried_beside_the_campaign(molecule):
    campaign = app_state.campaign(molecule)
    warned = []
    seat = Seat(campaign, Lease(), warned.append)
    view = Finetuning(campaign, seat)
    view.update(campaign.glance())
    assert view._go.disabled, "this page does not drive"
    view._act(view._begin)
    assert warned and study.studies(molecule) == []
    seat.identify("s" * 32)
    view._strategy.value, view._steps.options = "freeze-readouts", {"Few": 6}
    view._steps.value = 6
    view._act(view._begin)
    (begun,) = study.studies(molecule)
    assert begun.status == "running" and begun.n_labels >= 3
    with pytest.raises(InputError, match="under way"):
        study.start(molecule, "naive", steps=5, model="bundled")
    wait_for_the_end(molecule)
    (ended,) = study.studies(molecule)
    assert ended.status == "done", ended.problem
    moved = {b["part"] for b in ended.receipt["blocks"] if b["before"] != b["after"]}
    assert moved == {"readout"} and len(ended.epochs) == ended.epochs_total
    view._looked = 0.0
    view.update(campaign.glance())
    assert view._runs.rows[0]["status"] == "done" and "Readouts only" in view._table.object
    receipt = view._table.object
    assert "<td>readout</td><td>3 of 3</td>" in receipt and "<td>product</td><td>0 of " in receipt
    assert "Energies of isolated atoms: estimated" in receipt and "Weights " in receipt
    assert len(view._curve.data["loss"]) == ended.epochs_total
    assert len(view._parity.data["after"]) == len(view._parity.data["reference"]) > 10


def test_one_that_fails_says_why(molecule):
    number = study.start(molecule, "naive", steps=5, model="lennard-jones")
    wait_for_the_end(molecule)
    failed = study.studies(molecule)[-1]
    assert (
        failed.number == number and failed.status == "failed" and "does not know" in failed.problem
    )


def test_one_that_is_stopped_goes_on_after_its_last_epoch(molecule):
    campaign, warned = app_state.campaign(molecule), []
    seat = Seat(campaign, Lease(), warned.append)
    view = Finetuning(campaign, seat)
    study.start(molecule, "naive", steps=150, model="bundled")
    end = time.monotonic() + 120
    while len(study.studies(molecule)[-1].epochs) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    seat.identify("t" * 32)
    view._looked = 0.0
    view.update(campaign.glance())
    assert "left at most" in view._text.object and view._go.label == "Stop"
    view._act(view._begin)
    wait_for_the_end(molecule)
    view._looked = 0.0
    view.update(campaign.glance())
    stopped = study.studies(molecule)[-1]
    assert stopped.status == "stopped" and view._on.visible and "can go on" in view._text.object
    seat.tick()
    view._act(view._go_on)
    assert study.studies(molecule)[-1].status == "running"
    with pytest.raises(InputError, match="Only a fine-tuning that was stopped"):
        study.go_on(study.studies(molecule)[-1])
    wait_for_the_end(molecule)
    ended = study.studies(molecule)[-1]
    assert ended.status == "done" and not warned, ended.problem
    assert [e["epoch"] for e in ended.epochs] == list(range(1, ended.epochs_total + 1))


def test_labels_of_campaigns_at_the_same_level_are_learned_too(molecule):
    for name, level in (("ammonia", "gfn2-xtb"), ("water", "gfn1-xtb")):
        given = settings.from_dict(
            {
                "structure": {"name": {"ammonia": "NH3", "water": "H2O"}[name]},
                "dynamics": {"steps": 30}, "labelling": {"reference": level},
                "trust": {"initial_labels": 3, "initial_stride": 10},
                "posterior": {"iterations": 1, "members": 4},
            }
        )  # fmt: skip
        app_state.create(molecule.parent / name, given)
        worker.run_inline(molecule.parent / name)
    (molecule.parent / "notes").mkdir()
    beside = study.sources(molecule)
    assert list(beside) == [molecule.parent / "ammonia"] and beside[molecule.parent / "ammonia"] > 2
    campaign = app_state.campaign(molecule)
    seat = Seat(campaign, Lease(), print)
    view = Finetuning(campaign, seat)
    view.update(campaign.glance())
    assert view._others.visible and list(view._others.options.values()) == list(beside)
    seat.identify("u" * 32)
    view._others.value = list(beside)
    view._strategy.value, view._steps.options = "freeze-readouts", {"Few": 6}
    view._steps.value = 6
    view._act(view._begin)
    wait_for_the_end(molecule)
    ended = study.studies(molecule)[-1]
    assert ended.status == "done", ended.problem
    assert ended.receipt["labels"]["compositions"] == ["CH4", "H3N"]
    own = len(study._learned(molecule))
    assert ended.n_labels == own + sum(beside.values())


def test_labels_have_to_be_there(tmp_path, argon):
    with pytest.raises(InputError, match="0 labels are learned"):
        study.start(argon(), "naive", steps=5, model="bundled")
