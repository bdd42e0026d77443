"""When a judged frame deserves a label: by the tolerances, or by a rule of others to compare with.

The others look at raw σ and know no error: a fixed threshold, or a multiple of the running mean
(aims-PAX, arXiv 2508.12888). They are for studies of how many labels a promise takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from core.calibration import Assessment
from core.settings import LabellingSettings

REMEMBERED = 400
"""Frames that the running mean is taken of."""
Reasons = tuple[str, ...]
"""Any of "energy", "force", "stress", "periodic"."""


class Rule:
    """The rule of a campaign's settings.

    Args:
        recent: largest force σ of the last trusted or flagged frames, eV/Å, oldest first.
    """

    def __init__(self, settings: LabellingSettings, recent: Iterable[float] = ()) -> None:
        self._kind, self._value, self._every = settings.rule, settings.rule_value, settings.every
        self._recent = deque(recent, maxlen=REMEMBERED)

    @property
    def watches(self) -> bool:
        """Whether it is to be asked between two checks where the energy looks uncertain."""
        return self._kind == "tolerance" and not self._every

    def reasons(self, seen: Assessment, sigma_force: float) -> Reasons:
        """Return why a frame deserves a label, whenever it was: empty where it does not."""
        if self._kind == "tolerance":
            return seen.reasons
        limit = self._value
        if self._kind == "moving-average":
            limit = (1 + self._value) * float(np.mean(self._recent)) if self._recent else np.inf
        return ("force",) if sigma_force > limit else ()

    def at(self, step: int, seen: Assessment, sigma_force: float) -> Reasons:
        """Return why the frame at `step` deserves a label, and remember it."""
        found = self.asks(step, seen, sigma_force)
        if not self._every:
            self._recent.append(sigma_force)
        return found

    def asks(self, step: int, seen: Assessment, sigma_force: float) -> Reasons:
        """Return why the frame at `step` would be found to deserve a label."""
        if self._every:
            return ("periodic",) if step % self._every == 0 else ()
        return self.reasons(seen, sigma_force)
