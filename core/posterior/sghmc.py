"""Stochastic-gradient Hamiltonian Monte Carlo over the weights, as published (arXiv 2507.13805).

Potential energy U(θ) = -(1/S) log p(θ) - mean_i log p(y_i|θ), target exp(-S·U), prior
N(θ_pre, s²). AMSGRAD mass, friction a:
    v ← 0.999 v + 0.001 g²;  v̂ ← max(v̂, v);  M⁻¹ = 1/(√(v̂/(1 - 0.999^t)) + 1e-4)
    p ← (1 - a) p - a g + a ξ,  ξ ~ N(0, 2/(lr·M⁻¹·S));  θ ← θ + lr·M⁻¹·p
Chains are warm-started and give one member each: closer to noisy warm-started members than to
mixed posterior draws, which the reported diagnostics say. A mass that goes on adapting biases the
law that is sampled (arXiv 2403.08609); it can be frozen once the noise begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from core.contracts import Info, LabelSet, Potential, Spread
from core.posterior.diagnostics import effective_size, split_r_hat
from core.posterior.largest import largest_change
from core.structures import Structure
from core.training import Dataset
from core.units import KCAL_PER_MOL

BATCH = 5
PROBES, DRAWS = 5, 60
"""Labels whose predicted energy is followed to diagnose mixing, and how often in a burst."""
FORCE_NOISE = 0.1 * KCAL_PER_MOL
"""Force-component noise where the noise network says nothing, eV/Å."""


@dataclass(frozen=True)
class Schedule:
    """One burst of sampling; `noiseless` and `ramp` are fractions of `steps`.

    Attributes:
        frozen: whether the mass stays what it is when the noise begins; published: it does not.
    """

    steps: int = 2000
    learning_rate: float = 1e-3
    friction: float = 0.1
    noiseless: float = 0.2
    ramp: float = 0.05
    frozen: bool = False

    def rate(self, t: int) -> float:
        """Cosine learning rate at step `t`."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * t / self.steps))

    def temperature(self, t: int) -> float:
        """Factor on the noise *variance* at step `t`: 0, then a linear ramp, then 1."""
        width = max(1.0, self.ramp * self.steps)
        return min(1.0, max(0.0, (t - self.start) / width))

    @property
    def start(self) -> int:
        """The step at which the noise begins."""
        return round(self.noiseless * self.steps)

    def draws(self, t: int) -> bool:
        """Whether step `t` is one of those kept to diagnose mixing."""
        first = self.start + round(self.ramp * self.steps)
        return t >= first and (t - first) % max(1, (self.steps - first) // DRAWS) == 0


@dataclass(frozen=True)
class Chain:
    """One chain's variables at step `t`: x and momentum p (Q,), second moments v and v̂ (Q,)."""

    x: torch.Tensor
    p: torch.Tensor
    v: torch.Tensor
    v_max: torch.Tensor
    t: int = 0


def start(x: torch.Tensor) -> Chain:
    """Return a chain at rest at `x`."""
    zero = torch.zeros_like(x)
    return Chain(x, zero, zero, zero)


def step(
    chain: Chain, gradient: torch.Tensor, n_data: int, schedule: Schedule, noise: torch.Tensor
) -> Chain:
    """One SGHMC step; `gradient` is ∇U at `chain.x`, `noise` standard normal of its shape."""
    a, t = schedule.friction, chain.t + 1
    v, v_max, seen = chain.v, chain.v_max, t
    if schedule.frozen and t > max(1, schedule.start):
        seen = max(1, schedule.start)
    else:
        v = 0.999 * v + 0.001 * gradient**2
        v_max = torch.maximum(v_max, v)
    inverse_mass = 1.0 / ((v_max / (1 - 0.999**seen)).sqrt() + 1e-4)
    scaled = schedule.rate(chain.t) * inverse_mass
    kick = noise * (2 * schedule.temperature(chain.t) / (scaled * n_data)).sqrt()
    p = (1 - a) * chain.p - a * gradient + a * kick
    return Chain(chain.x + scaled * p, p, v, v_max, t)


@dataclass(frozen=True)
class State:
    """Members: weights (M, P) and noise-network weights (M, Q); labels taken in."""

    theta: torch.Tensor
    noise: torch.Tensor
    n_labels: int = 0


class NoiseNetwork:
    """g(h): a two-layer network on invariant node features whose last layer starts at zero."""

    def __init__(self, width: int, hidden: int = 16) -> None:
        self.sizes = (width * hidden, hidden, hidden, 1)
        self.width, self.hidden = width, hidden
        self.n_parameters = sum(self.sizes)

    def initial(self, rng: np.random.Generator, dtype: torch.dtype) -> torch.Tensor:
        """Return weights that give g = 0 everywhere."""
        first = rng.standard_normal(self.sizes[0]) / math.sqrt(self.width)
        rest = np.zeros(self.n_parameters - self.sizes[0])
        return torch.as_tensor(np.concatenate([first, rest]), dtype=dtype)

    def __call__(self, weights: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return g (ΣN,), limited to ±4."""
        w1, b1, w2, b2 = weights.split(self.sizes)
        hidden = torch.nn.functional.silu(features @ w1.view(self.width, self.hidden) + b1)
        return 4 * torch.tanh((hidden @ w2 + b2) / 4)


class Sghmc:
    """Algorithm object; see `core.contracts.Posterior`.

    Args:
        energy_tolerance: ε in eV; the energy noise is 0.1·ε. bias is left to the caller.
        moving: indices of the weights that may move, by default all.
    """

    def __init__(
        self,
        potential: Potential,
        *,
        prior_std: float,
        energy_tolerance: float,
        chains: int = 8,
        schedule: Schedule,
        moving: torch.Tensor | None = None,
    ) -> None:
        self.potential, self.prior_std, self.chains = potential, prior_std, chains
        self.energy_noise = 0.1 * energy_tolerance
        self.schedule = schedule
        self.prior_theta = potential.get_theta()
        self._network: NoiseNetwork | None = None
        self._moves = torch.ones(potential.n_parameters, dtype=torch.bool)
        if moving is not None:
            self._moves[:] = False
            self._moves[moving] = True

    def init(self, rng: np.random.Generator) -> State:
        """Every chain starts at the foundation's weights."""
        theta = self.prior_theta.repeat(self.chains, 1)
        return State(theta, torch.zeros(self.chains, 0, dtype=theta.dtype))

    def update(
        self, state: State, labels: LabelSet, rng: np.random.Generator
    ) -> tuple[State, Info]:
        """Resample every chain with all of `labels`; the newest are oversampled."""
        data = Dataset(self.potential, labels)
        state = self._with_noise_network(state, labels.structures[0], rng)
        weights = self._sampling_weights(len(labels), state.n_labels)
        probes = data.example(range(min(PROBES, len(labels)))).graphs
        members, losses, traces = [], [], []
        for m in range(self.chains):
            x = torch.cat([state.theta[m], state.noise[m]])
            one = np.random.default_rng(rng.integers(2**63))
            x, loss, trace = self._run(x, data, weights, one, probes)
            members.append(x)
            losses.append(loss)
            traces.append(trace)
        stacked = torch.stack(members)
        p = self.potential.n_parameters
        new = replace(state, theta=stacked[:, :p], noise=stacked[:, p:], n_labels=len(labels))
        self.activate(new)
        return new, Info({"loss": losses, **between_chains(new.theta), **mixing(traces)})

    def _with_noise_network(
        self, state: State, structure: Structure, rng: np.random.Generator
    ) -> State:
        if self._network is None:
            features = self.potential.predict([structure], forces=False, features=True).features
            assert features is not None
            self._network = NoiseNetwork(features[0].shape[1])
        if state.noise.shape[1] == self._network.n_parameters:
            return state
        fresh = [self._network.initial(rng, state.theta.dtype) for _ in range(self.chains)]
        return replace(state, noise=torch.stack(fresh))

    @staticmethod
    def _sampling_weights(n: int, n_old: int) -> np.ndarray:
        """New labels are drawn ⌈S/4⌉ times as often as old ones."""
        weights = np.ones(n)
        weights[n_old:] = math.ceil(n / 4)
        return weights / weights.sum()

    def _run(
        self, x: torch.Tensor, data: Dataset, weights: np.ndarray, rng: np.random.Generator,
        probes: Any,
    ) -> tuple[torch.Tensor, float, np.ndarray]:  # fmt: skip
        """Return where the chain ends, its last loss, and energies (T, probes) on the way."""
        chain, n, loss, trace = start(x), len(data), 0.0, []
        still = torch.cat([~self._moves, torch.zeros(len(x) - len(self._moves), dtype=torch.bool)])
        for _ in range(self.schedule.steps):
            indices = rng.choice(n, size=min(BATCH, n), p=weights).tolist()
            importance = torch.as_tensor(1 / (n * weights[indices]), dtype=x.dtype)
            gradient, loss = self._gradient(chain.x, data, indices, importance, n)
            noise = torch.as_tensor(rng.standard_normal(len(x), dtype=np.float32)).to(x.dtype)
            gradient[still] = noise[still] = 0.0
            if self.schedule.draws(chain.t):
                trace.append(self._energies(chain.x, probes))
            chain = step(chain, gradient, n, self.schedule, noise)
        return chain.x, loss, np.array(trace)

    def _energies(self, x: torch.Tensor, graphs: Any) -> np.ndarray:
        self.potential.set_theta(x[: self.potential.n_parameters])
        energies, _ = self.potential.energy_and_forces(graphs)
        return energies.detach().double().numpy()

    def _gradient(
        self, x: torch.Tensor, data: Dataset, indices: list[int], importance: torch.Tensor, n: int
    ) -> tuple[torch.Tensor, float]:
        """Return ∇U and U's data term on one importance-weighted batch."""
        p = self.potential.n_parameters
        self.potential.set_theta(x[:p])
        noise = x[p:].detach().requires_grad_(True)
        example = data.example(indices)
        energy, forces, features = self.potential.energy_forces_features(example.graphs)
        loss = self._negative_log_likelihood(example, energy, forces, features, noise, importance)
        gradients = torch.autograd.grad(
            loss, [*self.potential.parameters(), noise], materialize_grads=True
        )
        gradient = torch.cat([g.reshape(-1) for g in gradients])
        gradient[:p] += (x[:p] - self.prior_theta) / (n * self.prior_std**2)
        return gradient, float(loss.detach())

    def _negative_log_likelihood(self, example, energy, forces, features, noise, importance):  # type: ignore[no-untyped-def]  # noqa: E501
        assert self._network is not None
        log_scale = self._network(noise, features) + math.log(FORCE_NOISE)
        atoms = 0.5 * ((forces - example.forces) / log_scale.exp()[:, None]).pow(2).sum(1)
        atoms = atoms + 3 * log_scale
        structures = 0.5 * ((energy - example.energies) / self.energy_noise).pow(2)
        per_structure = structures.index_add(0, example.graphs.index, atoms)
        return (importance * per_structure).mean()

    def activate(self, state: State) -> None:
        """Put the mean of the members' weights in force."""
        self.potential.set_theta(state.theta.mean(0))

    def spread(self, state: State, structure: Structure, *, quick: bool = False) -> Spread:
        """Mean over members; variance between them (ddof 1) plus mean aleatoric variance."""
        energies, forces, noise = [], [], []
        for theta, weights in zip(state.theta, state.noise, strict=True):
            self.potential.set_theta(theta)
            out = self.potential.predict([structure], features=True)
            assert out.forces is not None and out.features is not None
            energies.append(out.energies[0])
            forces.append(out.forces[0])
            noise.append(self._force_variance(weights, out.features[0]))
        self.activate(state)
        epistemic = np.var(forces, axis=0, ddof=1).sum(axis=1)
        aleatoric = 3 * np.mean(noise, axis=0)
        largest = largest_change(np.array(forces) - np.mean(forces, axis=0), ddof=1)
        return Spread(
            energy=float(np.mean(energies)),
            forces=np.mean(forces, axis=0),
            sigma_energy=math.sqrt(np.var(energies, ddof=1) + self.energy_noise**2),
            sigma_forces=np.sqrt(epistemic + aleatoric),
            sigma_force=math.sqrt(largest**2 + aleatoric.max()),
        )

    def _force_variance(self, weights: torch.Tensor, features: np.ndarray) -> np.ndarray:
        if self._network is None or not len(weights):
            return np.full(len(features), FORCE_NOISE**2)
        g = self._network(weights, torch.as_tensor(features, dtype=weights.dtype))
        return (FORCE_NOISE * g.exp()).pow(2).detach().numpy()

    def members(self, state: State) -> torch.Tensor:
        """Weights of the chains, (M, P)."""
        return state.theta

    def watched(self, state: State) -> None:
        """Not available: the members' energies are not linear in their weights."""
        return None

    def energy_sigma(self, state: State, changes: np.ndarray) -> float:
        """Nothing is watched, so there is nothing to judge by."""
        return math.nan

    def unknown(self, state: State, structures: Sequence[Structure]) -> None:
        """Not available: chains are samples, too few for so many numbers."""

    def leave_one_out(self, state: State, labels: LabelSet) -> None:
        """Not available without resampling once per label."""

    def save(self, state: State, path: Path) -> None:
        """Write the members."""
        safetensors.torch.save_file(
            {"theta": state.theta.contiguous(), "noise": state.noise.contiguous()}, path
        )

    def shrink(self, path: Path) -> None:
        """Keep all: the members are the state."""

    def restore(self, path: Path, labels: LabelSet) -> State:
        """Read what `save` wrote."""
        tensors = safetensors.torch.load_file(path)
        state = State(tensors["theta"], tensors["noise"], len(labels))
        if state.noise.shape[1]:
            state = self._with_noise_network(state, labels.structures[0], np.random.default_rng(0))
        self.activate(state)
        return state


def between_chains(theta: torch.Tensor) -> dict[str, float]:
    """Spread between chains, as a diagnostic: mean and largest standard deviation of a weight."""
    std = theta.std(0)
    return {"std_mean": float(std.mean()), "std_max": float(std.max())}


def mixing(traces: list[np.ndarray]) -> dict[str, float]:
    """Return the worst R-hat and effective size of the energies (T, probes) of each chain."""
    draws = np.stack(traces)  # chains, T, probes
    if draws.shape[1] < 4:
        return {}
    each = [draws[:, :, k] for k in range(draws.shape[2])]
    return {
        "r_hat": max(split_r_hat(d) for d in each),
        "effective_size": min(effective_size(d) for d in each),
    }
