"""Counts the fillers that rows have in layout `permuted` with gaps, from whatever says where their elements stand."""

from __future__ import annotations

import numpy as np

from sparsefmt.bits_of_words import four_of, lowest_bit
from sparsefmt.jit import jit
from sparsefmt.jit_helpers import on_stack, smaller
from sparsefmt.positions.jitted.masks import last_columns

BLOCK = 128
"""Columns that are looked at together: rows that have a nonzero in each block of so many need no filler."""

ZERO, ONE = np.uint64(0), np.uint64(1)


@jit
def _before(distance: int) -> int:
    """Fillers before an element so many columns from the one before, or from column 0."""
    return (distance - 1) // 255 if distance > 255 else 0


@jit
def of_entries(rows, columns, lasts, fillers):
    """Add to `fillers` (rows,) those before elements, whose columns ascend in each row. lasts: where each row ends."""
    for entry in range(rows.shape[0]):
        row = rows[entry]
        fillers[row] += _before(columns[entry] - lasts[row])
        lasts[row] = columns[entry]


@jit
def of_columns(columns, row_counts, slice_offsets, fillers):
    """Add to zeroed `fillers` (rows,) those of rows by their columns (slots, 16), in sorted order."""
    for position in range(row_counts.shape[0]):
        first, lane, last = np.int64(slice_offsets[position >> 4]), position & 15, 0
        for slot in range(first, first + np.int64(row_counts[position])):
            col = np.int64(columns[slot, lane])
            fillers[position] += _before(col - last)
            last = col


@jit
def of_mask(mask, fillers):
    """Add to zeroed `fillers` (rows,) those of rows by their mask (slices, cols)."""
    cols = mask.shape[1]
    whole = cols & -4
    lasts = on_stack(16, np.int64)
    for slice_ in range(mask.shape[0]):
        columns = mask[slice_]
        last = last_columns(columns)
        height = smaller(16, fillers.shape[0] - 16 * slice_)
        # bits of rows that are empty in some block: none of the others needs a filler
        empty = np.uint16(0)
        for begin in range(0, cols - BLOCK + 1, BLOCK):
            found = np.uint16(0)
            for column in range(np.uint64(begin), np.uint64(begin + BLOCK)):
                found = np.uint16(found | columns[column])
            empty = np.uint16(empty | ~found)
        if not np.int64(empty) & ((1 << height) - 1):
            continue
        lasts[:] = 0
        for column in range(0, cols, 4):
            bits = four_of(columns, column) if column < whole else last
            while bits != ZERO:
                bit = np.int64(lowest_bit(bits))
                lane, col = bit & 15, column + (bit >> 4)
                distance = col - lasts[lane]
                if distance > 255:
                    fillers[16 * slice_ + lane] += (distance - 1) // 255
                lasts[lane] = col
                bits &= bits - ONE
