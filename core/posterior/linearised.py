"""The linearised posterior: closed-form uncertainty from the model's derivatives in its weights.

Prior N(θ₀, s²) centred on the foundation's weights; labels are an energy and 3N force rows, of
crystals also 6 stress rows, J = ∂(E, F, σ)/∂θ with Gaussian noise Σ. With K = s² J Jᵀ + Σ the
posterior covariance of θ is C = s² (1 - s² Jᵀ K⁻¹ J): the joint energy-force neural tangent kernel.
The mean moves by kernel steps s² Jᵀ K⁻¹ r on the *exact* residuals r, shortened until the log
posterior improves, so predictions are never linearised. Rows age as the weights move: at each
update a bounded number of those taken farthest away are taken anew. A constant energy bias of wide
prior is one more parameter.

Time and memory of an update go with the number of rows, which is therefore bounded: beyond it
labels keep the forces of fewer of their atoms, old ones first. That is a subset of the data, of
which all of the above holds; it only tells less than the whole would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from core.contracts import Info, LabelSet, Potential
from core.parallel import side_by_side
from core.posterior.largest import largest_change
from core.posterior.tangent import Tangent
from core.structures import Structure, to_voigt

FRACTIONS = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03)
"""Lengths tried along a step of the mean, until one improves the log posterior."""
STRESSES = 6
"""Independent components of a stress."""
COLUMNS = 4096
"""Columns of the rows handled at once, so that they stay in the processor's cache."""
HALF_MOST = 60_000.0
"""Numbers beyond this do not fit into half precision."""
TOGETHER = 8
"""Blocks of rows multiplied at once: a label's alone are too few for a quick product."""
RENEWED = 6000
"""At each update this, divided by the number of rows, is how many old labels' rows are renewed."""
MOST_RENEWED = 16
"""Old labels renewed at one update at most, however few rows there are."""
ENERGY_WORK = 10_000_000_000
"""Operations spent at each update on products with energies' rows that are renewed."""
FIRST_ROUNDS = 3
"""Linearisations of the first update, which moves the weights farthest."""
DRAWS = 256
"""Samples of a label's forces by which it is scored from all others."""
GROUP = 8
"""Labels that are predicted at once, and whose rows `restore` takes together."""
WHOLE = 8
"""Newest labels, which lose rows only where the others cannot lose more."""
ROOM = 0.1
"""Share of the rows for which room is made once there are too many, so that it lasts a while."""


class Rows:
    """J of all labels, (R, width): two blocks for each label, none of them ever changed.

    Attributes:
        blocks: of each label in turn the energy's row (1, width), then those of all other numbers
            it gives, in half precision where the energy's is in single. taken: (P,) the weights
            each block was taken at.
    """

    def __init__(
        self,
        width: int,
        blocks: tuple[torch.Tensor, ...] = (),
        taken: tuple[torch.Tensor, ...] = (),
    ) -> None:
        self.blocks, self.taken, self._width = blocks, taken, width
        ends = np.cumsum([0, *(len(block) for block in blocks)])
        self._slices = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        self._n = int(ends[-1])

    def __len__(self) -> int:
        return self._n

    @property
    def n_labels(self) -> int:
        """How many labels have rows."""
        return len(self.blocks) // 2

    def of(self, label: int) -> slice:
        """Return which rows are those of a label."""
        return slice(self._slices[2 * label].start, self._slices[2 * label + 1].stop)

    def where(self, blocks: Sequence[int]) -> torch.Tensor:
        """Return the rows of some blocks, in their order."""
        return torch.cat([torch.arange(self._n)[self._slices[k]] for k in blocks])

    def with_blocks(self, blocks: dict[int, torch.Tensor], theta: torch.Tensor) -> Rows:
        """Return these rows with `blocks`, taken at `theta`, put in for, or after, the old ones."""
        n = max(len(self.blocks), 1 + max(blocks))
        old, at = dict(enumerate(self.blocks)), dict(enumerate(self.taken))
        new, now = old | blocks, at | dict.fromkeys(blocks, theta)
        return Rows(self._width, tuple(new[k] for k in range(n)), tuple(now[k] for k in range(n)))

    def only(self, places: dict[int, torch.Tensor]) -> Rows:
        """Return these rows with, of some blocks, those at some places only."""
        blocks = enumerate(self.blocks)
        left = tuple(block[places[k]] if k in places else block for k, block in blocks)
        return Rows(self._width, left, self.taken)

    def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return J v, (R, M), for `vectors` (width, M)."""
        return torch.cat(side_by_side(lambda block: _whole(block) @ vectors, self.blocks))

    def transposed(self, weights: torch.Tensor) -> torch.Tensor:
        """Return wᵀ J, (M, width), for `weights` (R, M)."""
        weights = weights.T.to(self.blocks[0].dtype)
        out = torch.zeros(len(weights), self._width, dtype=weights.dtype)

        def add(part: slice) -> None:
            for block, where in zip(self.blocks, self._slices, strict=True):
                out[:, part].addmm_(weights[:, where], _whole(block[:, part]))

        side_by_side(add, _chunks(self._width))
        return out

    def products(self, blocks: Sequence[int]) -> torch.Tensor:
        """Return J J_blocksᵀ, (R, M), precise enough for the noise to make it definite.

        Sums over some columns are taken in single precision and added up in double: of the noise
        that loses a hundredth. Between energies, whose rows are by far the largest beside their
        noise, it would lose a quarter; these products are taken in double throughout.
        """
        right = torch.cat([_whole(self.blocks[k]) for k in blocks])
        out = torch.zeros(len(self), len(right), dtype=torch.float64)
        n = len(self.blocks)
        groups = [range(k, min(k + TOGETHER, n)) for k in range(0, n, TOGETHER)]
        for part in _chunks(self._width):
            wide = right[:, part].T

            def add(group: range, part: slice = part, wide: torch.Tensor = wide) -> None:
                first = self._slices[group[0]].start
                where = slice(first, self._slices[group[-1]].stop)
                tall = wide.new_empty(where.stop - first, len(wide))
                for k in group:
                    at = self._slices[k]
                    tall[at.start - first : at.stop - first] = self.blocks[k][:, part]
                out[where] += tall @ wide

            side_by_side(add, groups)
        ends = np.cumsum([0, *(len(self.blocks[k]) for k in blocks)])
        columns = [int(a) for a, k in zip(ends, blocks, strict=False) if k % 2 == 0]
        if columns:
            rows = self.where(range(0, n, 2))
            out[rows[:, None], torch.tensor(columns)] = self._between_energies(right[columns])
        return out

    def _between_energies(self, right: torch.Tensor) -> torch.Tensor:
        """Return the products (N, M) of all N energies' rows with these (M, width), in double."""
        out = torch.zeros(self.n_labels, len(right), dtype=torch.float64)
        for part in _chunks(self._width):
            tall = torch.cat([block[:, part] for block in self.blocks[::2]])
            out.addmm_(tall.double(), right[:, part].double().T)
        return out


def _halved(block: torch.Tensor) -> torch.Tensor:
    """Return rows of single precision in half of it, where their range allows.

    Rounded to 11 bits they are those of a model that differs from this one by as little: some
    ten-thousandths of the prior spread of a force, far below its noise. Energies' are not, whose
    prior spread is thousands of times their noise.
    """
    fits = block.dtype == torch.float32 and bool(block.abs().max() < HALF_MOST)
    return block.half() if fits else block


def _whole(block: torch.Tensor) -> torch.Tensor:
    return block.float() if block.dtype == torch.float16 else block


def _chunks(width: int) -> list[slice]:
    return [slice(start, start + COLUMNS) for start in range(0, width, COLUMNS)]


def _groups(n: int) -> list[range]:
    return [range(start, min(start + GROUP, n)) for start in range(0, n, GROUP)]


@dataclass(frozen=True)
class State:
    """Everything the next update needs.

    Attributes:
        theta: (P,) mean weights. bias: mean of the constant energy bias, eV.
        rows: R rows of all labels, K + 1 wide: the weights in use, and the bias in units of s.
        gram: (R, R) J Jᵀ, float64. noise: (R,) standard deviations, eV and eV/Å.
        factor: (R, R) Cholesky factor of K/s², float64.
        directions: (M, K + 1) posterior samples of θ - θ*.
        n_labels: labels taken in. seed: of the draw of the directions.
        atoms: of each label those whose forces have rows, in order.
    """

    theta: torch.Tensor
    bias: float
    rows: Rows
    gram: torch.Tensor
    noise: torch.Tensor
    factor: torch.Tensor
    directions: torch.Tensor
    n_labels: int = 0
    seed: int = 0
    atoms: tuple[np.ndarray, ...] = ()


class Linearised(Tangent):
    """Algorithm object; see `core.contracts.Posterior`.

    Args:
        elements: atomic numbers of all structures to come; rows and members leave out the weights
            that matter to others only, about which labels say nothing.
        moving: indices of the weights that may move, by default all.
        prior_std: s of every weight. bias_std: prior spread of the energy bias, eV.
        noise_energy, noise_force, noise_stress: label noise (eV, eV/Å, eV/Å³), model discrepancy
            included; without the last, stress is not learned from.
        max_rows: most rows of all labels together; a label has at least those of its energy,
            its stress and one atom's force. max_iterations: steps of the mean for each update,
            fewer once a step improves the log posterior by less than this fraction (`stop_gain`).
    """

    def __init__(
        self,
        potential: Potential,
        *,
        elements: Sequence[int] | None = None,
        moving: torch.Tensor | None = None,
        prior_std: float,
        noise_energy: float,
        noise_force: float,
        noise_stress: float | None = None,
        members: int = 32,
        bias_std: float = 0.5,
        max_rows: int = 6000,
        max_iterations: int = 6,
        stop_gain: float = 0.01,
    ) -> None:
        super().__init__(potential, elements, moving, noise_stress)
        self.prior_std, self.noise_energy, self.noise_force = prior_std, noise_energy, noise_force
        self.members_count, self.bias_std = members, bias_std
        self.max_iterations, self.stop_gain, self.max_rows = max_iterations, stop_gain, max_rows
        self.prior_theta = potential.get_theta()
        self._width = len(self._columns) + 1

    # ------------------------------------------------------------------ contract

    def init(self, rng: np.random.Generator) -> State:
        """Return the prior."""
        empty = torch.zeros(0, 0, dtype=torch.float64)
        state = State(
            theta=self.prior_theta.clone(),
            bias=0.0,
            rows=Rows(self._width),
            gram=empty,
            noise=torch.zeros(0, dtype=torch.float64),
            factor=empty,
            directions=torch.zeros(0, self._width, dtype=self.potential.dtype),
        )
        return self._drawn(state, int(rng.integers(2**32)))

    def update(
        self, state: State, labels: LabelSet, rng: np.random.Generator
    ) -> tuple[State, Info]:
        """Condition on all of `labels`; those beyond `state.n_labels` are new."""
        iterations, objective = 0, 0.0
        state = self._with_room(state, labels, rng)
        for _ in range(1 if state.n_labels else FIRST_ROUNDS):
            self.activate(state)
            state = self._taken(state, self._to_take(state, labels))
            state = replace(state, n_labels=len(labels))
            state, more, objective = self._fit(state, labels)
            iterations += more
        self.activate(state)
        state = self._with_energies(state, labels)
        state = self._drawn(state, int(rng.integers(2**32)))
        moved = float((state.theta - self.prior_theta).norm())
        values = {"iterations": iterations, "objective": objective, "moved": moved}
        return state, Info(values | {"rows": float(len(state.rows))})

    def biases(self, state: State) -> tuple[float, np.ndarray]:
        """Return the constant energy bias and its samples (M,), eV."""
        return state.bias, state.directions[:, -1].double().numpy() * self._bias_unit

    # ------------------------------------------------------------------ rows

    @property
    def _bias_unit(self) -> float:
        return self.bias_std / self.prior_std

    def _with_room(self, state: State, labels: LabelSet, rng: np.random.Generator) -> State:
        """Decide on the atoms of new labels, and drop rows where all would be too many."""
        old = state.atoms
        atoms = [*old, *(np.arange(len(s)) for s in labels.structures[len(old) :])]
        counts = _fewer([len(a) for a in atoms], self._height(0), self.max_rows)
        places = {
            k: np.sort(rng.permutation(len(a))[:n])
            for k, (a, n) in enumerate(zip(atoms, counts, strict=True))
            if n < len(a)
        }
        known = state.rows.n_labels
        state = self._without(state, {k: at for k, at in places.items() if k < known})
        return replace(
            state, atoms=tuple(a[places[k]] if k in places else a for k, a in enumerate(atoms))
        )

    def _without(self, state: State, places: dict[int, np.ndarray]) -> State:
        """Drop the rows of all but some of the atoms that labels have rows of."""
        if not places:
            return state
        numbers = {k: self._numbers(len(state.atoms[k]), at) for k, at in places.items()}
        every = [torch.arange(len(state.rows))[state.rows.of(k)] for k in range(state.n_labels)]
        left = torch.cat([at[numbers[k]] if k in numbers else at for k, at in enumerate(every)])
        rows = state.rows.only({2 * k + 1: at[1:] - 1 for k, at in numbers.items()})
        gram, noise = state.gram[left][:, left], state.noise[left]
        factor = torch.linalg.cholesky(gram + torch.diag((noise / self.prior_std) ** 2))
        return replace(state, rows=rows, gram=gram, noise=noise, factor=factor)

    def _numbers(self, n: int, atoms: np.ndarray) -> torch.Tensor:
        """Return which of the numbers of a label of n atoms belong to it, to some atoms, or all."""
        forces = (1 + 3 * atoms[:, None] + np.arange(3)).ravel()
        stress = np.arange(1 + 3 * n, self._height(n))
        return torch.as_tensor(np.concatenate([[0], forces, stress]))

    def _to_take(self, state: State, labels: LabelSet) -> dict[int, Structure]:
        """Return the new labels, and those whose rows were taken farthest from the weights."""
        known = state.rows.n_labels
        total = sum(self._height(len(a)) for a in state.atoms)
        oldest = self._drifted(state, 1)[: min(RENEWED // total, MOST_RENEWED)]
        return {k: labels.structures[k] for k in (*oldest, *range(known, len(labels)))}

    def _drifted(self, state: State, part: int) -> list[int]:
        """Return the labels whose energy rows (part 0) or others (1) are old, the oldest first."""
        drift = [float((state.theta - at).norm()) for at in state.rows.taken[part::2]]
        order = sorted(range(len(drift)), key=lambda k: -drift[k])
        return [k for k in order if drift[k] > 0]

    def _taken(self, state: State, structures: dict[int, Structure]) -> State:
        """Take the rows of these labels at the weights of `state`, which must be active."""
        blocks = {}
        wanted = [(structure, state.atoms[k]) for k, structure in structures.items()]
        found = side_by_side(lambda both: self._blocks_of(*both), wanted)
        for k, both in zip(structures, found, strict=True):
            blocks[2 * k], blocks[2 * k + 1] = both
        return self._with_blocks(state, blocks)

    def _with_energies(self, state: State, labels: LabelSet) -> State:
        """Take the energies' rows anew at the weights of `state`, which must be active.

        They are the largest rows and cost one backward pass each: left behind by a step of the
        mean, they would let the energy's σ grow as large as that step's change of the energy.
        """
        width = 2 * max(len(state.rows), 1) * self._width
        old = self._drifted(state, 0)[: ENERGY_WORK // width]
        found = side_by_side(self._energy_row_of, [labels.structures[k] for k in old])
        return self._with_blocks(state, {2 * k: row for k, row in zip(old, found, strict=True)})

    def _with_blocks(self, state: State, blocks: dict[int, torch.Tensor]) -> State:
        """Put blocks of rows, taken at the weights of `state`, in place."""
        if not blocks:
            return state
        old = len(state.rows)
        rows = state.rows.with_blocks(blocks, state.theta)
        noise = self._noise_of(rows)
        products, index = rows.products(list(blocks)), rows.where(list(blocks))
        gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        gram[:old, :old] = state.gram
        gram[:, index] = products
        gram[index] = products.T
        level = torch.diag((noise / self.prior_std) ** 2)
        if int(index.min()) >= old:
            factor = _bordered_factor(state.factor, (gram + level)[:, old:])
        else:
            factor = torch.linalg.cholesky(gram + level)
        return replace(state, rows=rows, gram=gram, noise=noise, factor=factor)

    def _noise_of(self, rows: Rows) -> torch.Tensor:
        """Return the standard deviation (R,) of the number that each row is of."""
        noise = torch.full((len(rows),), self.noise_force, dtype=torch.float64)
        for k in range(rows.n_labels):
            where = rows.of(k)
            noise[where.start] = self.noise_energy
            if self.noise_stress is not None:
                noise[where.stop - STRESSES : where.stop] = self.noise_stress
        return noise

    def _rows_of(self, structure: Structure) -> torch.Tensor:
        """∂(E, F, σ)/∂(θ, bias) of one structure, (`_height`, K + 1)."""
        stress = self.noise_stress is not None
        rows = self.potential.rows(structure, stress=stress)[:, self._columns]
        bias = torch.zeros(len(rows), 1, dtype=rows.dtype)
        bias[0] = self._bias_unit
        return torch.cat([rows, bias], dim=1)

    def _blocks_of(
        self, structure: Structure, atoms: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the two blocks of one structure; nothing holds on to what they were cut from."""
        rows = self._rows_of(structure)
        if len(atoms) < len(structure):
            rows = rows[self._numbers(len(structure), atoms)]
        energy, others = rows.tensor_split([1])
        return energy.clone(), _halved(others)

    def _energy_row_of(self, structure: Structure) -> torch.Tensor:
        """∂E/∂(θ, bias) of one structure, (1, K + 1)."""
        row = self.potential.rows(structure, forces=False)[:, self._columns]
        return torch.cat([row, torch.full((1, 1), self._bias_unit, dtype=row.dtype)], dim=1)

    def _height(self, n_atoms: int) -> int:
        """Return how many numbers a label gives that has the forces of so many atoms."""
        return 1 + 3 * n_atoms + (STRESSES if self.noise_stress is not None else 0)

    # ------------------------------------------------------------------ mean

    def residuals(self, state: State, labels: LabelSet) -> torch.Tensor:
        """Return (E, F, σ)_label - (E, F, σ)_model at the active weights, (R,), by label."""
        with_stress = self.noise_stress is not None

        def of(group: range) -> np.ndarray:
            structures = labels.structures[group.start : group.stop]
            prediction = self.potential.predict(structures, stress=with_stress)
            assert prediction.forces is not None
            parts = []
            for k, (i, force) in enumerate(zip(group, prediction.forces, strict=True)):
                energy = labels.energies[i] - prediction.energies[k] - state.bias
                parts += [[energy], (labels.forces[i] - force)[state.atoms[i]].ravel()]
                if with_stress:
                    assert prediction.stress is not None
                    parts.append(to_voigt(labels.stress[i] - prediction.stress[k]))
            return np.concatenate(parts)

        found = side_by_side(of, _groups(len(labels)))
        return torch.as_tensor(np.concatenate([np.zeros(0), *found]))

    def _fit(self, state: State, labels: LabelSet) -> tuple[State, int, float]:
        """Kernel steps Jᵀ (JJᵀ + Σ/s²)⁻¹ r with the exact residuals r and a line search."""
        state, residual = self._with_best_bias(state, self.residuals(state, labels))
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
            trial, residual = self._with_best_bias(trial, self.residuals(trial, labels))
            value = self._objective(trial, residual)
            if value < best:  # false also where a wild step gives NaN
                return trial, residual, value
        return None

    def _with_best_bias(self, state: State, residual: torch.Tensor) -> tuple[State, torch.Tensor]:
        """Return the most probable bias for the weights of `state`, and what it leaves over.

        Energies are linear in it. Left to the steps, an offset that a long one brings with it makes
        the step look bad, and what remains of it is an error of every energy to come.
        """
        where = [state.rows.of(k).start for k in range(state.rows.n_labels)]
        precision = (state.noise[where] ** -2).sum() + self.bias_std**-2
        change = (residual[where] / state.noise[where] ** 2).sum() - state.bias / self.bias_std**2
        change /= precision
        left = residual.clone()
        left[where] -= change
        return replace(state, bias=state.bias + float(change)), left

    def _moved(self, state: State, step: torch.Tensor) -> State:
        bias = state.bias + float(step[-1]) * self._bias_unit
        theta = state.theta.index_add(0, self._columns, step[:-1])
        return replace(state, theta=theta, bias=bias)

    def _objective(self, state: State, residual: torch.Tensor) -> float:
        """½ Σ (r/σ)² + ½ |θ - θ₀|²/s² + ½ bias²/bias_std²."""
        prior = float((state.theta - self.prior_theta).double().pow(2).sum()) / self.prior_std**2
        data = float((residual / state.noise).pow(2).sum())
        return 0.5 * (data + prior + (state.bias / self.bias_std) ** 2)

    def _deviation(self, state: State) -> torch.Tensor:
        bias = torch.tensor([state.bias / self._bias_unit], dtype=state.theta.dtype)
        return torch.cat([(state.theta - self.prior_theta)[self._columns], bias])

    # ------------------------------------------------------------------ uncertainty

    def _drawn(self, state: State, seed: int) -> State:
        """Draw θ - θ* by Matheron's rule: s ξ - s² Jᵀ K⁻¹ (J s ξ + ε), (M, K + 1)."""
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

    def unknown(self, state: State, structures: Sequence[Structure]) -> list[np.ndarray]:
        """Return of each structure rows (R, D) of what its label would tell, given all labels.

        Inner products are the covariance of energies (first rows), forces and stresses, exact in
        the derivatives and divided by the noise of each.
        """
        self.activate(state)
        first = len(state.rows)
        taken = side_by_side(self._rows_of, list(structures))
        blocks = [block for rows in taken for block in rows.tensor_split([1])]
        n = len(state.rows.blocks)
        rows = state.rows.with_blocks(dict(enumerate(blocks, start=n)), state.theta)
        products = rows.products(range(n, n + len(blocks)))
        white = torch.linalg.solve_triangular(state.factor, products[:first], upper=False)
        scale = self._noise_of(rows)[first:] / self.prior_std
        covariance = (products[first:] - white.T @ white) / scale[:, None] / scale
        values, vectors = torch.linalg.eigh(covariance)
        root = (vectors * values.clamp(min=0).sqrt()).numpy()
        return np.split(root, np.cumsum([len(part) for part in taken])[:-1])

    def leave_one_out(
        self, state: State, labels: LabelSet
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Predict each label from all others in closed form.

        Returns:
            errors of the energy (S,), eV, their raw z = error/σ (S,), the ratios
            max|ΔF| / max σ_F (S,), and those of the stress (S,), nan without.
        """
        self.activate(state)
        residual = self.residuals(state, labels)
        target = residual + (state.rows @ self._deviation(state)[:, None]).double()[:, 0]
        inverse = torch.cholesky_inverse(state.factor)
        weights = inverse @ target
        errors, scores, ratios, stress_ratios, at = [], [], [], [], 0
        for kept in state.atoms:
            block, atoms = slice(at, at + self._height(len(kept))), 3 * len(kept)
            at = block.stop
            covariance = torch.linalg.inv(inverse[block, block])
            error = covariance @ weights[block]
            variance = (covariance.diagonal() * self.prior_std**2 - state.noise[block] ** 2).clamp(
                min=1e-12
            )
            force = error[1 : 1 + atoms].reshape(-1, 3).norm(dim=1).max()
            joint = covariance * self.prior_std**2 - torch.diag(state.noise[block] ** 2)
            sigma = _largest(joint[1 : 1 + atoms, 1 : 1 + atoms])
            stress = error[1 + atoms :].abs(), variance[1 + atoms :].sqrt()
            errors.append(float(error[0]))
            scores.append(float(error[0] / variance[0].sqrt()))
            ratios.append(float(force / sigma))
            known = len(stress[0]) > 0
            stress_ratios.append(float(stress[0].max() / stress[1].max()) if known else math.nan)
        return np.array(errors), np.array(scores), np.array(ratios), np.array(stress_ratios)

    # ------------------------------------------------------------------ keeping

    def save(self, state: State, path: Path) -> None:
        """Write mean weights, bias and members; rows are recomputed from labels by `restore`."""
        tensors = {
            "theta": state.theta,
            "bias": torch.tensor([state.bias], dtype=torch.float64),
            "seed": torch.tensor([state.seed]),
            "directions": state.directions.contiguous(),
            "atoms": torch.as_tensor(np.concatenate([np.zeros(0, int), *state.atoms])),
            "atoms_of": torch.tensor([len(a) for a in state.atoms], dtype=torch.int64),
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
        if len(counts := tensors.get("atoms_of", ())):
            ends = np.cumsum(np.asarray(counts))[:-1]
            state = replace(state, atoms=tuple(np.split(tensors["atoms"].numpy(), ends)))
        state = self._with_room(state, labels, np.random.default_rng(0))
        self.activate(state)
        for group in _groups(len(labels)):
            state = self._taken(state, {k: labels.structures[k] for k in group})
        state = replace(state, n_labels=len(labels))
        seed = int(tensors["seed"][0])
        known = tensors.get("directions")
        if known is not None and known.shape[1] == self._width:
            return replace(state, directions=known, seed=seed)
        return self._drawn(state, seed)


def _fewer(atoms: Sequence[int], beside: int, most: int) -> list[int]:
    """Return of how many atoms each label keeps forces, so that there are at most `most` rows.

    Args:
        atoms: of how many it has them now, the oldest label first. beside: its other rows.
    """

    def rows(counts: Sequence[int]) -> int:
        return sum(beside + 3 * n for n in counts)

    if rows(atoms) <= most:
        return list(atoms)
    for newest in (WHOLE, 0):
        old = len(atoms) - newest
        for cap in range(max(atoms), 0, -1):
            found = [min(n, cap) if k < old else n for k, n in enumerate(atoms)]
            if rows(found) <= (1 - ROOM) * most:
                return found
    return [1] * len(atoms)


def _largest(covariance: torch.Tensor) -> float:
    """Return what `largest_change` tends to with many samples of forces of this covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    white = np.random.default_rng(0).standard_normal((DRAWS, len(values)))
    changes = torch.as_tensor(white) @ (vectors * values.clamp(min=0).sqrt()).T
    return largest_change(changes.reshape(DRAWS, -1, 3).numpy())


def _bordered_factor(factor: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return the Cholesky factor of a matrix grown by `columns` (R + M, M) and their mirror."""
    old = len(factor)
    border = torch.linalg.solve_triangular(factor, columns[:old], upper=False)
    out = torch.zeros(len(columns), len(columns), dtype=factor.dtype)
    out[:old, :old] = factor
    out[old:, :old] = border.T
    out[old:, old:] = torch.linalg.cholesky(columns[old:] - border.T @ border)
    return out
