"""Passes of layout `permuted`: those of both forms, and those of the form with `columns`.

Values and where they stand are seen as (slots, 16): lane l of slice s holds row `row_permutation[16 * s + l]` of the
tile. `where` is an array of gaps, of 8 bits, or of columns, of 16 or 32.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from sparsefmt.jit import jit

OK, PERMUTATION, ROW_COUNTS, SLICE_OFFSETS, COLUMN_RANGE, COLUMN_ORDER, STORED_ZERO, SLOT_PADDING = range(8)


@intrinsic
def _are_gaps(typingctx, where):
    """Whether an array that says where values stand has gaps, which its type tells. Compiled, no branch is left."""
    of_gaps = where.dtype == types.uint8

    def codegen(context, builder, signature, args):
        return context.get_constant(types.boolean, of_gaps)

    return types.boolean(where), codegen


@jit
def _put(values, where, slot, lane, last, col, value):
    """Put the element at column `col` in zeroed slots from `slot` on, `last` being the column before it, or 0.

    With gaps, fillers come first. Returns the slot after it.
    """
    if _are_gaps(where):
        col -= last
        while col > 255:
            where[slot, lane] = 255
            col -= 255
            slot += 1
    where[slot, lane] = col
    values[slot, lane] = value
    return slot + 1


@jit
def _column(where, slot, lane, last):
    """The column of the entry in a slot, `last` being that of the entry before it, or 0."""
    return (last if _are_gaps(where) else 0) + np.int64(where[slot, lane])


@jit
def from_dense(
    bits: np.ndarray,
    negative_zero: int,
    row_permutation: np.ndarray,
    slice_offsets: np.ndarray,
    values: np.ndarray,
    where: np.ndarray,
) -> None:
    """Fill zeroed `values` and `where` (slots, 16) from `bits` (rows, cols)."""
    for position in range(row_permutation.shape[0]):
        row = np.int64(row_permutation[position])
        slot, last = np.int64(slice_offsets[position >> 4]), 0
        for col in range(bits.shape[1]):
            value = bits[row, col]
            if value != 0 and value != negative_zero:
                slot = _put(values, where, slot, position & 15, last, col, value)
                last = col


@jit
def to_dense(
    values: np.ndarray,
    where: np.ndarray,
    row_permutation: np.ndarray,
    row_counts: np.ndarray,
    slice_offsets: np.ndarray,
    begin: int,
    end: int,
    bits: np.ndarray,
) -> None:
    """Scatter rows `begin` to `end` into zeroed `bits` (end - begin, cols)."""
    for position in range(row_permutation.shape[0]):
        row = np.int64(row_permutation[position])
        if begin <= row < end:
            slot, col = np.int64(slice_offsets[position >> 4]), 0
            for _ in range(np.int64(row_counts[position])):
                col = _column(where, slot, position & 15, col)
                # fillers are zeros between two elements
                bits[row - begin, col] = values[slot, position & 15]
                slot += 1


@jit
def of_entries(columns, values, begins, counts, row_permutation, slice_offsets, slot_values, slot_where):
    """Fill zeroed `slot_values` and `slot_where` (slots, 16) with elements row by row.

    begins, counts: int64 (rows,), the first element of each row, and how many it has.
    """
    for position in range(row_permutation.shape[0]):
        row = np.int64(row_permutation[position])
        slot, last = np.int64(slice_offsets[position >> 4]), 0
        for entry in range(begins[row], begins[row] + counts[row]):
            slot = _put(slot_values, slot_where, slot, position & 15, last, columns[entry], values[entry])
            last = columns[entry]


@jit
def to_entries(slot_values, slot_where, row_permutation, row_counts, slice_offsets, begins, columns, values):
    """Undo `of_entries`."""
    for position in range(row_permutation.shape[0]):
        first, lane, col = np.int64(slice_offsets[position >> 4]), position & 15, 0
        entry = np.uint64(begins[np.int64(row_permutation[position])])
        for slot in range(first, first + np.int64(row_counts[position])):
            col = _column(slot_where, slot, lane, col)
            value = slot_values[slot, lane]
            if value != 0 or not _are_gaps(slot_where):
                values[entry] = value
                columns[entry] = col
                entry += np.uint64(1)


@jit
def _are_good(values: np.ndarray, columns: np.ndarray, negative_zero: int, first: int, last: int) -> bool:
    """Whether slots `first` to `last` of a slice, in which all lanes are stored, have no zero, and columns that ascend.

    No branch and no early end: compiled to vector instructions, several times as fast as lane by lane.
    """
    flat_values, flat_columns = values.reshape(-1), columns.reshape(-1)
    faults = np.uint8(0)
    for element in range(np.uint64(first) * np.uint64(16), np.uint64(last) * np.uint64(16)):
        value = flat_values[element]
        faults |= np.uint8(value == 0) | np.uint8(value == negative_zero)
    for element in range(np.uint64(first + 1) * np.uint64(16), np.uint64(last) * np.uint64(16)):
        faults |= np.uint8(flat_columns[element] <= flat_columns[element - np.uint64(16)])
    return faults == 0


@jit
def check_rows(row_permutation: np.ndarray, row_counts: np.ndarray, slice_offsets: np.ndarray, slots: int, cols: int):
    """(fault, position) of the first broken invariant of these arrays, or (OK, 0). Reads nothing outside them."""
    rows = row_permutation.shape[0]
    seen = np.zeros(rows, np.bool_)
    for position in range(rows):
        row = np.int64(row_permutation[position])
        if row >= rows or seen[row]:
            return PERMUTATION, position
        seen[row] = True
        if np.int64(row_counts[position]) > cols:
            return ROW_COUNTS, position
        if position:
            if row_counts[position] > row_counts[position - 1]:
                return ROW_COUNTS, position
            if row_counts[position] == row_counts[position - 1] and row < np.int64(row_permutation[position - 1]):
                return PERMUTATION, position
    if slice_offsets[0] != 0:
        return SLICE_OFFSETS, 0
    for slice_ in range(slice_offsets.shape[0] - 1):
        length = np.int64(row_counts[slice_ * 16])
        if np.int64(slice_offsets[slice_]) + length != np.int64(slice_offsets[slice_ + 1]):
            return SLICE_OFFSETS, slice_ * 16
    if np.int64(slice_offsets[slice_offsets.shape[0] - 1]) != slots:
        return SLICE_OFFSETS, rows
    return OK, 0


@jit
def check_columns(
    values: np.ndarray,
    columns: np.ndarray,
    row_counts: np.ndarray,
    slice_offsets: np.ndarray,
    negative_zero: int,
    cols: int,
):
    """(fault, position) of the first broken invariant, or (OK, 0), the small arrays being right. Reads each once."""
    rows = row_counts.shape[0]
    for slice_ in range(slice_offsets.shape[0] - 1):
        first = np.int64(slice_offsets[slice_])
        last = np.int64(slice_offsets[slice_ + 1])
        # counts never ascend: the last lane has the fewest
        full = np.int64(row_counts[slice_ * 16 + 15]) if slice_ * 16 + 15 < rows else np.int64(0)
        if not _are_good(values, columns, negative_zero, first, first + full):
            full = np.int64(0)  # to say which of them is not
        for lane in range(16):
            position = slice_ * 16 + lane
            count = np.int64(row_counts[position]) if position < rows else np.int64(0)
            previous = np.int64(columns[first + full - 1, lane]) if full else np.int64(-1)
            for slot in range(first + full, first + count):
                col = np.int64(columns[slot, lane])
                if col <= previous:
                    return COLUMN_ORDER, position
                previous = col
                if values[slot, lane] == 0 or values[slot, lane] == negative_zero:
                    return STORED_ZERO, position
            if previous >= cols:
                return COLUMN_RANGE, position
            for slot in range(first + count, last):
                if values[slot, lane] != 0 or columns[slot, lane] != 0:
                    return SLOT_PADDING, position
    return OK, 0
