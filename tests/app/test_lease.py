"""One driver, many viewers: the lease and the seat that enforces it."""

import pytest

from app import state as app_state
from app.lease import ANSWER_S, TERM_S, Lease, NotDrivingError
from app.seat import Seat
from core.campaign import events as ev
from core.campaign.exchange import Offer


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lease(clock):
    return Lease(clock)


def test_the_first_page_drives_and_the_second_watches(lease):
    assert lease.renew("a").driving and not lease.renew("b").driving
    lease.check("a")
    with pytest.raises(NotDrivingError, match="page 1 drives"):
        lease.check("b")
    assert lease.renew("b").pages == 2


def test_a_page_nobody_knows_may_not_command(lease):
    with pytest.raises(NotDrivingError, match="nobody drives"):
        lease.check("")
    lease.renew("a")
    with pytest.raises(NotDrivingError):
        lease.check("")


def test_a_lease_that_is_not_renewed_ends(lease, clock):
    lease.renew("a")
    clock.now += TERM_S - 1
    assert not lease.renew("b").driving
    clock.now += 2
    assert lease.renew("b").driving
    assert not lease.renew("a").driving  # came back too late, under its old name
    assert lease.renew("a").name == "page 1"


def test_a_reload_drives_on(lease, clock):
    lease.renew("a")
    lease.renew("b")
    clock.now += 3
    assert lease.renew("a").driving


def test_hand_over_needs_the_driver_or_his_silence(lease, clock):
    lease.renew("a"), lease.renew("b"), lease.renew("c")
    lease.ask("b")
    assert lease.renew("a").asking == "page 2"
    lease.ask("c")  # one at a time
    assert lease.renew("a").asking == "page 2"
    lease.answer("c", yes=True)  # not his to give
    assert lease.renew("a").driving
    lease.answer("a", yes=False)
    assert lease.renew("a").driving and lease.renew("a").asking is None
    lease.ask("b")
    lease.answer("a", yes=True)
    assert lease.renew("b").driving and not lease.renew("a").driving
    lease.ask("a")
    for _ in range(int(ANSWER_S) + 1):
        clock.now += 1
        for page in "abc":
            lease.renew(page)
    assert lease.renew("a").driving


def test_asking_for_a_lease_whose_holder_is_gone_gives_it(lease, clock):
    lease.renew("a")
    clock.now += TERM_S - 1
    lease.renew("b")
    clock.now += 2
    lease.ask("b")
    lease.check("b")


def test_a_viewers_commands_never_reach_the_campaign(argon, lease):
    campaign = app_state.campaign(argon())
    warned = []
    driver, viewer = (Seat(campaign, lease, warned.append) for _ in range(2))
    assert not driver.post(ev.Pause()) and "nobody drives" in warned.pop()  # not identified yet
    driver.identify("secret")
    viewer.identify("other")
    assert not viewer.post(ev.Undo()) and not viewer.go() and not viewer.step_by(3)
    assert viewer.offer(Offer((1,), (), "labels.extxyz")) is None
    assert len(warned) == 4 and all("page 1 drives" in w for w in warned)
    assert campaign.reader.commands_since(0) == []
    assert driver.post(ev.ChangeSetting(path="trust.confidence", value=0.9))
    assert [row.command.who for row in campaign.reader.commands_since(0)] == ["page 1"]
