"""Memory for layout arrays: 64-byte aligned, followed by 64 readable bytes, and frozen once they are filled.

Kernels may read a little past the end of an array (SPEC.md, "Arrays"), so every array that reaches one comes from here
or from a file, where padding, index and trailer follow.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.errors import LimitError

ALIGNMENT = 64
OVERREAD = 64


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
