"""Memory that a thread takes again for product after product.

Fresh memory comes from the system page by page, each zeroed first: for many a product, that would take longer than the
product. What is kept of a thread goes when the thread does.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np

from sparsefmt.layouts.memory import empty

KEPT_BYTES = 1 << 25
"""Larger rooms are not kept."""

_BYTES = np.dtype(np.uint8)

_mine = threading.local()


class Room(NamedTuple):
    """Memory, and where it begins."""

    array: np.ndarray
    address: int


NO_ROOM = Room(np.empty(0, _BYTES), 0)
"""For who needs none: it takes less time."""


def room(purpose: str, nbytes: int) -> Room:
    """Aligned, uninitialised memory of so many bytes or more, the caller's until its thread asks for the same purpose
    again. It lives as long as the caller holds its array, at least."""
    if nbytes > KEPT_BYTES:
        return _new_room(nbytes)
    kept: dict[str, Room] = _mine.__dict__
    found = kept.get(purpose)
    if found is None or found.array.size < nbytes:
        found = kept[purpose] = _new_room(max(nbytes, 1 << 13))
    return found


def _new_room(nbytes: int) -> Room:
    array = empty(nbytes, _BYTES)
    return Room(array, array.ctypes.data)
