"""The receipts and the way back, without a browser."""

import pytest

from app import state as app_state
from app.lease import Lease
from app.seat import Seat
from app.views.learning import Learning, consequence, receipt
from core import worker
from core.campaign import events as ev
from core.campaign.store import Snapshot

from .test_wording import glance


def snapshot(number, n_labels=4, **info):
    return Snapshot(
        id=number, at=1e9, path="s", weights="w", offset=0.0, offset_variance=0.0,
        n_labels=n_labels, calibration={}, info=info,
    )  # fmt: skip


RECEIPT = {
    "moved": {
        "interaction": {"blocks": 14, "moved": 14, "step": 0.002, "since_foundation": 0.01},
        "readout": {"blocks": 3, "moved": 0, "step": 0.0, "since_foundation": 0.0},
    },
    "errors": {
        "new": {"n": 2, "energy": [0.02, 0.004], "force": [0.120, 0.031]},
        "old": {"n": 8, "energy": [0.003, 0.004], "force": [0.020, 0.022]},
    },
    "forgotten": 0.04, "probes": 12,
}  # fmt: skip


@pytest.fixture
def learned(argon):
    directory = argon("threshold", "0.2 kcal/mol", 300)
    worker.run_inline(directory)
    return app_state.campaign(directory)


def test_a_receipt_says_what_moved_and_what_it_did():
    state = glance(trusted=True, snapshot=5).state
    page = receipt(snapshot(5, receipt=RECEIPT), [], state)
    for words in ("in force", "120 → 31", "20 → 22", "14 of 14", "0 of 3", "0.2 %", "40 meV/Å"):
        assert words in page
    assert "much" not in page
    lost = receipt(snapshot(4, receipt=RECEIPT | {"forgotten": 0.4}), [], state)
    assert "much" in lost and "in force" not in lost
    assert "no receipt" in receipt(snapshot(3), [], state)


def test_a_snapshot_put_back_shows_the_receipt_of_its_origin():
    state = glance(trusted=True, snapshot=3).state
    origin = snapshot(1, receipt=RECEIPT)
    page = receipt(snapshot(3, restored=1), [origin, snapshot(3, restored=1)], state)
    assert "weights of snapshot 1 again" in page and "120 → 31" in page


def test_going_back_says_beforehand_what_it_does(learned):
    view = Learning(learned, seat := Seat(learned, Lease(), lambda message: None))
    seat.identify("s" * 32)
    now = learned.glance()
    view.update(now)
    assert len(view._rows.rows) == now.state.snapshot >= 1
    assert view._back.disabled and "in force" in view._receipt.object
    state = now.state
    assert "Choose an earlier" in consequence(state, state.snapshot)
    if state.snapshot > 1:
        assert "set aside, not lost" in consequence(state, 1)


def test_going_back_is_posted_and_done(learned, monkeypatch):
    posted = []
    seat = Seat(learned, Lease(), lambda message: None)
    seat.identify("s" * 32)
    monkeypatch.setattr(learned, "post", lambda command: posted.append(command) or 1)
    view = Learning(learned, seat)
    view.update(learned.glance())
    view._snapshots[99] = snapshot(99)
    view._rows.chosen = 99
    assert view._back.label == "Go back to snapshot 99" and not view._back.disabled
    view._go_back()
    assert isinstance(posted[0], ev.RollBack) and posted[0].snapshot == 99
    assert view._rows.chosen == 0
