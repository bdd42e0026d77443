"""MACE with invariant messages, evaluated with few large operations.

Where the hidden features are scalars only, the tensor product of an interaction is an ordinary
product and the symmetric contraction has few independent invariants. This module evaluates the
same function of the same weights as mace's own layers (Batatia et al., arXiv 2206.07697, eqs.
8-11), in a fraction of their operations: messages are summed by one batched matrix product per
degree, and the contraction goes through a basis of the independent invariants.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
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
        for degree in range(degrees):
            here = slice(degree * channels, (degree + 1) * channels)
            m = slice(degree**2, (degree + 1) ** 2)
            aggregated = angular[:, :, m].transpose(1, 2) @ spread[:, :, here]
            factor = scale * linear.instructions[degree].path_weight
            summed.append(aggregated @ (factor * mixing[degree]))
        basis = torch.cat(summed, dim=1).transpose(0, 1)
        return self.product.linear(self.contraction(basis, graphs.species)) + skip


class _Contraction:
    """The invariants of up to three equivariant features, each with its weight by element.

    mace's path tensors U (…, K) are replaced by a basis of the space they span once symmetrised:
    Σ_k W_k U_k = Σ_r (Σ_k m_rk W_k) V_r.
    """

    def __init__(self, product: Any) -> None:
        (self._source,) = product.symmetric_contractions.contractions
        u1, u2, u3 = (self._source.U_tensors(n).double() for n in (1, 2, 3))
        n = len(u1)
        cubic, self._mix3 = _independent(u3)
        quadratic, self._mix2 = _independent(u2)
        linear, self._mix1 = _independent(u1)
        self._first, self._second = torch.triu_indices(n, n)
        twice = torch.where(self._first == self._second, 1.0, 2.0).double()
        cubic_rows = cubic[:, self._first, self._second] * twice[:, None]
        self._cubic_paths = cubic.shape[-1]
        rows = [
            cubic_rows.permute(2, 0, 1).reshape(self._cubic_paths * n, -1),
            (quadratic[self._first, self._second] * twice[:, None]).T,
        ]
        dtype = self._source.weights_max.dtype
        self._matrix = torch.cat(rows).to(dtype)
        self._linear = linear.T.to(dtype)
        self._mix1, self._mix2, self._mix3 = (
            m.to(dtype) for m in (self._mix1, self._mix2, self._mix3)
        )

    def __call__(self, basis: torch.Tensor, species: torch.Tensor) -> torch.Tensor:
        """Contract the atomic basis (M, ΣN, C) to scalars (ΣN, C)."""
        n, atoms, channels = basis.shape
        flat = basis.reshape(n, atoms * channels)
        products = flat[self._first] * flat[self._second]
        contracted = self._matrix @ products
        split = self._cubic_paths * n
        cubic = (contracted[:split].view(self._cubic_paths, n, -1) * flat).sum(1)
        invariants = torch.cat([cubic, contracted[split:], self._linear @ flat])
        by_element = torch.cat(
            [
                torch.einsum("rk,ekc->rec", mix, weight)
                for mix, weight in (
                    (self._mix3, self._source.weights_max),
                    (self._mix2, self._source.weights[0]),
                    (self._mix1, self._source.weights[1]),
                )
            ]
        )
        weights = by_element[:, species]
        return (invariants.view(-1, atoms, channels) * weights).sum(0)


def _independent(paths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a basis (n, …, n, R) of the symmetrised `paths` (n, …, n, K), and m (R, K)."""
    order = paths.dim() - 1
    ways = list(permutations(range(order)))
    symmetric = sum(paths.permute(*way, order) for way in ways) / len(ways)
    flat = symmetric.reshape(-1, paths.shape[-1])
    left, sizes, right = torch.linalg.svd(flat, full_matrices=False)
    rank = int((sizes > _RANK_TOLERANCE * sizes[0]).sum())
    basis = left[:, :rank].reshape(*paths.shape[:-1], rank)
    return basis, sizes[:rank, None] * right[:rank]
