"""When a judged frame deserves a label: by the tolerances, or by a rule of others to compare with.

By the tolerances a frame does where one may be broken. Where the promise is for the run as a whole
and not for every frame, such a frame is let pass while enough of the last ones are expected to be
within all tolerances, itself among them, unless it is more likely outside than within.

The others look at raw σ and know no error: a fixed threshold, or a multiple of the running mean
(aims-PAX, arXiv 2508.12888). They are for studies of how many labels a promise takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from core.calibration import Assessment
from core.settings import LabellingSettings, TrustSettings

REMEMBERED = 400
"""Frames that the running mean is taken of."""
WINDOW = 50
"""Frames of which the share that is promised for a run has to be expected within, at any time."""
LIKELIER_OUTSIDE = 0.5
"""Probability of being within all tolerances below which a frame is never let pass."""

Reasons = tuple[str, ...]
"""Any of "energy", "force", "stress", "periodic"."""


@dataclass(frozen=True)
class Past:
    """What frames before were found to be, oldest first.

    Attributes:
        sigma_forces: largest force σ of the last trusted or flagged frames, eV/Å.
        within: P(within all tolerances) of the last trusted frames.
    """

    sigma_forces: Iterable[float] = ()
    within: Iterable[float] = ()


class Rule:
    """The rule of a campaign's settings.

    Args:
        past: where a campaign goes on.
    """

    def __init__(self, settings: LabellingSettings, past: Past | None = None) -> None:
        past = past or Past()
        self._kind, self._value, self._every = settings.rule, settings.rule_value, settings.every
        self._sigma_forces = deque(past.sigma_forces, maxlen=REMEMBERED)
        self._within = deque(past.within, maxlen=WINDOW - 1)

    @property
    def watches(self) -> bool:
        """Whether it is to be asked between two checks where the energy looks uncertain."""
        return self._kind == "tolerance" and not self._every

    def reasons(self, seen: Assessment, sigma_force: float, trust: TrustSettings) -> Reasons:
        """Return why a frame deserves a label, whenever it was: empty where it does not."""
        if self._kind == "tolerance":
            return () if self._passes(seen, trust) else seen.reasons
        limit = self._value
        if self._kind == "moving-average":
            usual = float(np.mean(self._sigma_forces)) if self._sigma_forces else np.inf
            limit = (1 + self._value) * usual
        return ("force",) if sigma_force > limit else ()

    def at(self, step: int, seen: Assessment, sigma_force: float, trust: TrustSettings) -> Reasons:
        """Return why the frame at `step` deserves a label, and remember it."""
        found = self.asks(step, seen, sigma_force, trust)
        if not self._every:
            self._sigma_forces.append(sigma_force)
        if not found:
            self._within.append(seen.within)
        return found

    def asks(
        self, step: int, seen: Assessment, sigma_force: float, trust: TrustSettings
    ) -> Reasons:
        """Return why the frame at `step` would be found to deserve a label."""
        if self._every:
            return ("periodic",) if step % self._every == 0 else ()
        return self.reasons(seen, sigma_force, trust)

    def _passes(self, seen: Assessment, trust: TrustSettings) -> bool:
        """Whether a frame that may break a tolerance is let pass."""
        if trust.promise == "frame" or seen.within < LIKELIER_OUTSIDE:
            return False
        return float(np.mean([*self._within, seen.within])) >= trust.confidence
