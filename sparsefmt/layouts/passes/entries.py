"""Passes between entries, ordered by row and column, and the arrays of sparse layouts.

Slots are seen as (slots, 8), masks as uint64 words (rows, words), as in `permuted.py` and `bitmask.py`.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.jit import jit


@jit
def to_slots(columns, values, begins, row_permutation, row_counts, slice_offsets, slot_values, slot_columns):
    """Fill zeroed `slot_values` and `slot_columns` (slots, 8). begins: int64 (rows,), the first entry of each row."""
    for position in range(row_permutation.shape[0]):
        slot, lane = np.int64(slice_offsets[position >> 3]), position & 7
        begin = begins[np.int64(row_permutation[position])]
        for entry in range(begin, begin + np.int64(row_counts[position])):
            slot_values[slot, lane] = values[entry]
            slot_columns[slot, lane] = columns[entry]
            slot += 1


@jit
def from_slots(slot_values, slot_columns, row_permutation, row_counts, slice_offsets, begins, columns, values):
    """Undo `to_slots`."""
    for position in range(row_permutation.shape[0]):
        slot, lane = np.int64(slice_offsets[position >> 3]), position & 7
        begin = begins[np.int64(row_permutation[position])]
        for entry in range(begin, begin + np.int64(row_counts[position])):
            values[entry] = slot_values[slot, lane]
            columns[entry] = slot_columns[slot, lane]
            slot += 1


@jit
def to_mask(rows, columns, mask):
    """Set in zeroed `mask` (rows, words) the bit of each entry."""
    for entry in range(rows.shape[0]):
        column = columns[entry]
        mask[rows[entry], column >> 6] |= np.uint64(1) << np.uint64(column & 63)


@intrinsic
def _lowest_bit(typingctx, word):
    """Position of the lowest set bit of a nonzero uint64, as int64."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


@jit
def from_mask(mask, columns):
    """Fill `columns` with that of each entry."""
    entry = 0
    for row in range(mask.shape[0]):
        for word in range(mask.shape[1]):
            bits = mask[row, word]
            while bits:
                columns[entry] = 64 * word + _lowest_bit(bits)
                entry += 1
                bits &= bits - np.uint64(1)
