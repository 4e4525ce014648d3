"""Memory that a thread takes again for product after product.

Fresh memory comes from the system page by page, each zeroed first: for many a product, that would take longer than the
product. What is kept of a thread goes when the thread does.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np

from sparsefmt.layouts.memory import empty

KEPT_BYTES = 1 << 24
"""Larger scratches are not kept."""

_mine = threading.local()


def scratch(purpose: str, length: int, dtype: np.dtype) -> np.ndarray:
    """An aligned, uninitialised array, the caller's until its thread asks for the same purpose again."""
    nbytes = length * dtype.itemsize
    if nbytes > KEPT_BYTES:
        return empty(length, dtype)
    kept: dict[str, np.ndarray] = _mine.__dict__
    block = kept.get(purpose)
    if block is None or block.size < nbytes:
        block = kept[purpose] = empty(max(nbytes, 1 << 12), np.dtype(np.uint8))
    return block[:nbytes].view(dtype)


class Room(NamedTuple):
    """Memory, and where it begins."""

    array: np.ndarray
    address: int


def room(purpose: str, length: int, dtype: np.dtype) -> Room:
    """Like `scratch`, of so many elements or more, which takes less time. The purposes are its own."""
    if length * dtype.itemsize > KEPT_BYTES:
        return _new_room(length, dtype)
    kept: dict[str, Room] = _mine.__dict__
    found = kept.get(purpose)
    if found is None or found.array.size < length or found.array.dtype is not dtype:
        found = kept[purpose] = _new_room(max(length, 1 << 10), dtype)
    return found


def _new_room(length: int, dtype: np.dtype) -> Room:
    array = empty(length, dtype)
    return Room(array, array.ctypes.data)
