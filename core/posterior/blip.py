"""A variational posterior of multiplicative noise on the weights (BLIP, arXiv 2508.14022).

Every weight is θ (1 + √α ε), ε ~ N(0, 1). The α of each block of weights is predicted for each
structure, from its atoms' invariant features, by a small inference network; θ and the network are
trained together on the expected likelihood of the labels and a scaled Kullback-Leibler divergence
from noise of a prior strength. The paper leaves MACE out, because noise drawn for each component of
an equivariant feature breaks its symmetry. Here noise is drawn once for each pass, and on the
*weights*, which mix channels and never components: every pass is a MACE, equivariant exactly, whose
force is minus the gradient of its energy, α's own dependence on positions included.

Most of what such noise does to an energy is one constant for all structures of a system, which says
nothing about any of them. So every pass has a constant of its own, the most probable one for the
labels; in training it is taken out of each batch, all of whose labels see the same noise. A pass is
known by the seed of its noise: however many there are, the weights kept are those of one model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import safetensors.torch
import torch

from core.contracts import Info, LabelSet, Potential, Spread
from core.posterior.largest import largest_change
from core.structures import Structure
from core.training import Dataset

BATCH = 5
HIDDEN = 16
"""Width of the inference network."""
LOG_ALPHA = (-14.0, -1.0)
"""Bounds of log α."""
SECOND_MOMENT = 0.999
TENSORS = ("theta", "network", "centre", "scale", "log_alpha")
"""Of the state."""
Noise = Literal["weights", "gates"]
"""Of every weight by itself, or one for all weights of a map that lead to one channel."""


@dataclass(frozen=True)
class State:
    """Mean weights, the inference network, and the passes.

    Attributes:
        theta: (P,). network: flat weights of the inference network. centre, scale: (D,) of the
            features, by which they are standardised. log_alpha: (B,) mean over the labels.
        bias: constant added to the mean's energies, and biases: (M,) to those of each pass, eV.
        seed: of the noise of the passes, the same for every structure. n_labels: taken in.
    """

    theta: torch.Tensor
    network: torch.Tensor
    centre: torch.Tensor
    scale: torch.Tensor
    log_alpha: torch.Tensor
    bias: float
    biases: np.ndarray
    seed: int
    n_labels: int = 0


class Inference:
    """log α of B blocks from standardised features (S, D): a network of one hidden layer.

    Its last layer starts at zero, so that at first α is the same for every structure.
    """

    def __init__(self, width: int, blocks: int) -> None:
        self.shapes = ((width, HIDDEN), (HIDDEN,), (HIDDEN, blocks), (blocks,))
        self._sizes = [math.prod(shape) for shape in self.shapes]

    def initial(self, log_alpha: float, rng: np.random.Generator, dtype: torch.dtype) -> Any:
        """Return flat weights that give `log_alpha` everywhere."""
        first = rng.standard_normal(self.shapes[0]) / math.sqrt(self.shapes[0][0])
        rest = [np.zeros(self.shapes[1]), np.zeros(self.shapes[2])]
        last = np.full(self.shapes[3], log_alpha)
        flat = np.concatenate([part.ravel() for part in (first, *rest, last)])
        return torch.as_tensor(flat, dtype=dtype)

    def __call__(self, weights: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return log α (S, B), bounded."""
        w1, b1, w2, b2 = (
            part.view(shape)
            for part, shape in zip(weights.split(self._sizes), self.shapes, strict=True)
        )
        low, high = LOG_ALPHA
        free = torch.nn.functional.silu(features @ w1 + b1) @ w2 + b2
        middle, half = (low + high) / 2, (high - low) / 2
        return middle + half * torch.tanh((free - middle) / half)


class Blip:
    """Algorithm object; see `core.contracts.Posterior`.

    Args:
        noise_energy, noise_force: of labels, eV and eV/Å. passes: stochastic evaluations of each
            structure. prior: α of the prior. kl: weight of the divergence, a mean over weights,
            beside the likelihood, a mean over a label's numbers. steps, rate: of Adam, at each
            update. noise: see `Noise`. moving: indices of the weights that are noisy and may move.
    """

    def __init__(
        self, potential: Potential, *, noise_energy: float, noise_force: float, passes: int = 8,
        prior: float = 1e-3, kl: float = 1.0, steps: int = 300, rate: float = 1e-3,
        noise: Noise = "weights", moving: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        self.potential = potential
        self._torch = cast(Any, potential)  # whose parts are used below the contract
        self.noise_energy, self.noise_force = noise_energy, noise_force
        self.passes, self.prior, self.kl, self.noise = passes, prior, kl, noise
        self.steps, self.rate = steps, rate
        self.prior_theta = potential.get_theta()
        self._network = self._torch.members().network
        blocks = potential.blocks()
        sizes = torch.tensor([where.stop - where.start for where in blocks.values()])
        self._block = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        self._shares = sizes / sizes.sum()
        self._moves = torch.ones(len(self._block), dtype=self.prior_theta.dtype)
        if moving is not None:
            self._moves.zero_()[moving] = 1
        self._inference = Inference(self._width(), len(sizes))

    def _width(self) -> int:
        atom = Structure(np.array(self.potential.elements[:1]), np.zeros((1, 3)))
        found = self.potential.predict([atom], forces=False, features=True).features
        assert found is not None
        return int(found[0].shape[1])

    # ------------------------------------------------------------------ contract

    def init(self, rng: np.random.Generator) -> State:
        """Return the foundation with the noise of the prior."""
        dtype, width = self.prior_theta.dtype, self._inference.shapes[0][0]
        level = math.log(self.prior)
        return State(
            theta=self.prior_theta.clone(),
            network=self._inference.initial(level, rng, dtype),
            centre=torch.zeros(width, dtype=dtype),
            scale=torch.ones(width, dtype=dtype),
            log_alpha=torch.full((len(self._shares),), level, dtype=dtype),
            bias=0.0,
            biases=np.zeros(self.passes),
            seed=int(rng.integers(2**32)),
        )

    def update(
        self, state: State, labels: LabelSet, rng: np.random.Generator
    ) -> tuple[State, Info]:
        """Train mean and inference network on all of `labels`."""
        if state.n_labels == 0:
            state = self._standardised(state, labels)
        self.activate(state)
        data = Dataset(self.potential, labels)
        means = [state.theta.clone().requires_grad_(True), state.network.clone()]
        means[1].requires_grad_(True)
        optimizer = torch.optim.Adam(means, lr=self.rate, betas=(0.9, SECOND_MOMENT))
        loss = math.nan
        for step in range(self.steps):
            for group in optimizer.param_groups:
                group["lr"] = self.rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            drawn = rng.choice(len(data), size=min(BATCH, len(data)), replace=False)
            examples = [data.example([k]) for k in drawn.tolist()]
            total = self._free_energy(state, means, examples, rng)
            gradients = torch.autograd.grad(total, means)
            means[0].grad, means[1].grad = gradients[0] * self._moves, gradients[1]
            optimizer.step()
            self.potential.set_theta(means[0].detach())
            loss = float(total.detach())
        theta, network = (m.detach() for m in means)
        state = replace(state, theta=theta, network=network, n_labels=len(labels))
        log_alpha = self.log_alpha(state, labels.structures)
        state = self._with_constants(replace(state, log_alpha=log_alpha.mean(0)), labels)
        known = self._shares.to(log_alpha.dtype) @ state.log_alpha.exp()
        return state, Info({"loss": loss, "alpha": float(known)})

    def activate(self, state: State) -> None:
        """Put the mean weights in force."""
        self.potential.set_theta(state.theta)

    def spread(self, state: State, structure: Structure, *, quick: bool = False) -> Spread:
        """Prediction of the mean weights; spread of the passes about it."""
        central = self.potential.predict([structure])
        assert central.forces is not None
        energy = float(central.energies[0]) + state.bias
        energies, forces = self.sampled(state, structure)
        off = energies + state.biases + self.potential.isolated_energy(structure) - energy
        return Spread(
            energy=energy,
            forces=central.forces[0],
            sigma_energy=float(np.sqrt((off**2).mean())),
            sigma_forces=np.sqrt(((forces - central.forces[0]) ** 2).mean(0).sum(-1)),
            sigma_force=largest_change(forces - central.forces[0]),
        )

    def sampled(self, state: State, structure: Structure) -> tuple[np.ndarray, np.ndarray]:
        """Return interaction energies (M,) and forces (M, N, 3) of the passes.

        The mean weights must be active. Each force is minus the gradient of its pass's energy.
        """
        graphs: Any = self.potential.graphs([structure])
        graphs.positions.requires_grad_(True)
        log_alpha = self._log_alpha(state, state.network, graphs)[0]
        level = log_alpha.detach().requires_grad_(True)
        geometry = list(self._torch.geometry(graphs))
        energies, at_level, by_level = [], [], []
        for epsilon in self._passes(state):
            theta = self._noisy(state.theta, level, epsilon)
            energy = self._network.energy(theta, graphs, geometry)
            slopes = torch.autograd.grad(energy, (graphs.positions, level), retain_graph=True)
            energies.append(float(energy.detach()))
            at_level.append(slopes[0])
            by_level.append(slopes[1])
        (through,) = torch.autograd.grad(
            log_alpha, graphs.positions, torch.stack(by_level), is_grads_batched=True
        )
        return np.array(energies), -(torch.stack(at_level) + through).double().numpy()

    def log_alpha(self, state: State, structures: tuple[Structure, ...]) -> torch.Tensor:
        """Return log α (S, B) of every block of weights; the mean weights must be active."""
        with torch.no_grad():
            graphs = self.potential.graphs(structures)
            return self._log_alpha(state, state.network, graphs)

    def members(self, state: State) -> torch.Tensor:
        """Weights of the passes, (M, P), with the noise that suits the labels on average."""
        epsilon = torch.stack(list(self._passes(state)))
        rows = state.log_alpha.expand(len(epsilon), -1)
        return self._noisy(state.theta, rows, epsilon)

    def watched(self, state: State) -> None:
        """Not available: the passes' energies are not linear in their weights."""

    def energy_sigma(self, state: State, changes: np.ndarray) -> float:
        """Nothing is watched, so there is nothing to judge by."""
        return math.nan

    def unknown(self, state: State, structures: Sequence[Structure]) -> None:
        """Not available: passes are samples, too few for so many numbers."""

    def leave_one_out(self, state: State, labels: LabelSet) -> None:
        """Not available without training once per label."""

    # ------------------------------------------------------------------ noise

    def _passes(self, state: State) -> Iterator[torch.Tensor]:
        """Yield the noise (P,) of every pass."""
        for k in range(len(state.biases)):
            yield self._epsilon(np.random.default_rng([state.seed, k]))

    def _epsilon(self, rng: np.random.Generator) -> torch.Tensor:
        """Return noise for one pass, (P,)."""
        drawn = rng.standard_normal(len(self._block), dtype=np.float32)
        noise = torch.as_tensor(drawn).to(self.prior_theta.dtype)
        if self.noise == "gates":
            blocks = self.potential.blocks()
            for name, matrices in self.potential.matrices().items():
                for start, rows, columns in matrices:
                    first = blocks[name].start + start
                    gate = noise[first : first + columns].clone()
                    noise[first : first + rows * columns] = gate.repeat(rows)
        return noise * self._moves

    def _log_alpha(self, state: State, network: torch.Tensor, graphs: Any) -> torch.Tensor:
        """Return log α (S, B); differentiable in positions and network, not in the weights."""
        _, features = self._torch.energies(graphs)
        standard = (features - state.centre) / state.scale
        sums = torch.zeros(graphs.n_structures, standard.shape[1], dtype=standard.dtype)
        counts = torch.tensor(graphs.n_atoms, dtype=standard.dtype)[:, None]
        pooled = sums.index_add(0, graphs.index, standard) / counts
        return self._inference(network, pooled)

    def _noisy(
        self, theta: torch.Tensor, log_alpha: torch.Tensor, epsilon: torch.Tensor
    ) -> torch.Tensor:
        """Return θ (1 + √α ε) (…, P), from log α (…, B) and ε (…, P)."""
        return theta * (1 + (0.5 * log_alpha).exp()[..., self._block] * epsilon)

    def _standardised(self, state: State, labels: LabelSet) -> State:
        """Centre and scale features by those of the first labels' atoms."""
        found = self.potential.predict(labels.structures, forces=False, features=True).features
        assert found is not None
        atoms = torch.as_tensor(np.concatenate(found), dtype=state.theta.dtype)
        spread = atoms.std(0)
        return replace(state, centre=atoms.mean(0), scale=torch.where(spread > 0, spread, 1.0))

    # ------------------------------------------------------------------ training

    def _free_energy(
        self, state: State, means: list[torch.Tensor], examples: list[Any], rng: np.random.Generator
    ) -> torch.Tensor:
        """Return the negative evidence bound of some labels, a mean, with one draw of the noise.

        Their constant is the most probable one.
        """
        theta, network = means
        epsilon, off, rest, numbers = self._epsilon(rng), [], [], []
        for example in examples:
            graphs = example.graphs
            graphs.positions = graphs.positions.detach().requires_grad_(True)
            log_alpha = self._log_alpha(state, network, graphs)[0]
            weights = self._noisy(theta, log_alpha, epsilon)
            energy = self._network.energy(weights, graphs, list(self._torch.geometry(graphs)))
            (slope,) = torch.autograd.grad(energy, graphs.positions, create_graph=True)
            force = (((-slope - example.forces) / self.noise_force) ** 2).sum()
            off.append(energy - example.energies[0])
            numbers.append(1 + slope.numel())
            rest.append(0.5 * force / numbers[-1] + self.kl * self.divergence(log_alpha))
        n = len(off)
        energies = torch.stack(off)
        if n > 1:
            energies = (energies - energies.mean()) * math.sqrt(n / (n - 1))
        each = 0.5 * (energies / self.noise_energy) ** 2 / torch.tensor(numbers)
        return (each + torch.stack(rest)).mean()

    def _with_constants(self, state: State, labels: LabelSet) -> State:
        """Return the most probable constants for the labels; the mean weights must be active."""
        mean = labels.energies - self.potential.predict(labels.structures, forces=False).energies
        each = [
            energy - self.potential.isolated_energy(structure) - self.sampled(state, structure)[0]
            for structure, energy in zip(labels.structures, labels.energies, strict=True)
        ]
        return replace(state, bias=float(mean.mean()), biases=np.mean(each, axis=0))

    def divergence(self, log_alpha: torch.Tensor) -> torch.Tensor:
        """Return the divergence from the prior's noise, ½ (r - 1 - log r), a mean over weights."""
        log_ratio = log_alpha - math.log(self.prior)
        each = 0.5 * (log_ratio.exp() - 1 - log_ratio)
        return (self._shares.to(each.dtype) * each).sum()

    # ------------------------------------------------------------------ keeping

    def save(self, state: State, path: Path) -> None:
        """Write the state; of the passes the seed, by which they stay the same."""
        tensors = {name: getattr(state, name).contiguous() for name in TENSORS}
        tensors["constants"] = torch.as_tensor(np.array([state.bias, *state.biases]))
        tensors["seed"] = torch.tensor([state.seed])
        safetensors.torch.save_file(tensors, path)

    def shrink(self, path: Path) -> None:
        """Keep all: it is one model, and what was shown hangs on it."""

    def restore(self, path: Path, labels: LabelSet) -> State:
        """Read what `save` wrote."""
        tensors = safetensors.torch.load_file(path)
        bias, *biases = tensors["constants"].tolist()
        state = State(
            **{name: tensors[name] for name in TENSORS}, bias=bias, biases=np.array(biases),
            seed=int(tensors["seed"][0]), n_labels=len(labels),
        )  # fmt: skip
        self.activate(state)
        return state
