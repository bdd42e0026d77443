"""What the parts of the engine say to one another: data types and protocols, no behaviour.

Letters used in shapes throughout `core`: N atoms, S structures, E edges, P parameters,
M members of an ensemble, D features. Energies in eV, lengths in Å, time in fs, forces in eV/Å.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from core.structures import Structure

if TYPE_CHECKING:  # torch is loaded by the worker only
    import torch

Array = np.ndarray


@dataclass(frozen=True)
class Label:
    """What a reference method says about one structure.

    Attributes:
        energy: total energy without any bias, eV.
        forces: (N, 3), eV/Å.
        fingerprint: the level of theory, see `Fingerprint.text`; never mixed within one head.
        wall_s: what the calculation cost.
    """

    structure: Structure
    energy: float
    forces: Array
    fingerprint: str
    wall_s: float = 0.0
    stress: Array | None = None


@dataclass(frozen=True)
class Failure:
    """A reference calculation that gave nothing usable.

    `kind` is one of "unconverged", "timeout", "crashed", "cancelled", "rejected" (the numbers
    came back but contradict themselves), "unsupported".
    """

    kind: str
    message: str
    wall_s: float = 0.0


class Reference(Protocol):
    """A level of theory. Instances are plain data and can be sent to another process."""

    @property
    def fingerprint(self) -> str:
        """Program, version, method, basis, charge and spin in one line."""
        ...

    def check(self, structure: Structure) -> None:
        """Raise `LabelError` where the method cannot treat `structure`."""
        ...

    def compute(self, structure: Structure) -> Label:
        """Return the label; raise `LabelError` where there is none. Blocks; one thread."""
        ...


@dataclass(frozen=True)
class Prediction:
    """Energies and forces of S structures, in the order they were given.

    Attributes:
        energies: (S,), eV, without the campaign's energy offset.
        forces: S arrays (N_s, 3), eV/Å; None where not asked for.
        features: S arrays (N_s, D) of rotation-invariant node features; None where not asked for.
        stress: (S, 3, 3), eV/Å³, tension positive; nan unless periodic in all directions.
    """

    energies: Array
    forces: tuple[Array, ...] | None = None
    features: tuple[Array, ...] | None = None
    stress: Array | None = None


@dataclass(frozen=True)
class Derivatives:
    """Of one structure: what one backward pass gives.

    Attributes:
        energy: eV. forces: (N, 3), eV/Å. stress: (3, 3), eV/Å³, or None. gradient: ∂E/∂θ (P,).
    """

    energy: float
    forces: Array
    stress: Array | None
    gradient: torch.Tensor


class Graphs(Protocol):
    """S structures prepared for a potential (edges, one-hot elements); opaque to others."""

    n_structures: int
    n_atoms: Sequence[int]


class Potential(Protocol):
    """A differentiable interatomic potential whose weights can be read, set and sampled.

    The flat parameter vector `theta` has shape (P,), float32 or float64 as the potential.
    Methods that take `theta=None` use the weights in force. A potential may have several heads,
    for levels of theory, with readouts and isolated atoms of their own; `head` is in use. Graphs
    and parameters are on `device`; theta, rows and derivatives always on the processor.
    """

    name: str
    elements: tuple[int, ...]
    cutoff: float
    n_parameters: int
    dtype: torch.dtype
    device: torch.device
    heads: tuple[str, ...]
    head: str

    @property
    def isolated_energies(self) -> Array:
        """(elements,) energies of the isolated atoms in the head in use, eV."""
        ...

    def get_theta(self) -> torch.Tensor:
        """Return a *copy* of the flat parameter vector (P,)."""
        ...

    def set_theta(self, theta: torch.Tensor) -> None:
        """Put `theta` (P,) in force."""
        ...

    def blocks(self) -> dict[str, slice]:
        """Return parameter name -> slice of `theta`, in order."""
        ...

    def parts(self) -> dict[str, str]:
        """Return parameter name -> part: embedding, interaction, product or readout."""
        ...

    def matrices(self) -> dict[str, list[tuple[int, int, int]]]:
        """Return parameter name -> matrices in the flattened tensor: (start, rows, columns)."""
        ...

    def using(self, head: str | None) -> AbstractContextManager[None]:
        """Let `head` be the one that energies are given of, in a with statement."""
        ...

    def set_isolated(self, energies: Array) -> None:
        """Put energies of the isolated atoms (elements,), eV, in force in the head in use."""
        ...

    def with_heads(self, heads: dict[str, Array]) -> Potential:
        """Return a copy with other heads, name -> energies of the isolated atoms; the last in use.

        Each starts as a copy of the one in use here.
        """
        ...

    def check(self, structure: Structure) -> None:
        """Raise `ModelError` naming the elements of `structure` the potential does not know."""
        ...

    def graphs(self, structures: Sequence[Structure]) -> Graphs:
        """Build the graph batch once; reuse it for repeated calls on the same structures."""
        ...

    def edges(self, structure: Structure) -> Any:
        """Return the pairs of `structure` within the cutoff, for `collate`."""
        ...

    def collate(self, structures: Sequence[Structure], edges: Sequence[Any]) -> Graphs:
        """Join structures whose `edges` are known into one batch."""
        ...

    def isolated_energy(self, structure: Structure) -> float:
        """Return the summed energy of the isolated atoms, eV."""
        ...

    def weights_hash(self) -> str:
        """Return a short hash of the weights in force."""
        ...

    def predict(
        self,
        structures: Sequence[Structure],
        *,
        forces: bool = True,
        features: bool = False,
        stress: bool = False,
    ) -> Prediction:
        """Energies, and on request forces, invariant features and stress, as numpy arrays."""
        ...

    def energy_and_forces(
        self, graphs: Graphs, *, create_graph: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Interaction energies (S,), without isolated atoms, and forces (ΣN, 3), eV and eV/Å.

        Differentiable in the weights if `create_graph`.
        """
        ...

    def energy_forces_features(
        self, graphs: Graphs
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `energy_and_forces` with features (ΣN, D), all differentiable in the weights."""
        ...

    def parameters(self) -> list[torch.nn.Parameter]:
        """Trainable tensors in the order of `theta`."""
        ...

    def rows(
        self,
        structure: Structure,
        *,
        forces: bool = True,
        stress: bool = False,
        blocks: Sequence[str] | None = None,
    ) -> torch.Tensor:
        """∂(E, F, σ)/∂θ: (1 + 3N + 6, P), energy row first; less without forces or stress.

        With `blocks`, of these parameters only, side by side in the order of `theta`.
        """
        ...

    def derivatives(self, structure: Structure) -> Derivatives:
        """Return energy, forces, stress where there is one, and ∂E/∂θ."""
        ...

    def relevant(self, numbers: Array) -> torch.Tensor:
        """Return the indices into `theta` of weights that matter to these elements, ascending."""
        ...

    def members(self) -> Members:
        """Return an evaluator of many weight vectors at once."""
        ...

    def compile(self, structure: Structure, folder: Path) -> Compiler:
        """Compile steps of `structure` from now on, in the background; keep them in `folder`."""
        ...

    def evaluator(self, structure: Structure) -> Evaluator:
        """Return a fast positions (N, 3) -> (energy, forces) function for MD, weights shared."""
        ...


@dataclass(frozen=True)
class Compilation:
    """What became of compiling a step: milliseconds before and with it, or why it is not done."""

    before_ms: float = 0.0
    after_ms: float = 0.0
    problem: str = ""


class Compiler(Protocol):
    """Makes faster steps of one structure in the background.

    Attributes:
        news: what has become of the first, and why there are no more; until taken.
    """

    news: list[Compilation]

    def close(self) -> None:
        """Give up what is being made."""
        ...


class Members(Protocol):
    """Evaluates weight vectors that are independent of those in force."""

    def __call__(
        self, structure: Structure, thetas: torch.Tensor
    ) -> tuple[Array, Array, Array | None]:
        """Return interaction energies (M,), forces (M, N, 3) and stress (M, 3, 3) of (M, P)."""
        ...

    def slopes(
        self, structure: Structure, theta: torch.Tensor, directions: torch.Tensor
    ) -> tuple[Array, Array | None]:
        """Return ∂F/∂θ (M, N, 3), eV/Å, and ∂σ/∂θ (M, 3, 3), eV/Å³, of crystals.

        At `theta` (P,), along `directions` (M, P).
        """
        ...


class Evaluator(Protocol):
    """Energy and forces of one structure, step by step.

    Attributes:
        changes: (M,) ∂E/∂θ along the directions watched, eV, at the last positions, or None.
        stress: (3, 3), eV/Å³, at the last positions, if the cell was given with them.
    """

    changes: Array | None
    stress: Array | None

    def __call__(self, positions: Array, cell: Array | None = None) -> tuple[float, Array]:
        """Return the energy, eV, and the forces (N, 3), eV/Å; with a `cell`, set `stress` too."""
        ...

    def watch(self, directions: torch.Tensor | None) -> None:
        """Give `changes` from now on, along (M, K) of the `relevant` weights; stop with None."""
        ...


@dataclass(frozen=True)
class LabelSet:
    """Labels a posterior learns from, with the constant of each removed.

    `energies` are the labels' energies minus the campaign's offset, so that they are comparable
    with the potential's own. `stress` is empty where it is not learned from; else one (3, 3) for
    each label, eV/Å³.
    """

    structures: tuple[Structure, ...]
    energies: Array
    forces: tuple[Array, ...]
    stress: tuple[Array, ...] = ()

    def __len__(self) -> int:
        return len(self.structures)


@dataclass(frozen=True)
class Spread:
    """A posterior's opinion of one structure, before calibration.

    Attributes:
        energy: predictive mean, eV (without offset). forces: (N, 3).
        sigma_energy: standard deviation of the total energy, eV.
        sigma_forces: (N,) standard deviation of each atom's force vector (root of the summed
            variance of its three components), eV/Å.
        sigma_force: size of the frame's largest force error: the root mean square over the samples
            of the largest change among the atoms' force vectors, eV/Å.
        stress: (3, 3), eV/Å³, and sigma_stress: standard deviation of its least certain component;
            None and nan where stress is not learned from.
    """

    energy: float
    forces: Array
    sigma_energy: float
    sigma_forces: Array
    sigma_force: float
    stress: Array | None = None
    sigma_stress: float = float("nan")


@dataclass(frozen=True)
class Info:
    """Diagnostics of one update; nothing in it is needed to go on."""

    values: dict[str, Any] = field(default_factory=dict)


class Posterior(Protocol):
    """The shape of every posterior module's algorithm object (see `core.posterior`)."""

    def init(self, rng: np.random.Generator) -> Any:
        """Return the state before any label."""
        ...

    def update(self, state: Any, labels: LabelSet, rng: np.random.Generator) -> tuple[Any, Info]:
        """Condition on all of `labels` (old ones included); the potential's weights follow."""
        ...

    def activate(self, state: Any) -> None:
        """Put the state's mean weights in force in the potential."""
        ...

    def spread(self, state: Any, structure: Structure, *, quick: bool = False) -> Spread:
        """Mean and standard deviations for one structure.

        Args:
            quick: take fewer samples of the forces, where that saves time.
        """
        ...

    def members(self, state: Any) -> torch.Tensor:
        """Weights of the ensemble members, (M, P)."""
        ...

    def watched(self, state: Any) -> torch.Tensor | None:
        """Directions for `Evaluator.watch`; None if the energy is judged with the forces only."""
        ...

    def energy_sigma(self, state: Any, changes: Array) -> float:
        """Return σ of the total energy, eV, from its `changes` along the directions watched."""
        ...

    def unknown(self, state: Any, structures: Sequence[Structure]) -> list[Array] | None:
        """Rows (R, D) of each structure: what a label of it would tell, given all labels.

        Inner products are the covariance of energy, forces and stress in units of their noise, the
        energy's row first. None where the posterior has no such covariance.
        """
        ...

    def leave_one_out(
        self, state: Any, labels: LabelSet
    ) -> tuple[Array, Array, Array, Array] | None:
        """Errors (S,) eV, z-scores, force and stress ratios (S,) of each label from all others.

        None where the posterior cannot tell; the calibration then starts from its prior.
        """
        ...

    def save(self, state: Any, path: Path) -> None:
        """Write the state as safetensors."""
        ...

    def shrink(self, path: Path) -> None:
        """Reduce what `save` wrote of a state no longer in force to what `restore` cannot redo."""
        ...

    def restore(self, path: Path, labels: LabelSet) -> Any:
        """Read what `save` wrote; `labels` are those it was conditioned on."""
        ...
