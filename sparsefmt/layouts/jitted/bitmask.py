"""Passes of layout `bitmask`. Masks are seen as `positions.masks` gives them: (slices, cols).

Dense rows lie far apart, often a power of two, so that sixteen of them share a few lines of the cache. So passes go
through a block of columns at a time, in a scratch of a few KiB.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.bits_of_words import four_of, lowest_bit, popcount
from sparsefmt.jit import jit
from sparsefmt.positions.jitted.masks import last_columns

OK, MASK_PADDING, SLICE_OFFSETS, STORED_ZERO = range(4)

BLOCK = 64
"""Columns that are turned over at once."""

ZERO, ONE, FOUR, LANE = (np.uint64(number) for number in (0, 1, 4, 15))


@jit
def from_dense(bits: np.ndarray, negative_zero: int, mask: np.ndarray, values: np.ndarray) -> None:
    """Fill `mask` and `values` (nnz,) from `bits` (rows, cols)."""
    rows, cols = bits.shape
    # rows that do not exist stay 0
    block = np.zeros((16, BLOCK), bits.dtype)
    stored, size = np.uint64(0), np.uint64(values.shape[0])
    for slice_ in range(mask.shape[0]):
        first, height = 16 * slice_, min(16, rows - 16 * slice_)
        if height < 16:
            block[:] = 0
        for begin in range(0, cols, BLOCK):
            width = min(BLOCK, cols - begin)
            for lane in range(height):
                row, copy = bits[first + lane], block[lane]
                for col in range(np.uint64(width)):
                    copy[col] = row[np.uint64(begin) + col]
            for col in range(np.uint64(width)):
                word = np.uint64(0)
                if stored + np.uint64(16) <= size:
                    # every element is stored, and overwritten by the next if it was zero: no branch to mispredict
                    for lane in range(16):
                        value = block[np.uint64(lane), col]
                        keep = np.uint64((value != 0) & (value != negative_zero))
                        values[stored] = value
                        stored += keep
                        word |= keep << np.uint64(lane)
                else:
                    # near the end of `values`, where there may be no room for a zero
                    for lane in range(16):
                        value = block[np.uint64(lane), col]
                        if value != 0 and value != negative_zero:
                            values[stored] = value
                            stored += ONE
                            word |= ONE << np.uint64(lane)
                mask[np.uint64(slice_), np.uint64(begin) + col] = word


@jit
def to_dense(
    mask: np.ndarray, slice_offsets: np.ndarray, values: np.ndarray, begin: int, end: int, bits: np.ndarray
) -> None:
    """Fill zeroed `bits` (end - begin, cols) with rows `begin` to `end`. Blocks without a bit are not written to."""
    cols, whole = mask.shape[1], mask.shape[1] & -4
    block = np.zeros((16, BLOCK), values.dtype)
    for slice_ in range(begin // 16, (end + 15) // 16):
        columns, stored = mask[slice_], np.uint64(slice_offsets[slice_])
        last_ones = last_columns(columns)
        first, last = max(begin - 16 * slice_, 0), min(end - 16 * slice_, 16)
        for first_col in range(0, cols, BLOCK):
            width, every = min(BLOCK, cols - first_col), ZERO
            for col in range(0, width, 4):
                every |= four_of(columns, first_col + col) if first_col + col < whole else last_ones
            if every == ZERO:
                continue
            block[:] = 0
            for col in range(0, width, 4):
                word = four_of(columns, first_col + col) if first_col + col < whole else last_ones
                while word != ZERO:
                    bit = np.uint64(lowest_bit(word))
                    block[bit & LANE, np.uint64(col) + (bit >> FOUR)] = values[stored]
                    stored += ONE
                    word &= word - ONE
            for lane in range(first, last):
                out, row = bits[16 * slice_ + lane - begin], block[lane]
                for col in range(np.uint64(width)):
                    out[np.uint64(first_col) + col] = row[col]


@jit
def stored_before(mask: np.ndarray, row: int) -> int:
    """Stored elements of the slice of a row that stand in rows before it."""
    before, rows = 0, (1 << (row % 16)) - 1
    for col in range(mask.shape[1]):
        before += popcount(np.int64(mask[row // 16, col]) & rows)
    return before


@jit
def check(mask: np.ndarray, slice_offsets: np.ndarray, values: np.ndarray, negative_zero: int, rows: int):
    """(fault, slice) of the first broken invariant, or (OK, 0). Reads every array once, nothing outside them."""
    slices, cols = mask.shape
    whole = cols & -4
    if slice_offsets[0] != 0:
        return SLICE_OFFSETS, 0
    for slice_ in range(slices):
        columns = mask[slice_]
        last = last_columns(columns)
        stored, every = np.int64(0), np.uint16(0)
        for col in range(0, cols, 4):
            stored += popcount(four_of(columns, col) if col < whole else last)
        height = rows - 16 * slice_
        if height < 16:
            for col in range(cols):
                every |= mask[slice_, col]
            if np.int64(every) >> height:
                return MASK_PADDING, slice_
        if np.int64(slice_offsets[slice_]) + stored != np.int64(slice_offsets[slice_ + 1]):
            return SLICE_OFFSETS, slice_
    if np.int64(slice_offsets[slices]) != values.shape[0]:
        return SLICE_OFFSETS, slices
    zeros = np.int64(0)
    for stored in range(values.shape[0]):
        zeros += np.int64(values[stored] == 0) | np.int64(values[stored] == negative_zero)
    if zeros:
        return STORED_ZERO, 0
    return OK, 0
