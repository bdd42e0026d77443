"""What every torch potential shares: flat weights, predictions, and derivatives in the weights.

A backend says how graphs are built and what each atom's energy is; everything here follows from
that by automatic differentiation. Energies inside torch are *interaction* energies (without
isolated atoms), so that single precision suffices; isolated atoms are added as float64.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import ase.data
import numpy as np
import torch

from core.contracts import Prediction
from core.errors import ModelError
from core.potentials.neighbours import Edges, SkinList, neighbour_list
from core.structures import Structure


@dataclass
class GraphBatch:
    """S structures as one disconnected graph with ΣN atoms and E edges.

    Attributes:
        species: (ΣN,) index into the potential's elements. positions: (ΣN, 3).
        senders, receivers: (E,). shifts: (E, 3), Å, r_ij = r_receiver - r_sender + shift.
        index: (ΣN,) structure of each atom.
    """

    species: torch.Tensor
    positions: torch.Tensor
    senders: torch.Tensor
    receivers: torch.Tensor
    shifts: torch.Tensor
    index: torch.Tensor
    n_atoms: tuple[int, ...]
    isolated: np.ndarray

    @property
    def n_structures(self) -> int:
        """S."""
        return len(self.n_atoms)

    @cached_property
    def offsets(self) -> torch.Tensor:
        """(S + 1,) first atom of each structure."""
        return torch.tensor([0, *np.cumsum(self.n_atoms)], dtype=torch.int64)


class TorchPotential(ABC):
    """Base of all backends; see `core.contracts.Potential` for the public contract."""

    name: str
    elements: tuple[int, ...]
    cutoff: float

    def __init__(self, module: torch.nn.Module, isolated: np.ndarray) -> None:
        self.module = module
        self.isolated_energies = np.asarray(isolated, dtype=np.float64)
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self.dtype = self._parameters[0].dtype
        self.n_parameters = sum(p.numel() for p in self._parameters)

    @abstractmethod
    def node_energies(self, graphs: GraphBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return interaction energy (ΣN,) and invariant features (ΣN, D) of every atom."""

    def parameters(self) -> list[torch.nn.Parameter]:
        """Trainable tensors in the order of `theta`."""
        return self._parameters

    def blocks(self) -> dict[str, slice]:
        """Return parameter name -> slice of `theta`, in order."""
        named, start = {}, 0
        for name, p in self.module.named_parameters():
            if p.requires_grad:
                named[name] = slice(start, start + p.numel())
                start += p.numel()
        return named

    def get_theta(self) -> torch.Tensor:
        """Return a copy of the flat parameter vector (P,)."""
        return torch.cat([p.detach().reshape(-1) for p in self._parameters]).clone()

    def set_theta(self, theta: torch.Tensor) -> None:
        """Put `theta` (P,) in force."""
        if theta.shape != (self.n_parameters,):
            raise ModelError(f"theta has shape {tuple(theta.shape)}, not ({self.n_parameters},).")
        start = 0
        with torch.no_grad():
            for p in self._parameters:
                p.copy_(theta[start : start + p.numel()].view_as(p))
                start += p.numel()

    def weights_hash(self) -> str:
        """Return a short hash of the weights in force."""
        data = self.get_theta().numpy().tobytes()
        return hashlib.sha256(data).hexdigest()[:16]

    def check(self, structure: Structure) -> None:
        """Raise `ModelError` naming the elements of `structure` the potential does not know."""
        unknown = sorted(set(structure.numbers.tolist()) - set(self.elements))
        if unknown:
            symbols = ", ".join(ase.data.chemical_symbols[z] for z in unknown)
            known = ", ".join(ase.data.chemical_symbols[z] for z in self.elements)
            raise ModelError(
                f"The model '{self.name}' does not know {symbols}; it covers {known}. "
                "Choose another model or another structure."
            )

    def isolated_energy(self, structure: Structure) -> float:
        """Return the summed energy of the isolated atoms, eV."""
        return float(self.isolated_energies[self._species(structure)].sum())

    def _species(self, structure: Structure) -> np.ndarray:
        self.check(structure)
        return np.searchsorted(np.array(self.elements), structure.numbers)

    def graphs(self, structures: Sequence[Structure]) -> GraphBatch:
        """Build the graph batch once; reuse it for repeated calls on the same structures."""
        return self.collate(structures, [self.edges(s) for s in structures])

    def edges(self, structure: Structure) -> Edges:
        """Return the pairs of `structure` within the cutoff."""
        return neighbour_list(structure, structure.positions, self.cutoff)

    def collate(self, structures: Sequence[Structure], edges: Sequence[Edges]) -> GraphBatch:
        """Join structures whose `edges` are known into one batch."""
        sizes = tuple(len(s) for s in structures)
        starts = np.cumsum((0, *sizes))[:-1]
        return GraphBatch(
            species=torch.as_tensor(np.concatenate([self._species(s) for s in structures])),
            positions=torch.as_tensor(
                np.concatenate([s.positions for s in structures]), dtype=self.dtype
            ),
            senders=torch.as_tensor(
                np.concatenate([e.senders + o for e, o in zip(edges, starts, strict=True)])
            ),
            receivers=torch.as_tensor(
                np.concatenate([e.receivers + o for e, o in zip(edges, starts, strict=True)])
            ),
            shifts=torch.as_tensor(np.concatenate([e.shifts for e in edges]), dtype=self.dtype),
            index=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
            n_atoms=sizes,
            isolated=np.array([self.isolated_energy(s) for s in structures]),
        )

    def energies(self, graphs: GraphBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return interaction energies (S,) and node features (ΣN, D)."""
        nodes, features = self.node_energies(graphs)
        total = torch.zeros(graphs.n_structures, dtype=nodes.dtype)
        return total.index_add(0, graphs.index, nodes), features

    def energy_and_forces(
        self, graphs: GraphBatch, *, create_graph: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Interaction energies (S,) and forces (ΣN, 3), differentiable if `create_graph`."""
        graphs.positions = graphs.positions.detach().requires_grad_(True)
        energy, _ = self.energies(graphs)
        (gradient,) = torch.autograd.grad(energy.sum(), graphs.positions, create_graph=create_graph)
        return energy, -gradient

    def energy_forces_features(
        self, graphs: GraphBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `energy_and_forces`, with features (ΣN, D), all differentiable in the weights."""
        graphs.positions = graphs.positions.detach().requires_grad_(True)
        energy, features = self.energies(graphs)
        (gradient,) = torch.autograd.grad(energy.sum(), graphs.positions, create_graph=True)
        return energy, -gradient, features

    def predict(
        self,
        structures: Sequence[Structure],
        *,
        forces: bool = True,
        features: bool = False,
        chunk: int = 64,
    ) -> Prediction:
        """Energies, and on request forces and invariant features, as float64 numpy arrays."""
        parts = [
            self._predict(self.graphs(structures[i : i + chunk]), forces, features)
            for i in range(0, len(structures), chunk)
        ]
        return Prediction(
            energies=np.concatenate([p.energies for p in parts]) if parts else np.zeros(0),
            forces=tuple(f for p in parts for f in p.forces or ()) if forces else None,
            features=tuple(f for p in parts for f in p.features or ()) if features else None,
        )

    def _predict(self, graphs: GraphBatch, forces: bool, features: bool) -> Prediction:
        graphs.positions = graphs.positions.detach().requires_grad_(forces)
        with torch.set_grad_enabled(forces):
            energy, nodes = self.energies(graphs)
        force = None
        if forces:
            (gradient,) = torch.autograd.grad(energy.sum(), graphs.positions)
            force = _split(-gradient, graphs.n_atoms)
        return Prediction(
            energies=energy.detach().numpy().astype(np.float64) + graphs.isolated,
            forces=force,
            features=_split(nodes, graphs.n_atoms) if features else None,
        )

    def rows(self, structure: Structure, *, forces: bool = True) -> torch.Tensor:
        """∂(E, F)/∂θ at the weights in force: (1 + 3N, P), energy row first."""
        graphs = self.graphs([structure])
        graphs.positions.requires_grad_(True)
        energy, _ = self.energies(graphs)
        (gradient,) = torch.autograd.grad(energy.sum(), graphs.positions, create_graph=True)
        out = torch.empty(1 + (3 * len(structure) if forces else 0), self.n_parameters)
        out = out.to(self.dtype)
        self._fill(out[:1], energy, torch.ones(1, 1, dtype=self.dtype))
        if forces:
            force = -gradient.reshape(-1)
            self._fill(out[1:], force, torch.eye(len(force), dtype=self.dtype))
        return out

    def _fill(self, out: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor) -> None:
        grads = torch.autograd.grad(
            values, self._parameters, vectors, is_grads_batched=True,
            retain_graph=True, allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        start = 0
        for g in grads:
            width = g[0].numel()
            out[:, start : start + width] = g.reshape(len(out), width)
            start += width

    def directional(
        self, structure: Structure, directions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return ∂E/∂θ (P,), and along `directions` (M, P): dE (M,) and dF (M, N, 3)."""
        graphs = self.graphs([structure])
        graphs.positions.requires_grad_(True)
        energy, _ = self.energies(graphs)
        grads = torch.autograd.grad(
            energy.sum(), self._parameters, create_graph=True, materialize_grads=True
        )
        gradient = torch.cat([g.reshape(-1) for g in grads])
        change = directions @ gradient
        (slope,) = torch.autograd.grad(
            change, graphs.positions, torch.eye(len(change), dtype=self.dtype),
            is_grads_batched=True,
        )  # fmt: skip
        return gradient.detach(), change.detach(), -slope

    def evaluator(
        self, structure: Structure, *, skin: float = 0.5
    ) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
        """Return positions (N, 3) -> (energy eV, forces eV/Å) for MD; shares the weights.

        The neighbour list reaches `skin` Å beyond the cutoff and is rebuilt when an atom has
        moved by half of it; edges beyond the cutoff contribute exactly nothing.
        """
        neighbours = SkinList(structure, self.cutoff, skin)
        graphs = self.collate([structure], [neighbours.edges(structure.positions)])

        def evaluate(positions: np.ndarray) -> tuple[float, np.ndarray]:
            edges = neighbours.edges(positions)
            if neighbours.rebuilt:
                graphs.senders = torch.as_tensor(edges.senders)
                graphs.receivers = torch.as_tensor(edges.receivers)
                graphs.shifts = torch.as_tensor(edges.shifts, dtype=self.dtype)
            graphs.positions = torch.as_tensor(positions, dtype=self.dtype)
            energy, force = self.energy_and_forces(graphs)
            return float(energy.detach()) + float(graphs.isolated[0]), force.numpy().astype(float)

        return evaluate


def _split(values: torch.Tensor, sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    arrays = values.detach().numpy().astype(np.float64)
    return tuple(np.split(arrays, np.cumsum(sizes)[:-1]))
