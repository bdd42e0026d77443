"""Energies and forces of many weight vectors on one structure, in whichever way is quickest here.

Members are evaluated in stacks: `torch.func.vmap` over their weights, forces by one backward pass
through positions of their own. A stack costs little more than one member while operations are
small, and more than its members one by one once they are large; so the size of the stacks is
measured on this structure, with these threads, and again when either changes. Energies only are
taken under `vmap`: forces taken inside it through a custom derivative can come out zero without
an error.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from core.structures import Structure

if TYPE_CHECKING:
    from core.potentials.base import GraphBatch, TorchPotential
    from core.potentials.compiled import Program

ROUNDS = 2
"""Times each size of stack is tried; the fastest counts."""
STEP = 0.01
"""Length of a finite difference in units of its direction."""
CHANGED = 1.5
"""The stack is measured again when the number of edges has changed by this factor."""
WORSE = 1.5
"""Larger stacks are not tried once one takes this many times longer than the best."""


class Members:
    """Evaluates weight vectors of one potential; independent of the weights in force.

    Attributes:
        stack: members evaluated at once; None until measured.
        network: the potential as a function of its weights.
    """

    def __init__(self, potential: TorchPotential) -> None:
        self._potential = potential
        self.network = Network(potential)
        self.stack: int | None = None
        self._measured_for: tuple[Any, ...] = (0, 0, 0, None)

    def __call__(
        self, structure: Structure, thetas: torch.Tensor
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return energies (M,), forces (M, N, 3) and stress (M, 3, 3) of `thetas` (M, P).

        Interaction energies, eV; eV/Å; eV/Å³, None unless the structure is a crystal.
        """
        graphs = self._potential.graphs([structure])
        program = self._program(graphs)
        if program is not None:
            return self._one_by_one(program, graphs, thetas)
        found = self._evaluate(graphs, thetas.to(self._potential.device))
        energies, forces, strain = (values.double().cpu().numpy() for values in found)
        return energies, forces, strain / structure.volume if structure.is_bulk else None

    def slopes(
        self, structure: Structure, theta: torch.Tensor, directions: torch.Tensor
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return ∂F/∂θ (M, N, 3), eV/Å, and ∂σ/∂θ (M, 3, 3), eV/Å³, of crystals.

        At `theta` (P,), along `directions` (M, P). By central differences: two evaluations for
        each direction, where the exact derivative takes five and more.
        """
        graphs = self._potential.graphs([structure])
        program = self._program(graphs)
        if program is None:
            steps = STEP * directions
            _, forces, stress = self(structure, torch.cat([theta + steps, theta - steps]))
        else:
            moved = (torch.add(theta, d, alpha=a) for a in (STEP, -STEP) for d in directions)
            _, forces, stress = self._one_by_one(program, graphs, moved)
        return _difference(forces), None if stress is None else _difference(stress)

    def _program(self, graphs: GraphBatch) -> Program | None:
        """Return the compiled step, where there is one."""
        if self._potential.compiler is None:
            return None
        stress = bool(np.isfinite(graphs.volumes).all())
        return self._potential.compiler.program(graphs, stress=stress, weights=False)

    def _one_by_one(
        self, program: Program, graphs: GraphBatch, thetas: Iterable[torch.Tensor]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the same as `__call__` by compiled steps."""
        found = [program(graphs, self.network.shaped(theta)) for theta in thetas]
        energies = np.array([d.energy for d in found]) - graphs.isolated[0]
        stress = np.stack([d.stress for d in found]) if found[0].stress is not None else None  # type: ignore[misc]
        return energies, np.stack([d.forces for d in found]), stress

    def _evaluate(
        self, graphs: GraphBatch, thetas: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return energies (M,), forces (M, N, 3) and ∂E/∂strain (M, 3, 3), in stacks."""
        edges = len(graphs.senders)
        now = len(thetas), torch.get_num_threads(), thetas.device
        measured, *then = self._measured_for
        if tuple(then) != now or not measured / CHANGED < edges < measured * CHANGED:
            self.stack = self._measured(graphs, thetas)
            self._measured_for = (edges, *now)
        assert self.stack is not None
        parts = [self._stacked(graphs, part) for part in thetas.split(self.stack)]
        energies, forces, strain = zip(*parts, strict=True)
        return torch.cat(energies), torch.cat(forces), torch.cat(strain)

    def _measured(self, graphs: GraphBatch, thetas: torch.Tensor) -> int:
        """Return the size of stack that takes the least time for each member."""
        sizes, size = [], len(thetas)
        while size > 1:
            sizes.append(size)
            size //= 2
        best, least = 1, self._seconds(graphs, thetas[:1])
        for size in reversed(sizes):
            seconds = self._seconds(graphs, thetas[:size]) / size
            if seconds < least:
                best, least = size, seconds
            elif seconds > WORSE * least:
                break
        return best

    def _seconds(self, graphs: GraphBatch, thetas: torch.Tensor) -> float:
        self._stacked(graphs, thetas)
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            self._stacked(graphs, thetas)[0].cpu()  # waits for the device
            times.append(time.perf_counter() - began)
        return min(times)

    def _stacked(
        self, graphs: GraphBatch, thetas: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return energies (K,), forces (K, N, 3) and ∂E/∂strain (K, 3, 3) of one stack.

        The last is zero for what is no crystal.
        """
        k = len(thetas)
        copies = graphs.repeated(k)
        copies.positions.requires_grad_(True)
        strain = thetas.new_zeros(k, 3, 3)
        if np.isfinite(graphs.volumes).all():
            copies.strain = strain.requires_grad_(True)
        parts = [part.view(k, -1, *part.shape[1:]) for part in self._potential.geometry(copies)]
        if k == 1:
            energies = self.network.energy(thetas[0], graphs, [part[0] for part in parts])[None]
        else:
            in_dims: Any = (0, None, [0] * len(parts))
            energies = torch.func.vmap(self.network.energy, in_dims=in_dims)(thetas, graphs, parts)
        wanted = [copies.positions, *([] if copies.strain is None else [copies.strain])]
        slope, *stretch = torch.autograd.grad(energies.sum(), wanted)
        found = stretch[0] if stretch else strain
        return energies.detach(), -slope.view(k, -1, 3), found


def _difference(values: np.ndarray) -> np.ndarray:
    """Return the slopes from values ahead, then behind, by `STEP`."""
    ahead, behind = np.split(values, 2)
    return (ahead - behind) / (2 * STEP)


class Network(torch.nn.Module):
    """A potential as a function of its flat weights."""

    def __init__(self, potential: TorchPotential) -> None:
        super().__init__()
        self.module = potential.module
        self._potential = potential
        self._shapes = [
            (f"module.{name}", p.shape, p.numel())
            for name, p in potential.module.named_parameters()
            if p.requires_grad
        ]

    def forward(self, graphs: GraphBatch, parts: list[torch.Tensor]) -> torch.Tensor:
        """Return the interaction energy of every atom (ΣN,)."""
        return self._potential.atomic(graphs, *parts)[0]

    def energy(
        self, theta: torch.Tensor, graphs: GraphBatch, parts: list[torch.Tensor]
    ) -> torch.Tensor:
        """Return the interaction energy of all atoms with the weights `theta` (P,)."""
        return self.nodes(self.shaped(theta), graphs, parts).sum()

    def shaped(self, theta: torch.Tensor) -> list[torch.Tensor]:
        """Return `theta` (P,) as tensors in the shapes and the order of the parameters."""
        sizes = [n for *_, n in self._shapes]
        return [
            part.view(shape)
            for (_, shape, _), part in zip(self._shapes, theta.split(sizes), strict=True)
        ]

    def nodes(
        self, weights: Sequence[torch.Tensor], graphs: GraphBatch, parts: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return every atom's energy (ΣN,) with `weights` in the order of the parameters."""
        named = {name: w for (name, *_), w in zip(self._shapes, weights, strict=True)}
        return torch.func.functional_call(self, named, (graphs, list(parts)))
