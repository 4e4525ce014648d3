"""Memory for layout arrays: 64-byte aligned, followed by 64 readable bytes, and frozen once they are filled.

Kernels may read a little past the end of an array (SPEC.md, "Arrays"), so every array that reaches one comes from here
or from a file, where padding, index and trailer follow. `container/sources.py` copies what ends too near to its end.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from sparsefmt.errors import LimitError

if TYPE_CHECKING:
    from sparsefmt.layouts.tile import Tile

SMALL_ALIGNMENT = 8
"""Small arrays of files lie at multiples of this: any element is aligned, which is what kernels rely on."""

ALIGNMENT = 64
OVERREAD = 64
HUGE_PAGE = 1 << 21

WORTH_HUGE_PAGES = 2 * HUGE_PAGE
"""Bytes from which a tensor's arrays go to huge pages."""

WORTH_A_MAPPING = 1 << 16
"""Bytes from which a tensor's arrays have memory of their own, in whole pages."""

_REGION = 1 << 30
"""Most bytes to reserve at once: a file may claim more than it has."""


Allocate = Callable[[int, np.dtype], np.ndarray]
"""Gives a flat array of so many elements, as `empty` and `zeros` do."""


def empty(length: int, dtype: np.dtype) -> np.ndarray:
    """A flat, uninitialised, aligned array of `length` elements with OVERREAD zero bytes behind it."""
    nbytes = length * dtype.itemsize
    try:
        block = np.empty(nbytes + OVERREAD + ALIGNMENT, np.uint8)
    except MemoryError:
        raise LimitError("memory", f"an array of {nbytes:,} bytes does not fit in memory") from None
    start = -block.ctypes.data % ALIGNMENT
    block[start + nbytes : start + nbytes + OVERREAD] = 0
    return block[start : start + nbytes].view(dtype)


def zeros(length: int, dtype: np.dtype) -> np.ndarray:
    """Like `empty`, filled with zeros."""
    array = empty(length, dtype)
    array.fill(0)
    return array


def frozen(array: np.ndarray) -> np.ndarray:
    """A read-only view. Jitted code sees read-only arrays as a type of their own, so all its inputs go through here."""
    view = array.view()
    view.flags.writeable = False
    return view


def padded_copy(array: np.ndarray) -> np.ndarray:
    """The flat `array` in memory of its own."""
    copy = empty(array.size, array.dtype)
    copy[:] = array
    return copy


def give_back() -> None:
    """Give the system the pages that the allocator of the C library keeps of what was freed. Milliseconds.

    Loading takes and frees buffers in every thread, and each thread has an arena of the allocator: memory that would be
    counted as the process's until somebody needs it. Other C libraries than glibc have no such call.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None


class Arena:
    """Memory for all arrays of a tensor, behind each other, from the system and given back to it at once.

    What a network keeps must not lie among the buffers that loading takes and frees: the allocator of the C library
    could then give back next to nothing of those, and its arenas would be counted as the process's memory for as long
    as the network lives. Arrays that lie together can also be shared as one piece of memory, where they would else be
    copied.

    A product reads a large tensor's arrays once each, from end to end. In pages of 4 KiB that is up to a third slower:
    the processor's prefetchers stop at the end of every page. Where the system has huge pages to ask for, arrays of
    large tensors lie in them. Those of small tensors stay where they are.
    """

    def __init__(self, expected: int) -> None:
        """`expected`: bytes of all arrays together, about."""
        self._room = np.empty(0, np.uint8)
        self._expected = expected if hasattr(mmap, "MAP_ANONYMOUS") else 0
        self._lock = threading.Lock()

    @property
    def _is_used(self) -> bool:
        return self._expected >= WORTH_A_MAPPING

    def keep(self, tile: Tile) -> Tile:
        """The tile with its arrays moved here, frozen."""
        return tile.moved(self.moved) if self._is_used else tile

    def moved(self, array: np.ndarray) -> np.ndarray:
        """A frozen copy of a flat array."""
        copy = self.empty(array.size, array.dtype)
        copy[...] = array
        return frozen(copy)

    def zeros(self, length: int, dtype: np.dtype) -> np.ndarray:
        """Like `memory.zeros`, here. Safe to call from many threads, as `empty` is."""
        # fresh pages are zero
        return self.empty(length, dtype) if self._is_used else zeros(length, dtype)

    def empty(self, length: int, dtype: np.dtype) -> np.ndarray:
        """Like `memory.empty`, here."""
        if not self._is_used:
            return empty(length, dtype)
        nbytes = length * dtype.itemsize
        needed = -(-nbytes // ALIGNMENT) * ALIGNMENT + OVERREAD
        with self._lock:
            if needed > self._room.size:
                self._room = self._more(needed)
            taken, self._room = self._room[:nbytes], self._room[needed:]
        return taken.view(dtype)

    def _more(self, needed: int) -> np.ndarray:
        """Fresh memory, zero, as yet without pages; lives as long as an array in it does."""
        expected = min(self._expected, _REGION)
        # arrays begin at lines of the cache, and the size was a guess; pages that nobody writes to cost nothing
        size = max(needed, expected + expected // 4)
        huge = HUGE_PAGE if expected >= WORTH_HUGE_PAGES and hasattr(mmap, "MADV_HUGEPAGE") else 0
        try:
            region = mmap.mmap(-1, size + huge, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError):
            raise LimitError("memory", f"arrays of {size:,} bytes do not fit in memory") from None
        block = np.frombuffer(region, np.uint8)
        if not huge:
            return block[:size]
        start = -block.ctypes.data % HUGE_PAGE
        # the last huge page would be filled in part only
        whole = max(needed, expected) // HUGE_PAGE * HUGE_PAGE
        if whole:
            with suppress(OSError):  # a kernel without them
                region.madvise(mmap.MADV_HUGEPAGE, start, whole)
        return block[start : start + size]
