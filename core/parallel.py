"""Parts of a computation side by side: as many threads as torch has, each with one of its own.

Torch divides single operations among its threads, and each operation waits for the slowest of them.
Small ones gain nothing by that; and where other processes want the cores, every wait may last until
the scheduler turns round, which made an update ten times slower. Parts that are whole computations
wait once, at the end, and what comes out does not depend on how many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return function(item) of every item, in order, computed on `torch.get_num_threads()` threads.

    The function must not write to what another item's call reads or writes, nor call this. Within
    it torch has one thread, but all of them for an item that is alone.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2:
        return [function(item) for item in items]
    torch.set_num_threads(1)
    try:
        return list(_pool(threads).map(function, items))
    finally:
        torch.set_num_threads(threads)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return a pool that stays: MKL keeps buffers for every thread there ever was."""
    return ThreadPoolExecutor(threads, "flywise", initializer=torch.set_num_threads, initargs=(1,))
