"""The linearised posterior: closed-form uncertainty from the model's derivatives in its weights.

Prior N(θ₀, s²) centred on the foundation's weights; labels are an energy and 3N force rows
J = ∂(E, F)/∂θ with Gaussian noise. With K = s² J Jᵀ + Σ the posterior covariance of θ is
C = s² (1 - s² Jᵀ K⁻¹ J): the joint energy-force neural tangent kernel. Rows are taken at the
weights of the moment and kept; the mean moves by damped Gauss-Newton steps on the *exact*
residuals (an iterated extended Kalman filter), so the model itself is never linearised for
predictions. A constant energy bias of wide prior is one more parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from core.contracts import Info, LabelSet, Potential, Spread
from core.structures import Structure

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
            discrepancy included. bias_std: prior spread of the energy bias, eV.
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
        max_iterations: int = 3,
    ) -> None:
        self.potential = potential
        self.prior_std, self.noise_energy, self.noise_force = prior_std, noise_energy, noise_force
        self.members_count, self.bias_std = members, bias_std
        self.max_iterations = max_iterations
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
        state, iterations, objective = self._fit(state, labels, list(new))
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
        fresh = (rows @ rows[start:].T).double()
        out = torch.empty(len(rows), len(rows), dtype=torch.float64)
        out[:start, :start] = gram
        out[:, start:] = fresh
        out[start:, :start] = fresh[:start].T
        out[start:, start:] = 0.5 * (fresh[start:] + fresh[start:].T)
        return out

    # ------------------------------------------------------------------ mean

    def residuals(self, state: State, labels: LabelSet, indices: list[int]) -> torch.Tensor:
        """Return (E, F)_label - (E, F)_model at the active weights for `indices`, (ΣR_i,)."""
        structures = [labels.structures[i] for i in indices]
        prediction = self.potential.predict(structures)
        assert prediction.forces is not None
        parts = [
            np.concatenate(
                [[labels.energies[i] - energy - state.bias], (labels.forces[i] - force).ravel()]
            )
            for i, energy, force in zip(
                indices, prediction.energies, prediction.forces, strict=True
            )
        ]
        return torch.as_tensor(np.concatenate(parts))

    def _fit(self, state: State, labels: LabelSet, new: list[int]) -> tuple[State, int, float]:
        """Damped Gauss-Newton: every step uses exact residuals of all labels and kept rows."""
        everything = list(range(len(labels)))
        residual = self.residuals(state, labels, everything)
        best = self._objective(state, residual)
        iterations = 0
        for _ in range(self.max_iterations):
            step = self._step(state, residual)
            improved = False
            for damping in (1.0, 0.5, 0.2):
                trial = replace(
                    state,
                    theta=state.theta + damping * step[:-1],
                    bias=state.bias + damping * float(step[-1]) * self._bias_unit,
                )
                self.activate(trial)
                trial_residual = self.residuals(trial, labels, everything)
                value = self._objective(trial, trial_residual)
                if value < best:
                    improved = True
                    break
            iterations += 1
            if not improved:
                self.activate(state)
                break
            gain, best = best - value, value
            state, residual = trial, trial_residual
            if gain < 0.01 * best + 0.5:
                break
        return state, iterations, best

    def _objective(self, state: State, residual: torch.Tensor) -> float:
        """½ Σ (r/σ)² + ½ |θ - θ₀|²/s² + ½ bias²/bias_std²."""
        prior = float((state.theta - self.prior_theta).double().pow(2).sum()) / self.prior_std**2
        data = float((residual / state.noise).pow(2).sum())
        return 0.5 * (data + prior + (state.bias / self.bias_std) ** 2)

    def _deviation(self, state: State) -> torch.Tensor:
        bias = torch.tensor([state.bias / self._bias_unit], dtype=state.theta.dtype)
        return torch.cat([state.theta - self.prior_theta, bias])

    def _step(self, state: State, residual: torch.Tensor) -> torch.Tensor:
        """Return the full Gauss-Newton step θ₀ + Jᵀ(JJᵀ + Σ/s²)⁻¹(r + J(θ - θ₀)) - θ."""
        deviation = self._deviation(state)
        target = residual + (state.rows @ deviation).double()
        weights = torch.cholesky_solve(target[:, None], state.factor)[:, 0]
        return state.rows.T @ weights.to(state.rows.dtype) - deviation

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
        residual = self.residuals(state, labels, list(range(len(labels))))
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
