"""The one pass over dense bits: which elements are zero, as a bit each, and how many are special."""

from __future__ import annotations

import numpy as np

from sparsefmt.bits_of_words import popcount
from sparsefmt.jit import jit
from sparsefmt.layouts.jitted.compared import in_range, nonzero
from sparsefmt.layouts.jitted.registers import address_of

ZERO, ONE = np.uint64(0), np.uint64(1)


@jit
def _is_in(bits, kept, low, width):
    """Whether an element is in a range, as `in_range` finds it; the numbers have the width of elements."""
    return ((np.uint64(bits) & kept) - low) & kept <= width


@jit
def mark(bits, kept, ranges, words, special):
    """Set in `words`, uint64 (rows, ceil(cols / 64)), bit c % 64 of word c // 64 where an element is not zero.

    Args:
        bits: unsigned integers (rows, cols), C-contiguous.
        kept: int64, the bits of an element of which zeros have none.
        ranges: uint64 (3, 3): kept bits, lowest, and width of the range of -0.0, of NaN and of infinity. One is left
            out where no bits are kept. A range and what it keeps begin at bit 0, or the range is a single element.
        special: int64 (3,), to which the number of -0.0, NaN and infinities is added.
    """
    rows, cols = bits.shape
    width = bits.itemsize
    whole = cols & -64
    for row in range(rows):
        start = address_of(bits) + row * cols * width
        for column in range(0, whole, 64):
            at = start + column * width
            words[row, column >> 6] = nonzero(at, 64, kept, bits)
            for kind in range(3):
                if ranges[kind, 0] != ZERO:
                    found = in_range(
                        at, np.int64(ranges[kind, 0]), np.int64(ranges[kind, 1]), np.int64(ranges[kind, 2]), bits
                    )
                    special[kind] += popcount(np.uint64(found))
        if whole < cols:
            word = ZERO
            for column in range(whole, cols):
                element = bits[row, column]
                if np.int64(element) & kept:
                    word |= ONE << np.uint64(column - whole)
                for kind in range(3):
                    if ranges[kind, 0] != ZERO and _is_in(element, ranges[kind, 0], ranges[kind, 1], ranges[kind, 2]):
                        special[kind] += 1
            words[row, whole >> 6] = word
