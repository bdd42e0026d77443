"""MACE with invariant messages, evaluated with few large operations.

Where the hidden features are scalars only, the tensor product of an interaction is an ordinary
product and the symmetric contraction has few independent invariants. This module evaluates the
same function of the same weights as mace's own layers (Batatia et al., arXiv 2206.07697, eqs.
8-11), in a fraction of their operations: messages are summed by one batched matrix product per
degree, and the contraction goes through a basis of the independent invariants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from core.potentials.base import GraphBatch

RESIDUAL, PLAIN = "RealAgnosticResidualInteractionBlock", "RealAgnosticInteractionBlock"
"""Kinds of interactions: past the second the features skip, in the first messages are mixed again
by a matrix of the receiver's element."""
DECIMALS = 12
"""Of the coefficients of a contraction."""

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

    def move_to(self, device: torch.device) -> None:
        """Keep the constants on `device`; the module is moved by its owner."""
        for layer in self._layers:
            layer.contraction.move_to(device)

    @staticmethod
    def suits(module: Any) -> bool:
        """Whether every layer of `module` is of the kind evaluated here."""
        return all(
            type(interaction).__name__ in (RESIDUAL, PLAIN)
            and interaction.linear_up.irreps_in.lmax == 0
            and product.linear.irreps_out.lmax == 0
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
        slots = _Slots(graphs, harmonics)
        one_hot = torch.eye(self._n_elements, dtype=harmonics.dtype, device=harmonics.device)
        table = self._embedding(one_hot)
        elements = _Elements(graphs, self._n_elements)
        features, found = table, []
        for depth, layer in enumerate(self._layers):
            up = layer.entering(features, graphs, is_table=depth == 0)
            skip = layer.skipping(features, elements, is_table=depth == 0)
            features = layer(up, skip, graphs, slots, radial, elements)
            found.append(features)
        return found


class _Elements:
    """The atoms of each element."""

    def __init__(self, graphs: GraphBatch, n_elements: int) -> None:
        self.graphs, self._n = graphs, n_elements
        if graphs.one_hot is None:
            self._order = torch.argsort(graphs.species)
            self._back = torch.argsort(self._order)
            self._counts = torch.bincount(graphs.species, minlength=n_elements).tolist()

    def mix(self, values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return (ΣN, …, out): `values` (ΣN, …, in) times the matrix of each atom's element.

        Args:
            weights: (in, elements, out).
        """
        if self.graphs.one_hot is not None:
            every = values @ weights.reshape(len(weights), -1)
            every = every.view(*values.shape[:-1], self._n, weights.shape[2])
            shape = (len(values), *(1,) * (values.dim() - 2), self._n, 1)
            return (every * self.graphs.one_hot.view(shape)).sum(-2)
        groups = values.index_select(0, self._order).split(self._counts)
        pairs = zip(groups, weights.unbind(1), strict=True)
        return torch.cat([g @ w for g, w in pairs if len(g)]).index_select(0, self._back)


class _Slots:
    """Sums over the neighbours of every atom; edges are sorted by receiver.

    Args:
        harmonics: (E, (l_max + 1)²), "component" normalised: degree 0 is 1.
    """

    def __init__(self, graphs: GraphBatch, harmonics: torch.Tensor) -> None:
        self._receivers = graphs.receivers
        self._n_atoms = len(graphs.species)
        n_edges = len(graphs.receivers)
        if graphs.places is not None:
            self._index, self._width = graphs.places, graphs.width
        else:
            self._index, self._width = places(graphs.receivers, self._n_atoms)
        self._dense = self._n_atoms * self._width == n_edges
        l_max = round(harmonics.shape[1] ** 0.5) - 1
        degrees = harmonics.split([2 * degree + 1 for degree in range(l_max + 1)], dim=1)
        self._harmonics = [self._spread(part).transpose(1, 2) for part in degrees[1:]]

    def sum(self, messages: torch.Tensor) -> torch.Tensor:
        """Sum (E, C) over the neighbours: (ΣN, 1, C)."""
        total = messages.new_zeros(self._n_atoms, messages.shape[1])
        return total.index_add(0, self._receivers, messages)[:, None]

    def sum_with(self, degree: int, messages: torch.Tensor) -> torch.Tensor:
        """Sum (E, C) times the harmonics of a degree from 1: (ΣN, 2 degree + 1, C)."""
        return self._harmonics[degree - 1] @ self._spread(messages)

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        """Arrange (E, D) as (ΣN, K, D); empty places are zero."""
        if not self._dense:
            empty = values.new_zeros(self._n_atoms * self._width, values.shape[1])
            values = empty.index_copy(0, self._index, values)
        return values.view(self._n_atoms, self._width, values.shape[1])


def places(receivers: torch.Tensor, n_atoms: int) -> tuple[torch.Tensor, int]:
    """Return width · receiver + rank among its edges (E,), and the width: the most edges of one."""
    counts = torch.bincount(receivers, minlength=n_atoms)
    width = int(counts.max()) if len(receivers) else 0
    first = torch.cumsum(counts, 0) - counts
    rank = torch.arange(len(receivers), device=receivers.device) - first[receivers]
    return receivers * width + rank, width


@dataclass
class _Layer:
    """One interaction with its product."""

    interaction: Any
    product: Any
    contraction: _Contraction

    def entering(
        self, features: torch.Tensor, graphs: GraphBatch, *, is_table: bool
    ) -> torch.Tensor:
        """Return the linearly mixed features of every atom (ΣN, C).

        Before the first layer features depend on the element alone: `is_table`, (elements, C).
        """
        up = self.interaction.linear_up(features)
        return graphs.by_element(up) if is_table else up

    def skipping(
        self, features: torch.Tensor, elements: _Elements, *, is_table: bool
    ) -> torch.Tensor | None:
        """Return the residual of every atom (ΣN, C), where the layer has one."""
        if type(self.interaction).__name__ == PLAIN:
            return None
        (weights,) = self._of_elements()
        if is_table:
            return elements.graphs.by_element(torch.einsum("eu,uew->ew", features, weights))
        return elements.mix(features, weights)

    def _of_elements(self) -> list[torch.Tensor]:
        """Return the matrices of each element, (C, elements, C), for every degree they act on."""
        product = self.interaction.skip_tp
        shapes = [instruction.path_shape for instruction in product.instructions]
        parts = product.weight.split([a * n * b for a, n, b in shapes])
        return [  # a product with a scalar has the Wigner 3j symbol 1/√(2 degree + 1)
            instruction.path_weight / (2 * degree + 1) ** 0.5 * part.view(shape)
            for degree, (instruction, part, shape) in enumerate(
                zip(product.instructions, parts, shapes, strict=True)
            )
        ]

    def __call__(
        self, up: torch.Tensor, skip: torch.Tensor | None, graphs: GraphBatch,
        slots: _Slots, radial: torch.Tensor, elements: _Elements,
    ) -> torch.Tensor:  # fmt: skip
        """Return the layer's features (ΣN, C)."""
        linear = self.interaction.linear
        hidden, last = _radial_network(self.interaction.conv_tp_weights, radial)
        channels = up.shape[1]
        senders = up.index_select(0, graphs.senders)
        scale = 1.0 / self.interaction.avg_num_neighbors
        parts = zip(
            last.split(channels, dim=1),
            linear.weight.view(-1, channels, channels) * scale,
            linear.instructions,
            strict=True,
        )
        summed = []
        for degree, (weight, mixing, instruction) in enumerate(parts):
            messages = (hidden @ weight) * senders
            aggregated = slots.sum(messages) if degree == 0 else slots.sum_with(degree, messages)
            summed.append(aggregated @ (instruction.path_weight * mixing))
        if skip is None:
            summed = [
                elements.mix(values, weights)
                for values, weights in zip(summed, self._of_elements(), strict=True)
            ]
        left = self.product.linear(self.contraction(summed, graphs))
        return left if skip is None else left + skip


def _radial_network(network: Any, radial: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last hidden layer (E, H) of e3nn's network, and its last weights (H, out)."""
    *layers, last = network
    for layer in layers:
        radial = layer(radial)
    return radial, last.weight / (last.h_in * last.var_in / last.var_out) ** 0.5


class _Contraction:
    """The invariants of up to three equivariant features, each with its weight by element.

    mace's K paths U_k are polynomials in the features, many of them dependent. Here they are
    written in a basis V_r of the space they span: Σ_k W_k U_k = Σ_r (Σ_k m_rk W_k) V_r.
    """

    def __init__(self, product: Any) -> None:
        (source,) = product.symmetric_contractions.contractions
        dtype = source.weights_max.dtype
        paths = [source.U_tensors(order).double() for order in (3, 2, 1)]
        kind = _Cartesian if len(paths[0]) <= 9 else _Monomials
        self._invariants: _Cartesian | _Monomials
        self._invariants, mixes = kind.spanning(paths, dtype)
        # solved for, with rounding that varies from call to call: rounded to be the same always
        self._mixes = tuple(mix.round(decimals=DECIMALS).to(dtype) for mix in mixes)
        self._source = source

    def move_to(self, device: torch.device) -> None:
        """Keep the constants on `device`."""
        self._mixes = tuple(mix.to(device) for mix in self._mixes)
        for name, value in vars(self._invariants).items():
            if isinstance(value, torch.Tensor):
                setattr(self._invariants, name, value.to(device))

    def __call__(self, basis: list[torch.Tensor], graphs: GraphBatch) -> torch.Tensor:
        """Contract the atomic basis, (ΣN, 2l + 1, C) of each degree l, to scalars (ΣN, C)."""
        weights = (self._source.weights_max, *self._source.weights)
        by_element = torch.cat(
            [
                torch.einsum("rk,ekc->erc", mix, weight)
                for mix, weight in zip(self._mixes, weights, strict=True)
            ],
            dim=1,
        )
        return (self._invariants(basis) * graphs.by_element(by_element)).sum(1)


class _Cartesian:
    """The invariants of a scalar s, a vector v and a symmetric traceless tensor T.

    s³, s v², s T:T, v·T·v, det T; s², v², T:T; s. Up to degree 1, those without T.
    """

    def __init__(self, degree: int, dtype: torch.dtype) -> None:
        self._degree = degree
        self._tensor = _second_rank().to(dtype)

    @classmethod
    def spanning(
        cls, paths: list[torch.Tensor], dtype: torch.dtype
    ) -> tuple[_Cartesian, list[torch.Tensor]]:
        """Return the invariants and m of the cubic, quadratic and linear paths (n, …, n, K)."""
        n = len(paths[0])
        degree = {4: 1, 9: 2}[n]
        generator = torch.Generator().manual_seed(1)
        points = torch.randn(n, 100, dtype=torch.float64, generator=generator)
        sizes = [2 * k + 1 for k in range(degree + 1)]
        values = cls(degree, torch.float64)(list(points[None].split(sizes, dim=1)))[0]
        mixes = []
        for part, path in zip(values.split(_COUNTS[degree]), paths, strict=True):
            wanted = torch.einsum("i...,ip->...p", path, points)
            for _ in range(path.dim() - 2):
                wanted = torch.einsum("i...p,ip->...p", wanted, points)
            found = torch.linalg.lstsq(part.T, wanted.T)
            error = (part.T @ found.solution - wanted.T).abs().max()
            assert error <= _RANK_TOLERANCE * wanted.abs().max()
            mixes.append(found.solution)
        return cls(degree, dtype), mixes

    def __call__(self, basis: list[torch.Tensor]) -> torch.Tensor:
        """Return the invariants (A, R, C) of features (A, 2l + 1, C) of each degree."""
        s, v = basis[:2]
        squares = [s * s, (v * v).sum(1, keepdim=True)]
        if self._degree == 1:
            return torch.cat([*(s * square for square in squares), *squares, s], dim=1)
        t = basis[2]
        squares.append((t * t).sum(1, keepdim=True))
        tensor = torch.matmul(self._tensor, t).view(len(t), 3, 3, -1)
        bent = ((tensor * v[:, None]).sum(2) * v).sum(1, keepdim=True)
        first, second, third = tensor.unbind(1)
        volume = (torch.linalg.cross(first, second, dim=1) * third).sum(1, keepdim=True)
        cubic = [*(s * square for square in squares), bent, volume]
        return torch.cat([*cubic, *squares, s], dim=1)


_COUNTS = {1: (2, 2, 1), 2: (5, 3, 1)}
"""Cubic, quadratic and linear invariants of each degree."""


def _second_rank() -> torch.Tensor:
    """Return (9, 5): the symmetric traceless matrix of each component of degree 2.

    In the order and for the axes of e3nn, where degree 1 is (x, y, z): xz, xy, y², yz, z² - x².
    """
    half, third = 0.5, 3**-0.5
    basis = torch.zeros(5, 3, 3, dtype=torch.float64)
    basis[0, 0, 2] = basis[0, 2, 0] = half
    basis[1, 0, 1] = basis[1, 1, 0] = half
    basis[2].diagonal().copy_(torch.tensor([-half, 2 * half, -half]) * third)
    basis[3, 1, 2] = basis[3, 2, 1] = half
    basis[4].diagonal().copy_(torch.tensor([-half, 0.0, half]))
    return basis.view(5, 9).T.contiguous()


class _Monomials:
    """The invariants of features of any degree, in a sparse basis of what the paths span.

    A cubic V_r is summed as Σ_i x_i (Σ_jl v_rijl x_j x_l), where i are the components of one
    degree, chosen so that few products x_j x_l are needed.
    """

    def __init__(self, n: int, bases: list[Any], dtype: torch.dtype) -> None:
        (triples, cubic), (pairs, quadratic), (lines, linear) = bases
        squares = {tuple(pairs[k]) for k in (quadratic != 0).any(0).nonzero().flatten().tolist()}
        terms = [
            [(tuple(triples[k]), float(row[k])) for k in row.nonzero().flatten().tolist()]
            for row in cubic
        ]
        parted = _parted(terms, squares)
        needed = sorted(squares | {pair for path in parted for _, pair, _ in path})
        column = {pair: k for k, pair in enumerate(needed)}
        inner: dict[tuple[int, int], torch.Tensor] = {}
        for k, path in enumerate(parted):
            for outer, pair, value in path:
                inner.setdefault((k, outer), torch.zeros(len(needed)).double())
                inner[k, outer][column[pair]] += value
        direct = torch.zeros(len(quadratic), len(needed)).double()
        for k, pair in enumerate(pairs):
            if tuple(pair) in column:
                direct[:, column[tuple(pair)]] = quadratic[:, k]
        pick = torch.eye(n, dtype=dtype)
        self._first = pick[[p[0] for p in needed]]
        self._second = pick[[p[1] for p in needed]]
        self._outer = pick[[outer for _, outer in inner]]
        self._inner = torch.stack([*inner.values(), *direct]).to(dtype)
        self._collect = torch.eye(len(cubic), dtype=dtype)[[path for path, _ in inner]].T
        self._linear = torch.zeros(len(linear), n, dtype=dtype)
        self._linear[:, [k for (k,) in lines]] = linear.to(dtype)

    @classmethod
    def spanning(
        cls, paths: list[torch.Tensor], dtype: torch.dtype
    ) -> tuple[_Monomials, list[torch.Tensor]]:
        """Return the invariants and m of the cubic, quadratic and linear paths (n, …, n, K)."""
        found = [_sparse_basis(path) for path in paths]
        bases = [(monomials, basis) for monomials, basis, _ in found]
        return cls(len(paths[0]), bases, dtype), [mix for *_, mix in found]

    def __call__(self, basis: list[torch.Tensor]) -> torch.Tensor:
        """Return the invariants (A, R, C) of features (A, 2l + 1, C) of each degree."""
        together = torch.cat(basis, dim=1).transpose(0, 1)
        n, atoms, channels = together.shape
        flat = together.reshape(n, atoms * channels)
        products = (self._first @ flat) * (self._second @ flat)
        inner = self._inner @ products
        inner, quadratic = inner.split([len(self._outer), len(inner) - len(self._outer)])
        cubic = self._collect @ (inner * (self._outer @ flat))
        found = torch.cat([cubic, quadratic, self._linear @ flat])
        return found.view(-1, atoms, channels).transpose(0, 1)


Term = tuple[int, tuple[int, int], float]
"""Of a cubic polynomial: x_i, the pair (j, l) with it, and the coefficient of their product."""


def _parted(
    paths: list[list[tuple[tuple[int, ...], float]]], squares: set[tuple[int, ...]]
) -> list[list[Term]]:
    """Return the terms of each path parted into one factor and a pair.

    The factor is of the same degree in all terms of a path. Path by path, those with the least
    choice first, it is the degree with the fewest factors and pairs not needed already.
    """
    choices = [
        [_parts_by(path, degree) for degree in sorted({_degree(i) for i in path[0][0]})]
        for path in paths
    ]
    needed: set[tuple[int, ...]] = set(squares)
    chosen: dict[int, list[Term]] = {}

    def cost(parted: list[Term]) -> int:
        return len({pair for _, pair, _ in parted} - needed) + len({i for i, *_ in parted})

    for k in sorted(range(len(paths)), key=lambda k: len(choices[k])):
        chosen[k] = min(choices[k], key=cost)
        needed.update(pair for _, pair, _ in chosen[k])
    return [chosen[k] for k in range(len(paths))]


def _parts_by(path: list[tuple[tuple[int, ...], float]], degree: int) -> list[Term]:
    found = []
    for monomial, value in path:
        rest = list(monomial)
        outer = next(i for i in monomial if _degree(i) == degree)
        rest.remove(outer)
        found.append((outer, (rest[0], rest[1]), value))
    return found


def _degree(component: int) -> int:
    """Return the degree of a component of the harmonics: 0, 1, 1, 1, 2, …."""
    return math.isqrt(component)


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
