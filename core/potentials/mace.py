"""The MACE adapter: the only module that imports mace (and e3nn).

Importing mace switches torch's guard against pickled programs off for the whole process; this
module puts it back. Models are built here from a configuration, never unpickled.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.errors import ModelError
from core.potentials.base import GraphBatch, TorchPotential
from core.potentials.invariant import InvariantLayers

UNGUARDED = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""The variable by which parts of mace, when imported, switch torch's guard off."""


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Import parts of mace in here: quietly, and torch's guard is afterwards as it was."""
    before = os.environ.get(UNGUARDED)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # absent accelerators, e3nn's own constants
            yield
    finally:
        os.environ.pop(UNGUARDED, None)
        if before is not None:
            os.environ[UNGUARDED] = before


TRAINING, DYNAMO, TENSORS = "mace.tools.train", "torch._dynamo", "e3nn.io"
"""Modules that importing mace's networks imports too: its trainer, with matplotlib, pandas and
torchmetrics; torch's compiler; and tensors of dipoles, with scipy's signals. They take as long as
all else together."""
TRAINED = ("SWAContainer", "evaluate", "train")
"""What `mace.tools` has of its trainer."""


@contextlib.contextmanager
def _lean() -> Iterator[None]:
    """Import mace's networks in here without what they do not need.

    What is left out is imported when somebody asks for it.
    """
    absent: dict[str, Any] = {
        DYNAMO: None,  # mace goes without where this cannot be imported
        TRAINING: types.ModuleType(TRAINING),
        TENSORS: types.ModuleType(TENSORS),
    }
    vars(absent[TRAINING]).update(dict.fromkeys(TRAINED))
    absent[TENSORS].CartesianTensor = lambda *arguments: importlib.import_module(
        TENSORS
    ).CartesianTensor(*arguments)
    absent = {name: module for name, module in absent.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
    if TRAINING in absent:
        _find_later(sys.modules["mace.tools"])


def _find_later(tools: types.ModuleType) -> None:
    """Let `mace.tools` import its trainer when one of its names is asked for."""

    def later(name: str) -> Any:
        if name not in TRAINED:
            raise AttributeError(f"module 'mace.tools' has no attribute {name!r}")
        module = importlib.import_module(TRAINING)
        vars(tools).update({name: getattr(module, name) for name in TRAINED})
        return getattr(module, name)

    for name in TRAINED:
        delattr(tools, name)
    vars(tools)["__getattr__"] = later


torch.serialization.add_safe_globals([slice])
with guarded(), _lean():
    import mace.modules  # must precede e3nn
    from e3nn import get_optimization_defaults, o3, set_optimization_defaults


def _sums(src: torch.Tensor, index: torch.Tensor, dim: int, dim_size: int) -> torch.Tensor:
    """Return sums of the rows of `src` (E, …) with the same index, (dim_size, …).

    Instead of mace's own, which adds to a tensor of zeros in place: `vmap` refuses that.
    """
    shape = list(src.shape)
    shape[dim] = dim_size
    return src.new_zeros(shape).index_add(dim, index, src)


mace.modules.blocks.scatter_sum = _sums  # type: ignore[assignment]

CLASSES = ("MACE", "ScaleShiftMACE")
"""Model classes a bundle may name."""

INTERACTIONS = mace.modules.interaction_classes
READOUTS = mace.modules.readout_classes
GATES = mace.modules.gate_dict
_IRREPS = ("hidden_irreps", "MLP_irreps", "edge_irreps")
_PARTS = {"interactions": "interaction", "products": "product", "readouts": "readout"}


def default_config(
    elements: tuple[int, ...],
    isolated: np.ndarray,
    *,
    channels: int = 32,
    max_ell: int = 3,
    cutoff: float = 4.5,
    avg_num_neighbors: float = 10.0,
    scale: float = 1.0,
    shift: float = 0.0,
    pair_repulsion: bool = False,
) -> dict[str, Any]:
    """Return a configuration for a new invariant two-layer MACE, as plain JSON values.

    Args:
        pair_repulsion: add the screened nuclear repulsion of Ziegler, Biersack and Littmark.
    """
    return {
        "class": "ScaleShiftMACE",
        "r_max": cutoff,
        "num_bessel": 8,
        "num_polynomial_cutoff": 5,
        "max_ell": max_ell,
        "interaction_cls": "RealAgnosticResidualInteractionBlock",
        "interaction_cls_first": "RealAgnosticResidualInteractionBlock",
        "num_interactions": 2,
        "num_elements": len(elements),
        "hidden_irreps": f"{channels}x0e",
        "MLP_irreps": "16x0e",
        "gate": "silu",
        "atomic_energies": [float(e) for e in isolated],
        "avg_num_neighbors": avg_num_neighbors,
        "atomic_numbers": [int(z) for z in elements],
        "correlation": 3,
        "atomic_inter_scale": scale,
        "atomic_inter_shift": shift,
        "pair_repulsion": pair_repulsion,
    }


@dataclass(frozen=True)
class Recipe:
    """A model without its weights: configuration, precision, and tensors never trained."""

    config: dict[str, Any]
    dtype: torch.dtype
    constants: dict[str, torch.Tensor]

    def build(self) -> MacePotential:
        """Return the model; its weights are arbitrary."""
        potential = MacePotential(self.config, dtype=self.dtype)
        potential.module.load_state_dict(self.constants, strict=False)
        return potential


class MacePotential(TorchPotential):
    """A MACE built from a plain configuration (see `default_config`).

    Attributes:
        head: of a model with several, the one in use.

    Raises:
        ModelError: the configuration names something unknown.
    """

    def __init__(
        self, config: dict[str, Any], *, name: str = "mace", dtype: torch.dtype = torch.float32
    ) -> None:
        self.name = name
        self.config = dict(config)
        self.elements = tuple(int(z) for z in config["atomic_numbers"])
        if list(self.elements) != sorted(self.elements):
            raise ModelError("atomic_numbers of a bundle must ascend.")
        self.cutoff = float(config["r_max"])
        module = _build(config).to(dtype)
        heads = self.heads = tuple(config.get("heads") or ("Default",))
        self.head = str(config.get("head", "Default" if "Default" in heads else heads[-1]))
        if self.head not in heads:
            raise ModelError(f"There is no head {self.head!r}; the model has {', '.join(heads)}.")
        super().__init__(module, np.broadcast_to(
            np.atleast_2d(config["atomic_energies"]), (len(heads), len(self.elements))
        ))  # fmt: skip
        self._invariant = InvariantLayers(module) if InvariantLayers.suits(module) else None
        self.edge_width = int(self.module.interactions[-1].conv_tp.weight_numel)  # type: ignore[index, union-attr]
        self._channels = o3.Irreps(config["hidden_irreps"]).count(o3.Irrep(0, 1))

    def geometry(self, graphs: GraphBatch) -> tuple[torch.Tensor, ...]:
        """Return harmonics, radial basis, and where the model has them repulsion and cutoff."""
        module: Any = self.module
        attrs, edge_index = self._attributes(graphs)
        vectors = graphs.vectors
        lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        harmonics = module.spherical_harmonics(vectors)
        numbers = module.atomic_numbers
        radial, cutoff = module.radial_embedding(lengths, attrs, edge_index, numbers)
        found = [harmonics, radial]
        if hasattr(module, "pair_repulsion"):
            found.append(module.pair_repulsion_fn(lengths, attrs, edge_index, numbers))
        return (*found, cutoff) if cutoff is not None else tuple(found)

    def atomic(
        self, graphs: GraphBatch, *geometry: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return interaction energies (ΣN,) and the scalar features of all layers (ΣN, D)."""
        module: Any = self.module
        harmonics, radial, *others = geometry
        heads = torch.full_like(graphs.index, graphs.head)
        energy = radial.new_zeros(len(graphs.species))
        if hasattr(module, "pair_repulsion"):
            energy = others.pop(0)
        if self._invariant is not None and not others:
            layers = self._invariant(graphs, harmonics, radial)
        else:
            layers = self._equivariant(graphs, harmonics, radial, others[0] if others else None)
        scalars = [layer[:, : self._channels] for layer in layers]
        for i, readout in enumerate(module.readouts):
            layer = layers[-1 if len(module.readouts) == 1 else i]
            energy = energy + readout(layer, heads)[:, graphs.head]
        if hasattr(module, "scale_shift"):
            energy = module.scale_shift(energy, heads)
        return energy, torch.cat(scalars, dim=-1)

    def move_to(self, device: torch.device) -> None:
        """Compute on `device` from now on; graphs and evaluators made before are of no more use."""
        super().move_to(device)
        if self._invariant is not None:
            self._invariant.move_to(device)

    def parts(self) -> dict[str, str]:
        """Return parameter name -> part of the network."""
        return {name: _PARTS.get(name.partition(".")[0], "embedding") for name in self.blocks()}

    def matrices(self) -> dict[str, list[tuple[int, int, int]]]:
        """Return parameter name -> matrices in the flattened tensor: (start, rows, columns).

        Of linear maps those between channels, of contractions that of element and path to channel.
        """
        found = super().matrices()
        for name, p in self.module.named_parameters():
            owner = self.module.get_submodule(name.rpartition(".")[0])
            if isinstance(owner, o3.Linear | o3.TensorProduct) and name.endswith(".weight"):
                found[name], start = [], 0
                for instruction in owner.instructions:
                    *rows, columns = instruction.path_shape
                    found[name].append((start, int(np.prod(rows)), columns))
                    start += int(np.prod(rows)) * columns
            elif p.ndim == 3:  # of a symmetric contraction: elements, paths, channels
                found[name] = [(0, p.shape[0] * p.shape[1], p.shape[2])]
        return found

    def set_isolated(self, energies: np.ndarray) -> None:
        """Put energies of the isolated atoms (elements,), eV, in force in the head in use."""
        super().set_isolated(energies)
        self.config["atomic_energies"] = self._isolated.tolist()
        known: torch.Tensor = self.module.atomic_energies_fn.atomic_energies  # type: ignore[union-attr, assignment]
        known.copy_(torch.as_tensor(self._isolated, dtype=known.dtype).view_as(known))

    def with_heads(self, heads: dict[str, np.ndarray]) -> MacePotential:
        """Return a copy with other heads, each of which starts as a copy of the one in use.

        Args:
            heads: name -> energies of the isolated atoms, (elements,), eV; the last is in use.

        Raises:
            ModelError: its readouts are of a kind that is not known.
        """
        config = dict(self.config) | {
            "heads": list(heads), "head": list(heads)[-1],
            "atomic_energies": [np.asarray(e, float).tolist() for e in heads.values()],
        }  # fmt: skip
        for key in {"atomic_inter_scale", "atomic_inter_shift"} & set(config):
            of_head = np.broadcast_to(config[key], (len(self.heads),))
            value = float(of_head[self.heads.index(self.head)])
            config[key] = [value] * len(heads) if len(heads) > 1 else value
        made = MacePotential(config, name=self.name, dtype=self.dtype)
        state = made.module.state_dict()
        index, before, now = self.heads.index(self.head), len(self.heads), len(heads)
        for name, there in self.module.state_dict().items():
            tensor = there.cpu()
            if name.startswith("readouts."):
                owner, _, kind = name.rpartition(".")
                if kind == "weight" and max(before, now) > 1:
                    name_of_map = owner.rpartition(".")[2]
                    tensor = _of_heads(name_of_map, tensor, self._channels, index, before, now)
                if tensor.shape == state[name].shape:
                    state[name] = tensor
            elif not name.startswith(("atomic_energies_fn.", "scale_shift.")):
                state[name] = tensor
        made.module.load_state_dict(state)
        made.move_to(self.device)
        return made

    def recipe(self) -> Recipe:
        """Return what the same model, with any weights, can be built from elsewhere."""
        trained = {name for name, p in self.module.named_parameters() if p.requires_grad}
        state = self.module.state_dict()
        constants = {k: v.cpu().clone() for k, v in state.items() if k not in trained}
        return Recipe(self.config, self.dtype, constants)

    def relevant(self, numbers: np.ndarray) -> torch.Tensor:
        """Return the indices into `theta` of weights that matter to these elements, ascending."""
        present = np.isin(self.elements, numbers)
        masks = []
        for name, p in self.module.named_parameters():
            if p.requires_grad:
                shapes = self._element_shapes(name, p) or [(1, 1, p.numel())]
                masks += [
                    np.broadcast_to(present[:, None] if n > 1 else True, (a, n, b)).reshape(-1)
                    for a, n, b in shapes
                ]
        return torch.as_tensor(np.concatenate(masks)).nonzero()[:, 0]

    def _element_shapes(self, name: str, weight: torch.Tensor) -> list[tuple[int, int, int]]:
        """Return shapes (a, elements, b), in order, of a weight whose entries belong to elements.

        Empty for a weight that all elements share.
        """
        n = len(self.elements)
        if name.startswith("node_embedding.") or ".contractions." in name:
            return [(1, n, weight.numel() // n)]
        owner = self.module.get_submodule(name.rpartition(".")[0])
        if ".skip_tp." in name and isinstance(owner, o3.FullyConnectedTensorProduct):
            return [i.path_shape for i in owner.instructions]
        return []

    def _attributes(self, graphs: GraphBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the elements one-hot (ΣN, elements) and the edge index (2, E)."""
        attrs = graphs.one_hot
        if attrs is None:
            every = torch.eye(len(self.elements), dtype=self.dtype, device=self.device)
            attrs = graphs.by_element(every)
        return attrs, torch.stack([graphs.senders, graphs.receivers])

    def _equivariant(
        self, graphs: GraphBatch, edge_attrs: torch.Tensor, edge_feats: torch.Tensor,
        cutoff: torch.Tensor | None,
    ) -> list[torch.Tensor]:  # fmt: skip
        """Return the features of each layer by mace's own layers."""
        module: Any = self.module
        attrs, edge_index = self._attributes(graphs)
        feats = module.node_embedding(attrs)
        layers = []
        for i, (interaction, product) in enumerate(
            zip(module.interactions, module.products, strict=True)
        ):
            feats, skip = interaction(
                node_attrs=attrs, node_feats=feats, edge_attrs=edge_attrs, edge_feats=edge_feats,
                edge_index=edge_index, cutoff=cutoff, first_layer=i == 0,
            )  # fmt: skip
            feats = product(node_feats=feats, sc=skip, node_attrs=attrs)
            layers.append(feats)
        return layers


def _of_heads(
    kind: str, weight: torch.Tensor, channels: int, index: int, before: int, now: int
) -> torch.Tensor:
    """Return the weight of a readout's linear map for `now` heads, all as head `index` of `before`.

    mace divides by the square root of the number of all inputs, those for other heads too.

    Raises:
        ModelError: it is not a map that is known.
    """
    if kind == "linear":  # (channels, heads)
        own = weight.view(channels, before)[:, index, None]
        return own.expand(-1, now).reshape(-1)
    if kind == "linear_1":  # (channels, heads · hidden)
        own = weight.view(channels, before, -1)[:, index, None]
        return own.expand(-1, now, -1).reshape(-1)
    if kind == "linear_2":  # (heads · hidden, heads)
        own = weight.view(before, -1, before)[index, :, index]
        every = torch.eye(now, dtype=weight.dtype)[:, None] * own[:, None]
        return (every * (now / before) ** 0.5).reshape(-1)
    raise ModelError(f"The model's readouts ({kind!r}) cannot be copied to further heads.")


def scripted(potential: TorchPotential) -> torch.nn.Module:
    """Return a copy of a MACE as mace itself would build it, with e3nn's TorchScript."""
    module = _build(potential.config, script=True).to(potential.dtype)  # type: ignore[attr-defined]
    module.load_state_dict(potential.module.state_dict(), strict=False)
    return module


def _build(config: dict[str, Any], *, script: bool = False) -> torch.nn.Module:
    values = {k: v for k, v in config.items() if k not in ("class", "head")}
    if config.get("class") not in CLASSES:
        raise ModelError(f"A bundle of class {config.get('class')!r}; accepted: {CLASSES}.")
    try:
        for key in ("interaction_cls", "interaction_cls_first"):
            values[key] = INTERACTIONS[values[key]]
        values["gate"] = GATES[values["gate"]]
        if "readout_cls" in values:
            values["readout_cls"] = READOUTS[values["readout_cls"]]
        for key in _IRREPS:
            if values.get(key) is not None:
                values[key] = o3.Irreps(values[key])
        values["atomic_energies"] = np.array(values["atomic_energies"], dtype=float)
        before = dict(get_optimization_defaults())
        set_optimization_defaults(jit_script_fx=script)
        try:
            return getattr(mace.modules, config["class"])(**values)
        finally:
            set_optimization_defaults(**before)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"The bundle's config.json cannot be built: {error!r}.") from error
