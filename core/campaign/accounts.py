"""The receipt of each update of a campaign: what moved, errors on labels, what was forgotten."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from core.campaign import pretraining
from core.campaign.canary import Residuals
from core.contracts import LabelSet, Potential

PROBES = 12
"""Structures of the pretraining's kind on which it is measured how far the forces have moved."""


class Accounts:
    """Compares the weights in force with those before and with the foundation's.

    Made while the foundation's weights are in force.

    Args:
        model: name of the foundation; its own frames, or the bundled model's, are the probes.
    """

    def __init__(self, potential: Potential, model: str) -> None:
        self._potential = potential
        self._foundation = potential.get_theta()
        known = pretraining.structures(potential, pretraining.brought(model))
        structures = known[:: max(1, len(known) // PROBES)][:PROBES]
        found = potential.predict(structures).forces if structures else ()
        assert found is not None
        self._probes = structures
        self._forces = found

    def receipt(
        self, former: torch.Tensor, before: Residuals, after: Residuals, *, n_old: int
    ) -> dict[str, Any]:
        """Return plain JSON values about the step from `former` weights (P,) to those in force.

        moved: part of the network -> blocks that moved, of how many, and |Δθ|/|θ| in this update
        and since the foundation. errors: "old" and "new" labels -> how many, and before and after
        of energy (eV, a constant aside) and force (eV/Å). forgotten: mean absolute change of
        force components on the probes since the foundation, eV/Å; None without probes.
        """
        old, new = slice(0, n_old), slice(n_old, len(after.energies))
        return {
            "moved": self._moved(former),
            "errors": {
                name: _pairs(before, after, which)
                for name, which in (("old", old), ("new", new))
                if which.stop > which.start
            },
            "forgotten": self._forgotten(),
            "probes": len(self._probes),
        }

    def _moved(self, former: torch.Tensor) -> dict[str, dict[str, float]]:
        now, parts = self._potential.get_theta(), self._potential.parts()
        found: dict[str, dict[str, float]] = {}
        blocks = self._potential.blocks()
        for part in dict.fromkeys(parts.values()):
            of_part = [where for name, where in blocks.items() if parts[name] == part]
            size = _norm([self._foundation[w] for w in of_part])
            found[part] = {
                "blocks": len(of_part),
                "moved": sum(not torch.equal(now[w], former[w]) for w in of_part),
                "step": _norm([now[w] - former[w] for w in of_part]) / size,
                "since_foundation": _norm([(now - self._foundation)[w] for w in of_part]) / size,
            }
        return found

    def _forgotten(self) -> float | None:
        if not self._probes:
            return None
        found = self._potential.predict(self._probes).forces
        assert found is not None
        apart = np.concatenate([a - b for a, b in zip(found, self._forces, strict=True)])
        return float(np.abs(apart).mean())


def _norm(parts: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float((p.double() ** 2).sum()) for p in parts)) or 1e-12


def _pairs(before: Residuals, after: Residuals, which: slice) -> dict[str, Any]:
    old, new = before.errors(which), after.errors(which)
    return {
        "n": which.stop - which.start,
        "energy": [old.energy, new.energy],
        "force": [old.force, new.force],
    }


def joined(first: LabelSet, second: LabelSet) -> LabelSet:
    """Return both, one after the other."""
    return LabelSet(
        (*first.structures, *second.structures),
        np.concatenate([first.energies, second.energies]),
        (*first.forces, *second.forces),
    )
