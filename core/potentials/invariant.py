"""MACE with invariant messages, evaluated with few large operations.

Where the hidden features are scalars only, the tensor product of an interaction is an ordinary
product and the symmetric contraction has few independent invariants. This module evaluates the
same function of the same weights as mace's own layers (Batatia et al., arXiv 2206.07697, eqs.
8-11), in a fraction of their operations: messages are summed by one batched matrix product per
degree, and the contraction goes through a basis of the independent invariants.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import torch

from core.potentials.base import GraphBatch

_RANK_TOLERANCE = 1e-6


class InvariantLayers:
    """The interaction and product layers of a mace module whose features are C scalars.

    The weights stay in the module; only constants are kept here.
    """

    def __init__(self, module: Any) -> None:
        self._layers = [
            _Layer(interaction, product, _Contraction(product))
            for interaction, product in zip(module.interactions, module.products, strict=True)
        ]
        self._embedding = module.node_embedding
        self._n_elements = len(module.atomic_numbers)

    @staticmethod
    def suits(module: Any) -> bool:
        """Whether every layer of `module` is of the kind evaluated here."""
        return all(
            type(interaction).__name__ == "RealAgnosticResidualInteractionBlock"
            and interaction.skip_tp.irreps_out.lmax == 0
            and interaction.skip_tp.irreps_in1.lmax == 0
            and type(product).__name__ == "EquivariantProductBasisBlock"
            and not getattr(product, "use_agnostic_product", False)
            and product.symmetric_contractions.contractions[0].correlation == 3
            for interaction, product in zip(module.interactions, module.products, strict=True)
        )

    def __call__(
        self, graphs: GraphBatch, harmonics: torch.Tensor, radial: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return the features (ΣN, C) of each layer.

        Args:
            harmonics: (E, (l_max + 1)²). radial: (E, R) radial basis, cutoff included.
        """
        slots = _Slots(graphs)
        angular = slots.spread(harmonics)
        one_hot = torch.eye(self._n_elements, dtype=harmonics.dtype)
        table = self._embedding(one_hot)
        features, found = table, []
        for depth, layer in enumerate(self._layers):
            up, skip = layer.entering(features, graphs.species, is_table=depth == 0)
            features = layer(up, skip, graphs, slots, angular, radial)
            found.append(features)
        return found


class _Slots:
    """Where each edge lies in a dense (atom, neighbour) arrangement."""

    def __init__(self, graphs: GraphBatch) -> None:
        self.n_atoms = len(graphs.species)
        n_edges = len(graphs.receivers)
        counts = torch.bincount(graphs.receivers, minlength=self.n_atoms)
        self.width = int(counts.max()) if n_edges else 0
        self.dense = self.n_atoms * self.width == n_edges
        if not self.dense:
            first = torch.cumsum(counts, 0) - counts
            place = torch.arange(n_edges) - first[graphs.receivers]
            self.index = graphs.receivers * self.width + place

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Arrange (E, D), edges sorted by receiver, as (ΣN, K, D); empty places are zero."""
        if not self.dense:
            empty = values.new_zeros(self.n_atoms * self.width, values.shape[1])
            values = empty.index_copy(0, self.index, values)
        return values.view(self.n_atoms, self.width, values.shape[1])


@dataclass
class _Layer:
    """One interaction with its product."""

    interaction: Any
    product: Any
    contraction: _Contraction

    def entering(
        self, features: torch.Tensor, species: torch.Tensor, *, is_table: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the linearly mixed features and the residual of every atom, both (ΣN, C).

        Before the first layer features depend on the element alone: `is_table`, (elements, C).
        """
        tensor_product = self.interaction.skip_tp
        n_in, n_elements, n_out = tensor_product.instructions[0].path_shape
        weight = tensor_product.instructions[0].path_weight * tensor_product.weight
        by_element = weight.view(n_in, n_elements, n_out)
        up = self.interaction.linear_up(features)
        if is_table:
            skip = torch.einsum("eu,uew->ew", features, by_element)
            return up[species], skip[species]
        all_skips = features @ by_element.reshape(n_in, n_elements * n_out)
        skips = all_skips.view(-1, n_elements, n_out)
        return up, skips[torch.arange(len(species)), species]

    def __call__(
        self, up: torch.Tensor, skip: torch.Tensor, graphs: GraphBatch,
        slots: _Slots, angular: torch.Tensor, radial: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Return the layer's features (ΣN, C)."""
        channels = up.shape[1]
        weights = self.interaction.conv_tp_weights(radial)
        degrees = weights.shape[1] // channels
        messages = weights.view(-1, degrees, channels) * up[graphs.senders][:, None]
        spread = slots.spread(messages.reshape(-1, degrees * channels))
        linear = self.interaction.linear
        scale = 1.0 / self.interaction.avg_num_neighbors
        mixing = linear.weight.view(degrees, channels, channels)
        summed = []
        parts = zip(
            spread.split(channels, dim=2),
            angular.split([2 * degree + 1 for degree in range(degrees)], dim=2),
            mixing * scale,
            linear.instructions,
            strict=True,
        )
        for message, harmonic, weight, instruction in parts:
            aggregated = harmonic.transpose(1, 2) @ message
            summed.append(aggregated @ (instruction.path_weight * weight))
        basis = torch.cat(summed, dim=1).transpose(0, 1)
        return self.product.linear(self.contraction(basis, graphs.species)) + skip


class _Contraction:
    """The invariants of up to three equivariant features, each with its weight by element.

    mace's K paths U_k are polynomials in the features, many of them dependent. Here they are
    written in a sparse basis V_r of the space they span: Σ_k W_k U_k = Σ_r (Σ_k m_rk W_k) V_r.
    A cubic V_r is summed as Σ_i x_i (Σ_jl v_rijl x_j x_l).
    """

    def __init__(self, product: Any) -> None:
        (self._source,) = product.symmetric_contractions.contractions
        dtype = self._source.weights_max.dtype
        n = len(self._source.U_tensors(1))
        (lines, linear, mix1), (pairs, quadratic, mix2), (triples, cubic, mix3) = (
            _sparse_basis(self._source.U_tensors(order).double()) for order in (1, 2, 3)
        )
        self._mixes = tuple(mix.to(dtype) for mix in (mix3, mix2, mix1))
        self._weights = (self._source.weights_max, *self._source.weights)
        needed = sorted({tuple(p) for p in pairs} | {tuple(t[1:]) for t in triples})
        column = {pair: k for k, pair in enumerate(needed)}
        inner: dict[tuple[int, int], torch.Tensor] = {}
        for path, row in enumerate(cubic):
            for k in row.nonzero().flatten().tolist():
                key = (path, triples[k][0])
                inner.setdefault(key, torch.zeros(len(needed)).double())
                inner[key][column[tuple(triples[k][1:])]] = row[k]
        direct = torch.zeros(len(quadratic), len(needed)).double()
        direct[:, [column[tuple(p)] for p in pairs]] = quadratic
        pick = torch.eye(n, dtype=dtype)
        self._first = pick[[p[0] for p in needed]]
        self._second = pick[[p[1] for p in needed]]
        self._outer = pick[[outer for _, outer in inner]]
        self._inner = torch.stack([*inner.values(), *direct]).to(dtype)
        self._collect = torch.eye(len(cubic), dtype=dtype)[[path for path, _ in inner]].T
        self._linear = torch.zeros(len(linear), n, dtype=dtype)
        self._linear[:, [k for (k,) in lines]] = linear.to(dtype)

    def __call__(self, basis: torch.Tensor, species: torch.Tensor) -> torch.Tensor:
        """Contract the atomic basis (M, ΣN, C) to scalars (ΣN, C)."""
        n, atoms, channels = basis.shape
        flat = basis.reshape(n, atoms * channels)
        products = (self._first @ flat) * (self._second @ flat)
        inner = self._inner @ products
        inner, quadratic = inner.split([len(self._outer), len(inner) - len(self._outer)])
        cubic = self._collect @ (inner * (self._outer @ flat))
        invariants = torch.cat([cubic, quadratic, self._linear @ flat])
        by_element = torch.cat(
            [
                torch.einsum("rk,ekc->rec", mix, weight)
                for mix, weight in zip(self._mixes, self._weights, strict=True)
            ]
        )
        weights = by_element.index_select(1, species)
        return (invariants.view(-1, atoms, channels) * weights).sum(0)


def _sparse_basis(paths: torch.Tensor) -> tuple[list[list[int]], torch.Tensor, torch.Tensor]:
    """Return monomials, a basis (R, monomials) of the polynomials `paths` spans, and m (R, K).

    Args:
        paths: (n, …, n, K), coefficients of K homogeneous polynomials of n variables.

    The basis is the reduced row echelon form, so that m are the coefficients at its pivots.
    """
    order, n, n_paths = paths.dim() - 1, len(paths), paths.shape[-1]
    monomials = [list(m) for m in combinations_with_replacement(range(n), order)]
    place = {tuple(m): k for k, m in enumerate(monomials)}
    coefficients = torch.zeros(len(monomials), n_paths, dtype=paths.dtype)
    for index in (paths != 0).any(-1).nonzero().tolist():
        coefficients[place[tuple(sorted(index))]] += paths[tuple(index)]
    rows = coefficients.T.clone()
    pivots: list[int] = []
    floor = _RANK_TOLERANCE * rows.abs().max()
    for column in range(len(monomials)):
        done = len(pivots)
        if done == n_paths:
            break
        best = done + int(rows[done:, column].abs().argmax())
        if rows[best, column].abs() <= floor:
            continue
        rows[[done, best]] = rows[[best, done]]
        rows[done] /= rows[done, column].clone()
        others = torch.arange(n_paths) != done
        rows[others] -= rows[others, column, None] * rows[done]
        pivots.append(column)
    rows[rows.abs() < _RANK_TOLERANCE] = 0.0
    return monomials, rows[: len(pivots)], coefficients[pivots]
