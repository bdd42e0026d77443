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

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from core.contracts import Info, LabelSet, Potential, Spread
from core.structures import Structure

FRACTIONS = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03)
"""Lengths tried along a step of the mean, until one improves the log posterior."""
COLUMNS = 8192
"""Columns of the rows converted to double precision at once."""
FORCE_MEMBERS = 8
"""Members whose forces are evaluated; energies use all of them."""


@dataclass(frozen=True)
class State:
    """Everything the next update needs.

    Attributes:
        theta: (P,) mean weights. bias: mean of the constant energy bias, eV.
        rows: (R, P + 1) rows of all labels, last column the bias in units of s.
        gram: (R, R) J Jᵀ, float64. noise: (R,) standard deviations, eV and eV/Å.
        factor: (R, R) Cholesky factor of K/s². directions: (M, P + 1) posterior samples of θ - θ*.
        n_labels: labels taken in.
    """

    theta: torch.Tensor
    bias: float
    rows: torch.Tensor
    gram: torch.Tensor
    noise: torch.Tensor
    factor: torch.Tensor
    directions: torch.Tensor
    n_labels: int = 0


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
        self._buffer = torch.empty(0, potential.n_parameters + 1, dtype=potential.dtype)

    # ------------------------------------------------------------------ contract

    def init(self, rng: np.random.Generator) -> State:
        """Return the prior."""
        empty = torch.zeros(0, 0, dtype=torch.float64)
        state = State(
            theta=self.prior_theta.clone(),
            bias=0.0,
            rows=self._buffer[:0],
            gram=empty,
            noise=torch.zeros(0, dtype=torch.float64),
            factor=empty,
            directions=self._buffer[:0],
        )
        return replace(state, directions=self._draw(state, rng))

    def update(
        self, state: State, labels: LabelSet, rng: np.random.Generator
    ) -> tuple[State, Info]:
        """Condition on all of `labels`; those beyond `state.n_labels` are new."""
        self.activate(state)
        new = range(state.n_labels, len(labels))
        state = self._append(state, [labels.structures[i] for i in new])
        state, iterations, objective = self._fit(state, labels)
        state = replace(state, directions=self._draw(state, rng), n_labels=len(labels))
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
        start = len(state.rows)
        sizes = [1 + 3 * len(s) for s in structures]
        self._reserve(start + sum(sizes))
        rows = self._buffer[: start + sum(sizes)]
        noise, at = [state.noise], start
        for structure, size in zip(structures, sizes, strict=True):
            rows[at : at + size, :-1] = self.potential.rows(structure)
            rows[at : at + size, -1] = 0.0
            rows[at, -1] = self._bias_unit
            level = torch.full((size,), self.noise_force, dtype=torch.float64)
            level[0] = self.noise_energy
            noise.append(level)
            at += size
        gram = self._extend_gram(state.gram, rows, start)
        levels = torch.cat(noise)
        scaled = gram + torch.diag((levels / self.prior_std) ** 2)
        return replace(
            state, rows=rows, gram=gram, noise=levels, factor=torch.linalg.cholesky(scaled)
        )

    def _reserve(self, n: int) -> None:
        if n <= len(self._buffer):
            return
        grown = torch.empty(max(n, len(self._buffer) * 3 // 2), self._buffer.shape[1],
                            dtype=self._buffer.dtype)  # fmt: skip
        grown[: len(self._buffer)] = self._buffer
        self._buffer = grown

    @staticmethod
    def _extend_gram(gram: torch.Tensor, rows: torch.Tensor, start: int) -> torch.Tensor:
        fresh = torch.zeros(len(rows), len(rows) - start, dtype=torch.float64)
        for columns in rows.split(COLUMNS, dim=1):  # single precision would drown the noise
            wide = columns.double()
            fresh += wide @ wide[start:].T
        out = torch.empty(len(rows), len(rows), dtype=torch.float64)
        out[:start, :start] = gram
        out[:, start:] = fresh
        out[start:, :start] = fresh[:start].T
        out[start:, start:] = 0.5 * (fresh[start:] + fresh[start:].T)
        return out

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
            step = state.rows.T @ weights.to(state.rows.dtype)
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

    def _draw(self, state: State, rng: np.random.Generator) -> torch.Tensor:
        """Samples of θ - θ* by Matheron's rule: s ξ - s² Jᵀ K⁻¹ (J s ξ + ε), (M, P + 1)."""
        shape = (self.members_count, self.potential.n_parameters + 1)
        prior = torch.as_tensor(rng.standard_normal(shape, dtype=np.float32))
        prior = prior.to(self.potential.dtype) * self.prior_std
        if not len(state.rows):
            return prior
        noise = torch.as_tensor(rng.standard_normal((len(state.rows), len(prior))))
        data = (state.rows @ prior.T).double() + noise * state.noise[:, None]
        weights = torch.cholesky_solve(data, state.factor)
        return prior - (state.rows.T @ weights.to(state.rows.dtype)).T

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
        target = residual + (state.rows @ self._deviation(state)).double()
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
            "directions": state.directions.contiguous(),
        }
        safetensors.torch.save_file(tensors, path)

    def restore(self, path: Path, labels: LabelSet) -> State:
        """Read what `save` wrote and recompute the rows of `labels` at the mean weights."""
        tensors = safetensors.torch.load_file(path)
        base = self.init(np.random.default_rng(0))
        state = replace(base, theta=tensors["theta"], bias=float(tensors["bias"][0]))
        self.activate(state)
        if len(labels):
            state = self._append(state, list(labels.structures))
        return replace(state, directions=tensors["directions"], n_labels=len(labels))
