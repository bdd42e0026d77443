"""What every torch potential shares: flat weights, predictions, and derivatives in the weights.

A backend says how graphs are built and what each atom's energy is; everything here follows from
that by automatic differentiation. Energies inside torch are *interaction* energies (without
isolated atoms), so that single precision suffices; isolated atoms are added as float64.

The network and the graphs are on the potential's `device`. Flat weights, rows and whatever else
posteriors do linear algebra with are on the processor, and so is what is returned as arrays.
"""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase.data
import numpy as np
import torch

from core.contracts import Derivatives, Prediction
from core.errors import ModelError
from core.potentials.compiled import Compiler
from core.potentials.members import Members
from core.potentials.neighbours import Edges, SkinList, neighbour_list
from core.structures import VOIGT, Structure

ROW_NUMBERS, LEAST_ROWS = 2_000_000, 4
"""Rows are taken together while rows × edges × numbers for each edge stay below this."""


@dataclass
class GraphBatch:
    """S structures as one disconnected graph with ΣN atoms and E edges.

    Attributes:
        species: (ΣN,) index into the potential's elements. positions: (ΣN, 3).
        senders, receivers: (E,). shifts: (E, 3), Å, r_ij = r_receiver - r_sender + shift.
        index: (ΣN,) structure of each atom. volumes: (S,), Å³, nan where there is none.
        strain: (S, 3, 3), by whose symmetric part each structure is deformed; None for not at all.
        places: (E,) width · receiver + rank among its edges; found when needed if None.
        width: with `places`, the most edges an atom may receive.
        one_hot: (ΣN, elements), to be given where `species` is a variable of a compiled program.
        head: of a potential with several, the one that gives the energies.
    """

    species: torch.Tensor
    positions: torch.Tensor
    senders: torch.Tensor
    receivers: torch.Tensor
    shifts: torch.Tensor
    index: torch.Tensor
    n_atoms: tuple[int, ...]
    isolated: np.ndarray
    volumes: np.ndarray
    strain: torch.Tensor | None = None
    places: torch.Tensor | None = None
    width: int = 0
    one_hot: torch.Tensor | None = None
    head: int = 0

    @property
    def n_structures(self) -> int:
        """S."""
        return len(self.n_atoms)

    @property
    def vectors(self) -> torch.Tensor:
        """(E, 3) from sender to receiver, Å."""
        ends = self.positions.index_select(0, self.receivers)
        vectors = ends - self.positions.index_select(0, self.senders) + self.shifts
        if self.strain is None:
            return vectors
        symmetric = 0.5 * (self.strain + self.strain.transpose(1, 2))
        if self.n_structures == 1:
            return vectors + vectors @ symmetric[0]
        by_edge = symmetric.index_select(0, self.index[self.senders])
        return vectors + (by_edge @ vectors[:, :, None])[:, :, 0]

    def by_element(self, table: torch.Tensor) -> torch.Tensor:
        """Return the row (ΣN, …) of each atom's element in `table` (elements, …)."""
        if self.one_hot is None:
            return table.index_select(0, self.species)
        rows = self.one_hot @ table.reshape(len(table), -1)
        return rows.view(len(self.species), *table.shape[1:])

    def repeated(self, times: int) -> GraphBatch:
        """Return a batch of each structure `times` over, all structures in turn."""
        n_atoms, n_edges = len(self.species), len(self.senders)
        turns = torch.arange(times, device=self.positions.device)
        by_atom = turns.repeat_interleave(n_atoms)
        by_edge = n_atoms * turns.repeat_interleave(n_edges)
        return GraphBatch(
            species=self.species.repeat(times),
            positions=self.positions.repeat(times, 1),
            senders=self.senders.repeat(times) + by_edge,
            receivers=self.receivers.repeat(times) + by_edge,
            shifts=self.shifts.repeat(times, 1),
            index=self.index.repeat(times) + self.n_structures * by_atom,
            n_atoms=self.n_atoms * times,
            isolated=np.tile(self.isolated, times),
            volumes=np.tile(self.volumes, times),
            head=self.head,
        )


class TorchPotential(ABC):
    """Base of all backends; see `core.contracts.Potential` for the public contract."""

    name: str
    elements: tuple[int, ...]
    cutoff: float
    edge_width: int = 1
    """Numbers the model makes of each edge, in one layer."""
    compiler: Compiler | None = None
    """Makes compiled steps, where `compile` asked for them."""
    heads: tuple[str, ...] = ("Default",)
    """Levels of theory it gives energies of; they differ in readouts and isolated atoms."""
    head: str = "Default"
    """The one in use."""

    def __init__(self, module: torch.nn.Module, isolated: np.ndarray) -> None:
        """Take a module, and the energies of isolated atoms, (elements,) or (heads, elements)."""
        self.module = module
        self._isolated = np.atleast_2d(np.asarray(isolated, dtype=np.float64))
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self.dtype, self.device = self._parameters[0].dtype, self._parameters[0].device
        self.n_parameters = sum(p.numel() for p in self._parameters)

    @abstractmethod
    def geometry(self, graphs: GraphBatch) -> tuple[torch.Tensor, ...]:
        """Return what follows from the positions alone, each (E, …) or (ΣN, …)."""

    @abstractmethod
    def atomic(
        self, graphs: GraphBatch, *geometry: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return interaction energy (ΣN,) and invariant features (ΣN, D) of every atom.

        Of `graphs`, the positions are not used; the weights are read from `module` only.
        """

    def node_energies(self, graphs: GraphBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return interaction energy (ΣN,) and invariant features (ΣN, D) of every atom."""
        return self.atomic(graphs, *self.geometry(graphs))

    @property
    def isolated_energies(self) -> np.ndarray:
        """(elements,) energies of the isolated atoms in the head in use, eV."""
        return self._isolated[self.heads.index(self.head)]

    def set_isolated(self, energies: np.ndarray) -> None:
        """Put energies of the isolated atoms (elements,), eV, in force in the head in use."""
        self._isolated = self._isolated.copy()
        self._isolated[self.heads.index(self.head)] = energies

    @contextlib.contextmanager
    def using(self, head: str | None) -> Iterator[None]:
        """Let `head` be the one in use in here; None for the one that is."""
        before = self.head
        if head is not None and head not in self.heads:
            raise ModelError(f"There is no head {head!r}; the model has {', '.join(self.heads)}.")
        self.head = head or before
        try:
            yield
        finally:
            self.head = before

    def move_to(self, device: torch.device) -> None:
        """Compute on `device` from now on; graphs and evaluators made before are of no more use."""
        self.module.to(device)
        self._parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.device = device

    def parameters(self) -> list[torch.nn.Parameter]:
        """Trainable tensors in the order of `theta`."""
        return self._parameters

    def parts(self) -> dict[str, str]:
        """Return parameter name -> part: embedding, interaction, product or readout."""
        return dict.fromkeys(self.blocks(), "interaction")

    def matrices(self) -> dict[str, list[tuple[int, int, int]]]:
        """Return parameter name -> matrices in the flattened tensor: (start, rows, columns)."""
        shapes = {n: p.shape for n, p in self.module.named_parameters() if p.requires_grad}
        return {n: [(0, *shape)] if len(shape) == 2 else [] for n, shape in shapes.items()}

    def with_heads(self, heads: dict[str, np.ndarray]) -> TorchPotential:
        """Return a copy with other heads; see `core.contracts.Potential`.

        Raises:
            ModelError: a potential of this kind has one head.
        """
        raise ModelError(f"The model '{self.name}' cannot be fine-tuned: it has no heads.")

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
        return torch.cat([p.detach().reshape(-1) for p in self._parameters]).clone().cpu()

    def set_theta(self, theta: torch.Tensor) -> None:
        """Put `theta` (P,) in force."""
        if theta.shape != (self.n_parameters,):
            raise ModelError(f"theta has shape {tuple(theta.shape)}, not ({self.n_parameters},).")
        start, theta = 0, theta.to(self.device)
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
        senders = [e.senders + o for e, o in zip(edges, starts, strict=True)]
        receivers = [e.receivers + o for e, o in zip(edges, starts, strict=True)]
        return GraphBatch(
            species=self._indices(np.concatenate([self._species(s) for s in structures])),
            positions=self._reals(np.concatenate([s.positions for s in structures])),
            senders=self._indices(np.concatenate(senders)),
            receivers=self._indices(np.concatenate(receivers)),
            shifts=self._reals(np.concatenate([e.shifts for e in edges])),
            index=self._indices(np.repeat(np.arange(len(sizes)), sizes)),
            n_atoms=sizes,
            isolated=np.array([self.isolated_energy(s) for s in structures]),
            volumes=np.array([s.volume for s in structures]),
            head=self.heads.index(self.head),
        )

    def _indices(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, device=self.device)

    def _reals(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, dtype=self.dtype, device=self.device)

    def energies(self, graphs: GraphBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return interaction energies (S,) and node features (ΣN, D)."""
        nodes, features = self.node_energies(graphs)
        total = nodes.new_zeros(graphs.n_structures)
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
        stress: bool = False,
        chunk: int = 64,
    ) -> Prediction:
        """Energies, and on request forces, invariant features and stress, as float64 arrays."""
        parts = [
            self._predict(self.graphs(structures[i : i + chunk]), forces, features, stress)
            for i in range(0, len(structures), chunk)
        ]
        return Prediction(
            energies=np.concatenate([p.energies for p in parts]) if parts else np.zeros(0),
            forces=tuple(f for p in parts for f in p.forces or ()) if forces else None,
            features=tuple(f for p in parts for f in p.features or ()) if features else None,
            stress=np.concatenate([np.zeros((0, 3, 3)), *(p.stress for p in parts)])
            if stress
            else None,
        )

    def _predict(
        self, graphs: GraphBatch, forces: bool, features: bool, stress: bool
    ) -> Prediction:
        wanted = self._inputs(graphs, forces, stress)
        with torch.set_grad_enabled(forces or stress):
            energy, nodes = self.energies(graphs)
        found = list(torch.autograd.grad(energy.sum(), wanted)) if wanted else []
        force = _split(-found[0], graphs.n_atoms) if forces else None
        return Prediction(
            energies=_array(energy) + graphs.isolated,
            forces=force,
            features=_split(nodes, graphs.n_atoms) if features else None,
            stress=_stress(found[-1], graphs) if stress else None,
        )

    def _inputs(self, graphs: GraphBatch, forces: bool, stress: bool) -> list[torch.Tensor]:
        """Make positions and strain, as wanted, variables to derive by, and return them."""
        graphs.positions = graphs.positions.detach().requires_grad_(forces)
        graphs.strain = None
        if stress:
            empty = graphs.positions.new_zeros(graphs.n_structures, 3, 3)
            graphs.strain = empty.requires_grad_(True)
        positions = [graphs.positions] if forces else []
        return positions if graphs.strain is None else [*positions, graphs.strain]

    def rows(
        self,
        structure: Structure,
        *,
        forces: bool = True,
        stress: bool = False,
        blocks: Sequence[str] | None = None,
    ) -> torch.Tensor:
        """∂(E, F, σ)/∂θ at the weights in force: (1 + 3N + 6, P), energy row first.

        The rows of the stress are those of `core.structures.VOIGT`. With `blocks`, the columns are
        those of these parameters only, in the order of `theta`.
        """
        wrt = [
            p
            for name, p in zip(self.blocks(), self._parameters, strict=True)
            if blocks is None or name in blocks
        ]
        graphs = self.graphs([structure])
        wanted = self._inputs(graphs, forces, stress)
        energy, _ = self.energies(graphs)
        found = list(torch.autograd.grad(energy.sum(), wanted, create_graph=True)) if wanted else []
        values = [-found[0].reshape(-1)] if forces else []
        if stress:
            values.append(torch.stack([found[-1][0, i, j] for i, j in VOIGT]) / structure.volume)
        n = sum(len(v) for v in values)
        out = torch.empty(1 + n, sum(p.numel() for p in wrt), dtype=self.dtype)
        _fill(out[:1], wrt, energy, energy.new_ones(1, 1))
        if values:
            together = torch.cat(values)
            ones = torch.eye(n, dtype=self.dtype, device=self.device)
            each = max(len(graphs.senders), 1) * self.edge_width
            chunk = max(LEAST_ROWS, ROW_NUMBERS // each)
            for start in range(0, n, chunk):
                part = slice(start, start + chunk)
                _fill(out[1:][part], wrt, together, ones[part])
        return out

    def derivatives(self, structure: Structure) -> Derivatives:
        """Return energy, forces, stress where there is one, and ∂E/∂θ (P,)."""
        graphs, stress = self.graphs([structure]), structure.is_bulk
        if self.compiler is not None:
            program = self.compiler.program(graphs, stress=stress, weights=True)
            if program is not None:
                found = program(graphs)
                gradient = torch.zeros(self.n_parameters, dtype=self.dtype)
                gradient[self.compiler.columns] = found.gradient
                return replace(found, gradient=gradient)
        found = self._derivatives(graphs, stress=stress)
        return replace(found, gradient=found.gradient.cpu())

    def _derivatives(
        self, graphs: GraphBatch, *, stress: bool = False, weights: bool = True
    ) -> Derivatives:
        """Return the same of any graph, the gradient on the potential's device."""
        wanted = self._inputs(graphs, True, stress)
        energy, _ = self.energies(graphs)
        slope, *others = torch.autograd.grad(
            energy.sum(),
            [*wanted, *(self._parameters if weights else [])],
            materialize_grads=True,
        )
        tension = _stress(others.pop(0), graphs)[0] if stress else None
        total = float(energy.detach().sum()) + float(graphs.isolated.sum())
        gradient = torch.cat([slope.new_zeros(0), *(g.reshape(-1) for g in others)])
        return Derivatives(total, _array(-slope), tension, gradient)

    def relevant(self, numbers: np.ndarray) -> torch.Tensor:
        """Return the indices into `theta` of weights that matter to these elements, ascending."""
        return torch.arange(self.n_parameters)

    def recipe(self) -> Any:
        """Return a picklable with `build`, the same model with any weights, or None.

        None of models that are not worth compiling (see `core.potentials.compiled`).
        """
        return None

    def members(self) -> Members:
        """Return an evaluator of many weight vectors at once."""
        return Members(self)

    def evaluator(self, structure: Structure, *, skin: float = 0.5) -> Evaluator:
        """Return positions (N, 3) -> (energy eV, forces eV/Å) for MD; shares the weights."""
        return Evaluator(self, structure, skin=skin)

    def compile(self, structure: Structure, folder: Path) -> Compiler:
        """Compile steps of `structure` from now on, in the background; keep them in `folder`.

        Evaluators and members use them as soon as they are there.
        """
        self.compiler = Compiler(self, structure, folder)
        return self.compiler


class Evaluator:
    """Energy and forces of one structure, step by step.

    The neighbour list reaches `skin` Å beyond the cutoff and is rebuilt when an atom has moved by
    half of it; edges beyond the cutoff contribute exactly nothing.

    Attributes:
        changes: (M,) ∂E/∂θ along the directions given to `watch`, eV, at the last positions; it
            takes the same backward pass as the forces. None while nothing is watched.
        stress: (3, 3), eV/Å³, at the last positions, if the cell was given with them.
    """

    def __init__(self, potential: TorchPotential, structure: Structure, *, skin: float) -> None:
        self._potential = potential
        self._neighbours = SkinList(structure, potential.cutoff, skin)
        edges = self._neighbours.edges(structure.positions)
        self._graphs = potential.collate([structure], [edges])
        self._directions: torch.Tensor | None = None
        self._columns = potential.relevant(structure.numbers).to(potential.device)
        self.changes: np.ndarray | None = None
        self.stress: np.ndarray | None = None

    def watch(self, directions: torch.Tensor | None) -> None:
        """From now on give `changes` along `directions`; stop with None.

        Args:
            directions: (M, K), of the `relevant` weights only.
        """
        self.changes = None
        self._directions = None if directions is None else directions.to(self._potential.device)

    def __call__(
        self, positions: np.ndarray, cell: np.ndarray | None = None
    ) -> tuple[float, np.ndarray]:
        """Return the energy, eV, and the forces (N, 3), eV/Å; with a `cell`, set `stress` too."""
        graphs = self._graphs
        edges = self._neighbours.edges(positions, cell)
        if self._neighbours.rebuilt:
            graphs.senders = self._potential._indices(edges.senders)
            graphs.receivers = self._potential._indices(edges.receivers)
            graphs.shifts = self._potential._reals(edges.shifts)
        graphs.positions = self._potential._reals(positions)
        if cell is not None:
            graphs.volumes = np.array([abs(np.linalg.det(cell))])
        stress, weights = cell is not None, self._directions is not None
        program, compiler = None, self._potential.compiler
        if compiler is not None:
            program = compiler.program(graphs, stress=stress, weights=weights)
        if program is not None:
            found = program(graphs)
            gradient = found.gradient
        elif not stress and not weights:
            energy, force = self._potential.energy_and_forces(graphs)
            return float(energy.detach()) + float(graphs.isolated[0]), _array(force)
        else:
            found = self._potential._derivatives(graphs, stress=stress, weights=weights)
            gradient = found.gradient[self._columns] if weights else found.gradient
        self.stress = found.stress
        if self._directions is not None:
            self.changes = _array(self._directions @ gradient)
        return found.energy, found.forces


def _array(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().numpy().astype(np.float64)


def _split(values: torch.Tensor, sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.split(_array(values), np.cumsum(sizes)[:-1]))


def _stress(slope: torch.Tensor, graphs: GraphBatch) -> np.ndarray:
    """Return the stress (S, 3, 3), eV/Å³, from ∂E/∂strain; nan where there is no volume."""
    return _array(slope) / graphs.volumes[:, None, None]


def _fill(
    out: torch.Tensor, wrt: Sequence[torch.Tensor], values: torch.Tensor, vectors: torch.Tensor
) -> None:
    """Write the derivatives of vectors · values by some tensors, side by side, into `out`."""
    grads = torch.autograd.grad(
        values, wrt, vectors, is_grads_batched=True,
        retain_graph=True, allow_unused=True, materialize_grads=True,
    )  # fmt: skip
    start = 0
    for g in grads:
        width = g[0].numel()
        out[:, start : start + width] = g.reshape(len(out), width)
        start += width
