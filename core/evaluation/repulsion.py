"""Do atoms repel each other when they are pressed together? Pairs down to half an ångström."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from core.contracts import Potential
from core.evaluation.finding import Finding
from core.structures import Structure

NEAREST, FROM, POINTS = 0.5, 0.7, 30
"""Å; the outer end as a fraction of the sum of covalent radii; lengths between them."""


def repulsion(potential: Potential, elements: Sequence[int]) -> Finding:
    """Press every pair of `elements` (atomic numbers) together."""
    curves, attracted = {}, []
    for a, b in combinations_with_replacement(sorted(set(elements)), 2):
        bond = float(covalent_radii[a] + covalent_radii[b])
        lengths = np.linspace(NEAREST, max(FROM * bond, NEAREST + 0.05), POINTS)
        pairs = [Structure(np.array([a, b]), np.array([[0, 0, 0], [d, 0, 0]])) for d in lengths]
        found = potential.predict(pairs)
        assert found.forces is not None
        push = np.array([f[1, 0] for f in found.forces])
        name = f"{chemical_symbols[a]}-{chemical_symbols[b]}"
        curves[name] = [lengths.tolist(), (found.energies - found.energies[-1]).tolist()]
        if not (push > 0).all():
            attracted.append((name, float(lengths[~(push > 0)].max())))
    said = f"All {len(curves)} pairs of elements repel each other down to {NEAREST} Å."
    if attracted:
        listed = ", ".join(f"{name} below {d:.2f} Å" for name, d in attracted[:8])
        said = (
            f"{len(attracted)} of {len(curves)} pairs of elements attract when pressed: {listed}."
        )
    share = len(attracted) / max(len(curves), 1)
    verdict = "good" if not attracted else "doubtful" if share < 0.25 else "bad"
    figures = {"pairs": len(curves), "attracted": dict(attracted)}
    return Finding("repulsion", verdict, said, figures, {"curves": curves})  # type: ignore[arg-type]
