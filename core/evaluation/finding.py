"""What every test of a potential returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["good", "doubtful", "bad", "unknown"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one test.

    Attributes:
        verdict: "bad" speaks against deploying; "unknown" where the test could not be made.
        said: one sentence with the figures. figures: plain JSON values. series: what to plot.
    """

    name: str
    verdict: Verdict
    said: str
    figures: dict[str, Any] = field(default_factory=dict)
    series: dict[str, Any] = field(default_factory=dict)
