"""A second device made of the processor, to test on where there is no card.

Its tensors hold ordinary ones and take the name of torch's "meta" device. What a card refuses is
refused: operations that mix the two, `numpy` and `data_ptr` of what is on the other side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
CROSSING = ("aten::copy_", "aten::_to_copy")


class OnCard(torch.Tensor):
    """A tensor on the stand-in; `held` is where its numbers are."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnCard:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made

    def tolist(self) -> Any:
        """As torch's, which refuses subclasses."""
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"OnCard({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class Card(TorchDispatchMode):
    """Within it the device "meta" computes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    on_card = [x for x in given if isinstance(x, OnCard)]
    strangers = [x for x in given if not isinstance(x, OnCard) and x.dim()]
    name = func._schema.name
    if on_card and strangers and name not in CROSSING:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    wanted = kwargs.get("device")
    there = bool(on_card) if wanted is None else torch.device(wanted) == DEVICE
    if name == "aten::copy_":
        there = isinstance(args[0], OnCard)
    if wanted is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}

    def held(x: Any) -> Any:
        return x.held if isinstance(x, OnCard) else x

    def put(x: Any) -> Any:
        return OnCard(x) if isinstance(x, torch.Tensor) else x

    found = func(*tree_map(held, args), **tree_map(held, kwargs))
    if not there:
        return found
    return return_and_correct_aliasing(func, args, kwargs, tree_map(put, found))
