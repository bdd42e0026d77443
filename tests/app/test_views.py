"""The panels without a browser: give them a glance, read what they show."""

import pytest

from app import state as app_state
from app.lease import Lease
from app.seat import Seat
from app.views.controls import Controls

from .test_wording import glance


@pytest.fixture
def campaign(argon):
    return app_state.campaign(argon())


def test_controls_offer_what_the_phase_allows(campaign):
    seat = Seat(campaign, Lease(), lambda message: None)
    view = Controls(campaign, seat)
    view.update(glance())
    assert view._main.disabled  # nobody drives yet
    seat.identify("s" * 32)
    view.update(glance())
    assert (view._main.label, view._main.disabled, view._stop.disabled) == ("Start", False, True)
    assert "UNTRUSTED" in view._state.object
    view.update(glance(started=True, trusted=True))
    assert (view._main.label, view._stop.disabled) == ("Pause", False)
    assert "UNTRUSTED" not in view._state.object
    view.update(glance(failure="broken"))
    assert (view._main.label, view._step.disabled) == ("Try again", True)
