"""One page's place at a campaign, and the only way for it to command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from app.lease import Lease, NotDrivingError, Sharing
from app.state import CampaignState
from core.campaign import events as ev
from core.campaign.exchange import Offer


class Seat:
    """Posts commands while its page holds the lease, and refuses them otherwise.

    Args:
        warn: told of what was refused, in words for a person.

    Attributes:
        sharing: how the lease stood at the last `tick`.
    """

    def __init__(self, campaign: CampaignState, lease: Lease, warn: Callable[[str], None]) -> None:
        self._campaign, self._lease, self.warn = campaign, lease, warn
        self._secret = ""
        self._posted: list[int] = []
        self.sharing = Sharing()

    def identify(self, secret: str) -> None:
        """Take the place of the browser tab that knows `secret`."""
        self._secret = secret
        self.tick()

    def tick(self) -> None:
        """Give a sign of life, and tell of commands the worker refused."""
        if self._secret:
            self.sharing = self._lease.renew(self._secret)
        for command in list(self._posted):
            outcome = self._campaign.outcome(command)
            if outcome is not None:
                self._posted.remove(command)
                if outcome != "done":
                    self.warn(outcome)

    def ask(self) -> None:
        """Ask to drive."""
        self._lease.ask(self._secret)

    def answer(self, *, yes: bool) -> None:
        """Answer a page that asks to drive."""
        self._lease.answer(self._secret, yes=yes)

    def post(self, command: ev.Command) -> bool:
        """Post a command; False, with a warning, where this page only watches."""
        return self._act(lambda: self._campaign.post(replace(command, who=self.sharing.name)))

    def offer(self, labels: Offer) -> int | None:
        """Hand over labels computed elsewhere; None, with a warning, where this page watches."""
        numbers: list[int] = []
        self._act(lambda: numbers.append(self._campaign.offer(labels, self.sharing.name)))
        return numbers[0] if numbers else None

    def go(self) -> bool:
        """Start or go on."""
        return self._act(self._campaign.go)

    def step_by(self, steps: int) -> bool:
        """Run a few steps, then pause."""
        return self._act(lambda: self._campaign.step_by(steps))

    def wake(self) -> bool:
        """Start a worker where work is under way without one."""
        return self._act(self._campaign.wake)

    def may_act(self) -> bool:
        """Whether this page drives; with a warning where it only watches."""
        return self._act(lambda: None)

    def _act(self, act: Callable[[], int | None]) -> bool:
        try:
            self._lease.check(self._secret)
        except NotDrivingError as error:
            self.warn(str(error))
            return False
        number = act()
        if number is not None:
            self._posted.append(number)
        return True
