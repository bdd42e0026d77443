"""Features of structures from the pretrained model itself (arXiv 2605.03964, 2605.13788).

- activation: the atoms' invariant features, pooled; comes with a forward pass.
- ntk: ∂E/∂θ, the energy's neural tangent kernel. force-ntk: ∂F/∂θ, one row for each component.
- joint: both, each divided by the noise of what it predicts.

Derivatives in the weights are long, and are projected on D columns by a sparse sign sketch: every
weight is added to one column, with a sign, both drawn once from a seed. Inner products are kept in
the mean, and their error falls as 1/√D (Weinberger et al., arXiv 0902.2206).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from core.contracts import Potential
from core.parallel import side_by_side
from core.structures import Structure

Kind = Literal["activation", "ntk", "force-ntk", "joint"]
COLUMNS = 32768
"""Columns sketched at once: a copy of them is made."""
TOGETHER = 8
"""Structures whose derivatives are taken side by side."""
KINDS: tuple[Kind, ...] = ("activation", "ntk", "force-ntk", "joint")


@dataclass(frozen=True)
class Recipe:
    """Which features.

    Attributes:
        kind: see above. width: D of the sketch; not used by activations. seed: of the sketch.
        pooling: of the atoms' features, for activations.
        noise_energy: eV/atom, noise_force: eV/Å, by which energy and force rows are divided.
        blocks: names of the parameters that are derived by, by default all.
    """

    kind: Kind
    width: int = 512
    seed: int = 0
    pooling: Literal["mean", "sum"] = "mean"
    noise_energy: float = 0.001
    noise_force: float = 0.03
    blocks: tuple[str, ...] | None = None


class Sketch:
    """Projects rows of P numbers on D columns, the same for the same seed."""

    def __init__(self, size: int, width: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._column = torch.as_tensor(rng.integers(width, size=size))
        self._sign = torch.as_tensor(rng.choice([-1.0, 1.0], size=size))
        self._width = width

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows (R, P) as (R, D)."""
        out = rows.new_zeros(len(rows), self._width)
        for start in range(0, rows.shape[1], COLUMNS):
            part = slice(start, start + COLUMNS)
            out.index_add_(1, self._column[part], rows[:, part] * self._sign[part].to(rows.dtype))
        return out


class Features:
    """Computes the features of structures by one recipe.

    Attributes:
        width: length of a row.
    """

    def __init__(self, potential: Potential, recipe: Recipe) -> None:
        self._potential, self.recipe = potential, recipe
        self._sketch: Sketch | None = None
        if recipe.kind == "activation":
            atom = Structure(np.array(potential.elements[:1]), np.zeros((1, 3)))
            self.width = int(self._activations([atom])[0].shape[1])
            return
        blocks = potential.blocks()
        self._names = list(recipe.blocks) if recipe.blocks is not None else list(blocks)
        size = sum(blocks[name].stop - blocks[name].start for name in self._names)
        self._sketch = Sketch(size, recipe.width, recipe.seed)
        self.width = recipe.width

    def __call__(self, structures: Sequence[Structure]) -> Iterator[np.ndarray]:
        """Yield the rows (R, width) of each structure, float64.

        One row for activations and the energy's kernel, 3N for forces, 1 + 3N for the joint one.
        """
        if self._sketch is None:
            for atoms in self._activations(structures):
                pooled = atoms.mean(axis=0) if self.recipe.pooling == "mean" else atoms.sum(axis=0)
                yield pooled[None].astype(float)
            return
        for start in range(0, len(structures), TOGETHER):
            yield from side_by_side(self._tangents, structures[start : start + TOGETHER])

    def _activations(self, structures: Sequence[Structure]) -> tuple[np.ndarray, ...]:
        found = self._potential.predict(structures, forces=False, features=True).features
        assert found is not None
        return found

    def _tangents(self, structure: Structure) -> np.ndarray:
        assert self._sketch is not None
        recipe = self.recipe
        names = None if recipe.blocks is None else self._names
        rows = self._potential.rows(structure, forces=recipe.kind != "ntk", blocks=names)
        small = self._sketch(rows).double().numpy()
        small[0] /= len(structure) * recipe.noise_energy
        small[1:] /= recipe.noise_force
        return small[1:] if recipe.kind == "force-ntk" else small
