"""The linearised posterior: closed-form uncertainty from the model's derivatives in its weights.

Prior N(θ₀, s²) centred on the foundation's weights; labels are an energy and 3N force rows
J = ∂(E, F)/∂θ with Gaussian noise Σ. With K = s² J Jᵀ + Σ the posterior covariance of θ is
C = s² (1 - s² Jᵀ K⁻¹ J): the joint energy-force neural tangent kernel. Rows are taken at the
weights of the moment and kept. The mean moves by kernel steps s² Jᵀ K⁻¹ r on the *exact*
residuals r, shortened until the log posterior improves, so predictions are never linearised: a
few of them fit better than hundreds of gradient steps. A constant energy bias of wide prior is one
more parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from core.contracts import Info, LabelSet, Potential, Spread
from core.structures import Structure

FRACTIONS = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03)
"""Lengths tried along a step of the mean, until one improves the log posterior."""
BLOCK_ROWS, BLOCK_COLUMNS = 256, 4096
"""Rows are kept in blocks of so many; so many of their columns are widened to double at once."""
FORCE_MEMBERS = 8
"""Members whose forces are evaluated; energies use all of them."""


class Rows:
    """The first `n` rows of a matrix that only grows, in blocks that are never copied.

    Older and newer states share the blocks; what lies beyond `n` may be overwritten.
    """

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self.n, self._width, self._dtype = 0, width, dtype
        self._blocks: list[torch.Tensor] = []

    def __len__(self) -> int:
        return self.n

    def extended(self, fresh: torch.Tensor) -> Rows:
        """Return these rows with `fresh` (M, width) below them."""
        out = Rows(self._width, self._dtype)
        out._blocks, out.n = self._blocks, self.n
        while len(fresh):
            block, place = divmod(out.n, BLOCK_ROWS)
            if block == len(out._blocks):
                out._blocks.append(torch.empty(BLOCK_ROWS, self._width, dtype=self._dtype))
            here = min(len(fresh), BLOCK_ROWS - place)
            out._blocks[block][place : place + here] = fresh[:here]
            fresh, out.n = fresh[here:], out.n + here
        return out

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (which rows, those rows)."""
        for number, block in enumerate(self._blocks):
            start = number * BLOCK_ROWS
            stop = min(start + BLOCK_ROWS, self.n)
            if stop > start:
                yield slice(start, stop), block[: stop - start]

    def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return J v, (R, M), for `vectors` (width, M)."""
        out = torch.zeros(self.n, vectors.shape[1], dtype=self._dtype)
        for where, block in self.blocks():
            torch.matmul(block, vectors, out=out[where])
        return out

    def transposed(self, weights: torch.Tensor) -> torch.Tensor:
        """Return wᵀ J, (M, width), for `weights` (R, M)."""
        weights = weights.to(self._dtype)
        out = torch.zeros(weights.shape[1], self._width, dtype=self._dtype)
        for where, block in self.blocks():
            out.addmm_(weights[where].T, block)
        return out

    def products(self, fresh: torch.Tensor) -> torch.Tensor:
        """Return J fᵀ in double precision, (R, M), for `fresh` (M, width).

        Single precision would drown the noise, which is what makes the Gram matrix definite.
        """
        out = torch.zeros(self.n, len(fresh), dtype=torch.float64)
        wide = torch.empty(BLOCK_ROWS * BLOCK_COLUMNS, dtype=torch.float64)
        for start in range(0, self._width, BLOCK_COLUMNS):
            columns = slice(start, start + BLOCK_COLUMNS)
            right = fresh[:, columns].double().T
            for where, block in self.blocks():
                part = block[:, columns]
                left = wide[: part.numel()].view(part.shape).copy_(part)
                out[where].addmm_(left, right)
        return out


@dataclass(frozen=True)
class State:
    """Everything the next update needs.

    Attributes:
        theta: (P,) mean weights. bias: mean of the constant energy bias, eV.
        rows: R rows of all labels, P + 1 wide, last column the bias in units of s.
        noise: (R,) standard deviations, eV and eV/Å. factor: (R, R) Cholesky factor of K/s²,
            float64. directions: (M, P + 1) posterior samples of θ - θ*.
        n_labels: labels taken in. seed: of the draw of the directions.
    """

    theta: torch.Tensor
    bias: float
    rows: Rows
    noise: torch.Tensor
    factor: torch.Tensor
    directions: torch.Tensor
    n_labels: int = 0
    seed: int = 0


class Linearised:
    """Algorithm object; see `core.contracts.Posterior`.

    Args:
        prior_std: s of every weight. noise_energy, noise_force: label noise (eV, eV/Å), model
            discrepancy included. bias_std: prior spread of the energy bias, eV. max_iterations:
            steps of the mean for each update, fewer once a step improves the log posterior by
            less than this fraction (`stop_gain`).
    """

    def __init__(
        self,
        potential: Potential,
        *,
        prior_std: float,
        noise_energy: float,
        noise_force: float,
        members: int = 32,
        bias_std: float = 0.5,
        max_iterations: int = 6,
        stop_gain: float = 0.01,
    ) -> None:
        self.potential = potential
        self.prior_std, self.noise_energy, self.noise_force = prior_std, noise_energy, noise_force
        self.members_count, self.bias_std = members, bias_std
        self.max_iterations, self.stop_gain = max_iterations, stop_gain
        self.prior_theta = potential.get_theta()
        self._width = potential.n_parameters + 1

    # ------------------------------------------------------------------ contract

    def init(self, rng: np.random.Generator) -> State:
        """Return the prior."""
        state = State(
            theta=self.prior_theta.clone(),
            bias=0.0,
            rows=Rows(self._width, self.potential.dtype),
            noise=torch.zeros(0, dtype=torch.float64),
            factor=torch.zeros(0, 0, dtype=torch.float64),
            directions=torch.zeros(0, self._width, dtype=self.potential.dtype),
        )
        return self._drawn(state, int(rng.integers(2**32)))

    def update(
        self, state: State, labels: LabelSet, rng: np.random.Generator
    ) -> tuple[State, Info]:
        """Condition on all of `labels`; those beyond `state.n_labels` are new."""
        self.activate(state)
        new = range(state.n_labels, len(labels))
        state = self._append(state, [labels.structures[i] for i in new])
        state, iterations, objective = self._fit(state, labels)
        state = self._drawn(replace(state, n_labels=len(labels)), int(rng.integers(2**32)))
        moved = float((state.theta - self.prior_theta).norm())
        return state, Info({"iterations": iterations, "objective": objective, "moved": moved})

    def activate(self, state: State) -> None:
        """Put the mean weights in force."""
        self.potential.set_theta(state.theta)

    def spread(self, state: State, structure: Structure) -> Spread:
        """Mean and standard deviations for one structure; the mean weights must be active."""
        prediction = self.potential.predict([structure])
        assert prediction.forces is not None
        n = min(FORCE_MEMBERS, len(state.directions))
        gradient, _, force = self.potential.directional(structure, state.directions[:n, :-1])
        energy = state.directions[:, :-1] @ gradient + state.directions[:, -1] * self._bias_unit
        return Spread(
            energy=float(prediction.energies[0]) + state.bias,
            forces=prediction.forces[0],
            sigma_energy=float(energy.double().pow(2).mean().sqrt()),
            sigma_forces=force.double().pow(2).sum(-1).mean(0).sqrt().numpy(),
        )

    def members(self, state: State) -> torch.Tensor:
        """Weights of the ensemble members, (M, P)."""
        return state.theta + state.directions[:, :-1]

    # ------------------------------------------------------------------ rows

    @property
    def _bias_unit(self) -> float:
        return self.bias_std / self.prior_std

    def _append(self, state: State, structures: list[Structure]) -> State:
        for group in _grouped(structures, BLOCK_ROWS):
            fresh = torch.cat([self._rows_of(structure) for structure in group])
            level = torch.full((len(fresh),), self.noise_force, dtype=torch.float64)
            starts = np.cumsum([0, *(1 + 3 * len(s) for s in group[:-1])])
            level[starts] = self.noise_energy
            rows = state.rows.extended(fresh)
            factor = _bordered_factor(state.factor, rows.products(fresh), level / self.prior_std)
            noise = torch.cat([state.noise, level])
            state = replace(state, rows=rows, noise=noise, factor=factor)
        return state

    def _rows_of(self, structure: Structure) -> torch.Tensor:
        """∂(E, F)/∂(θ, bias) of one structure, (1 + 3N, P + 1)."""
        rows = self.potential.rows(structure)
        bias = torch.zeros(len(rows), 1, dtype=rows.dtype)
        bias[0] = self._bias_unit
        return torch.cat([rows, bias], dim=1)

    # ------------------------------------------------------------------ mean

    def residuals(self, state: State, labels: LabelSet) -> torch.Tensor:
        """Return (E, F)_label - (E, F)_model at the active weights, (R,), label by label."""
        prediction = self.potential.predict(labels.structures)
        assert prediction.forces is not None
        parts = []
        for i, force in enumerate(prediction.forces):
            energy = labels.energies[i] - prediction.energies[i] - state.bias
            parts += [[energy], (labels.forces[i] - force).ravel()]
        return torch.as_tensor(np.concatenate(parts))

    def _fit(self, state: State, labels: LabelSet) -> tuple[State, int, float]:
        """Kernel steps Jᵀ (JJᵀ + Σ/s²)⁻¹ r with the exact residuals r and a line search."""
        residual = self.residuals(state, labels)
        best, done = self._objective(state, residual), 0
        while done < self.max_iterations:
            done += 1
            weights = torch.cholesky_solve(residual[:, None], state.factor)[:, 0]
            step = state.rows.transposed(weights[:, None])[0]
            found = self._search(state, step, labels, best)
            if found is None:
                break
            state, residual, value = found
            gain, best = best - value, value
            if gain < self.stop_gain * best:
                break
        self.activate(state)
        return state, done, best

    def _search(
        self, state: State, step: torch.Tensor, labels: LabelSet, best: float
    ) -> tuple[State, torch.Tensor, float] | None:
        """Return state, residual and objective after the longest fraction that improves it."""
        for fraction in FRACTIONS:
            trial = self._moved(state, fraction * step)
            self.activate(trial)
            residual = self.residuals(trial, labels)
            value = self._objective(trial, residual)
            if value < best:  # false also where a wild step gives NaN
                return trial, residual, value
        return None

    def _moved(self, state: State, step: torch.Tensor) -> State:
        bias = state.bias + float(step[-1]) * self._bias_unit
        return replace(state, theta=state.theta + step[:-1], bias=bias)

    def _objective(self, state: State, residual: torch.Tensor) -> float:
        """½ Σ (r/σ)² + ½ |θ - θ₀|²/s² + ½ bias²/bias_std²."""
        prior = float((state.theta - self.prior_theta).double().pow(2).sum()) / self.prior_std**2
        data = float((residual / state.noise).pow(2).sum())
        return 0.5 * (data + prior + (state.bias / self.bias_std) ** 2)

    def _deviation(self, state: State) -> torch.Tensor:
        bias = torch.tensor([state.bias / self._bias_unit], dtype=state.theta.dtype)
        return torch.cat([state.theta - self.prior_theta, bias])

    # ------------------------------------------------------------------ uncertainty

    def _drawn(self, state: State, seed: int) -> State:
        """Draw θ - θ* by Matheron's rule: s ξ - s² Jᵀ K⁻¹ (J s ξ + ε), (M, P + 1)."""
        rng = np.random.default_rng(seed)
        shape = (self.members_count, self._width)
        directions = torch.as_tensor(rng.standard_normal(shape, dtype=np.float32))
        directions = directions.to(self.potential.dtype) * self.prior_std
        if len(state.rows):
            noise = torch.as_tensor(rng.standard_normal((len(state.rows), len(directions))))
            data = (state.rows @ directions.T).double() + noise * state.noise[:, None]
            weights = torch.cholesky_solve(data, state.factor)
            directions = directions - state.rows.transposed(weights)
        return replace(state, directions=directions, seed=seed)

    def leave_one_out(
        self, state: State, labels: LabelSet
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict each label from all others in closed form.

        Returns:
            errors of the energy (S,), eV, their raw z = error/σ (S,), and the ratios
            max|ΔF| / max σ_F (S,).
        """
        self.activate(state)
        residual = self.residuals(state, labels)
        target = residual + (state.rows @ self._deviation(state)[:, None]).double()[:, 0]
        inverse = torch.cholesky_inverse(state.factor)
        weights = inverse @ target
        errors, scores, ratios, at = [], [], [], 0
        for structure in labels.structures:
            block = slice(at, at + 1 + 3 * len(structure))
            at = block.stop
            covariance = torch.linalg.inv(inverse[block, block])
            error = covariance @ weights[block]
            variance = (covariance.diagonal() * self.prior_std**2 - state.noise[block] ** 2).clamp(
                min=1e-12
            )
            force = error[1:].reshape(-1, 3).norm(dim=1).max()
            sigma = variance[1:].reshape(-1, 3).sum(1).sqrt().max()
            errors.append(float(error[0]))
            scores.append(float(error[0] / variance[0].sqrt()))
            ratios.append(float(force / sigma))
        return np.array(errors), np.array(scores), np.array(ratios)

    # ------------------------------------------------------------------ keeping

    def save(self, state: State, path: Path) -> None:
        """Write mean weights, bias and members; rows are recomputed from labels by `restore`."""
        tensors = {
            "theta": state.theta,
            "bias": torch.tensor([state.bias], dtype=torch.float64),
            "seed": torch.tensor([state.seed]),
            "directions": state.directions.contiguous(),
        }
        safetensors.torch.save_file(tensors, path)

    def shrink(self, path: Path) -> None:
        """Drop the members from what `save` wrote; `restore` then draws them anew."""
        tensors = safetensors.torch.load_file(path)
        if tensors.pop("directions", None) is not None:
            part = path.with_suffix(".part")
            safetensors.torch.save_file(tensors, part)
            part.replace(path)

    def restore(self, path: Path, labels: LabelSet) -> State:
        """Read what `save` wrote; the rows of `labels` are taken anew at the mean weights."""
        tensors = safetensors.torch.load_file(path)
        base = self.init(np.random.default_rng(0))
        state = replace(base, theta=tensors["theta"], bias=float(tensors["bias"][0]))
        self.activate(state)
        state = replace(self._append(state, list(labels.structures)), n_labels=len(labels))
        seed = int(tensors["seed"][0])
        if "directions" in tensors:
            return replace(state, directions=tensors["directions"], seed=seed)
        return self._drawn(state, seed)


def _grouped(structures: list[Structure], limit: int) -> list[list[Structure]]:
    """Return the structures in groups of at most `limit` rows together, or of one structure."""
    groups: list[list[Structure]] = []
    size = limit + 1
    for structure in structures:
        rows = 1 + 3 * len(structure)
        if size + rows > limit:
            groups.append([])
            size = 0
        groups[-1].append(structure)
        size += rows
    return groups


def _bordered_factor(
    factor: torch.Tensor, products: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Return the Cholesky factor (R, R) of a matrix grown by `products` and diagonal `noise`²."""
    old, new = len(factor), len(noise)
    corner = 0.5 * (products[old:] + products[old:].T) + torch.diag(noise**2)
    border = torch.linalg.solve_triangular(factor, products[:old], upper=False)
    out = torch.zeros(old + new, old + new, dtype=factor.dtype)
    out[:old, :old] = factor
    out[old:, :old] = border.T
    out[old:, old:] = torch.linalg.cholesky(corner - border.T @ border)
    return out
