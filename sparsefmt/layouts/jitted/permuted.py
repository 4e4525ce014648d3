"""Passes of layout `permuted`: those of both forms, and those of the form with `columns`.

Values and where they stand are seen as (slots, 16): lane l of slice s holds row `row_permutation[16 * s + l]` of the
tile. `where` is an array of gaps, of 8 bits, or of columns, of 16 or 32.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from sparsefmt.jit import jit
from sparsefmt.jit_helpers import on_stack, smaller
from sparsefmt.layouts.jitted.compared import nonzero
from sparsefmt.layouts.jitted.registers import address_of, compress, compress_columns, copy, prefetch, turn
from sparsefmt.layouts.jitted.wide import WIDE, compress_part, turn_block

OK, PERMUTATION, ROW_COUNTS, SLICE_OFFSETS, COLUMN_RANGE, COLUMN_ORDER, STORED_ZERO, SLOT_PADDING = range(8)

SPARE = 128
"""Entries for which there is room beyond those that a row has: a group of 64 columns, and what is written behind it."""


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
def _compress_row(bits, row, following, kept, values, columns, tables, block):
    """Nonzeros of a row side by side in `values`, and their columns in `columns`, uint32; returns how many there are.

    Returns -1 if that is more than there is room for, less SPARE.

    following: the row that will be compressed next; rows come in no order that a processor could foresee.

    Bits may change meanwhile: each is read once, to `block`, of 64 elements and more.

    tables: `registers.compressing` and `registers.places`.
    """
    cols, width = bits.shape[1], bits.itemsize
    source, out, out_columns = address_of(bits) + row * cols * width, address_of(values), address_of(columns)
    shuffles, places = address_of(tables[0]), address_of(tables[1])
    whole, taken = cols & -64, address_of(block)
    last, ahead = out + (values.shape[0] - SPARE) * width, (following - row) * cols * width
    if WIDE:
        elements = 64 // width
        for column in range(0, whole, elements):
            if out > last:
                return -1
            prefetch(source + ahead + column * width)
            of_part = compress_part(source + column * width, kept, out, out_columns, column, bits)
            out += of_part * width
            out_columns += of_part * 4
    for column in range(whole if WIDE else 0, whole, 64):
        for part in range(0, 64 * width, 64):
            prefetch(source + ahead + column * width + part)
        copy(source + column * width, taken, 64, bits)
        word = nonzero(taken, 64, kept, bits)
        if word == 0:
            continue
        if out > last:
            return -1
        for group in range(0, 64, 8):
            of_group = (word >> group) & 255
            out = compress(taken + group * width, of_group, 8, out, shuffles, bits)
            out_columns = compress_columns(of_group, column + group, out_columns, places)
    if out > last:
        return -1
    stored = (out - address_of(values)) // width
    for column in range(whole, cols):
        value = bits[row, column]
        if np.int64(value) & kept:
            values[stored] = value
            columns[stored] = column
            stored += 1
    return stored


@jit
def _place_row(columns, stored, values, where, entries):
    """Fill `where` from the `stored` columns of a row; with gaps, `values` are moved apart for fillers, too.

    Returns whether these are as many entries as there should be.
    """
    if not _are_gaps(where):
        if stored != entries:
            return False
        for entry in range(np.uint64(stored)):
            where[entry] = columns[entry]
    elif stored == entries:
        # the first counts from column 0
        far = np.uint32(0)
        if stored:
            where[0] = columns[0]
            far = columns[0]
        for entry in range(np.uint64(1), np.uint64(stored)):
            distance = columns[entry] - columns[entry - np.uint64(1)]
            where[entry] = distance
            far |= distance
        return far <= 255
    else:
        needed, before = stored, 0
        for entry in range(stored):
            distance = np.int64(columns[entry]) - before
            before = np.int64(columns[entry])
            if distance > 255:
                needed += (distance - 1) // 255
        if needed != entries:
            return False
        # from the end: what a value is moved to, or fillers, is behind those that have not been moved
        slot = entries - 1
        for entry in range(stored - 1, -1, -1):
            distance = np.int64(columns[entry]) - (np.int64(columns[entry - 1]) if entry else 0)
            fillers = (distance - 1) // 255 if distance > 255 else 0
            values[slot], where[slot] = values[entry], distance - 255 * fillers
            slot -= 1
            for _ in range(fillers):
                values[slot], where[slot] = 0, 255
                slot -= 1
    return True


@jit
def _turn_rows(rows, slots, out, first_slot, block):
    """Turn sixteen rows, of `slots` entries, over to slots of `out` (slots, 16). block: (16, 16)."""
    width, lanes = rows.itemsize, 16 // rows.itemsize
    source, room = address_of(rows), rows.shape[1]
    whole = slots - slots % (64 // width) if WIDE else 0
    for slot in range(0, whole, 64 // width):
        turn_block(source + slot * width, room * width, address_of(out) + (first_slot + slot) * 16 * width, rows)
    for slot in range(whole, slots, lanes):
        fits = slot + lanes <= slots
        target = address_of(out) + (first_slot + slot) * 16 * width if fits else address_of(block)
        for lane in range(0, 16, lanes):
            turn(source + (lane * room + slot) * width, room * width, target + lane * width, 16 * width, rows)
        if not fits:
            for last in range(slots - slot):
                for lane in range(16):  # one by one: numba would compile what it says of shapes that differ
                    out[first_slot + slot + last, lane] = block[last, lane]


def room_for(most: int, values: np.dtype, where: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Memory for `from_dense`: values and places of sixteen rows, and columns of one, of `most` entries."""
    # rows of a line more than a power of two do not share lines of the cache
    room = -(-most // 64) * 64 + 64 + SPARE
    return np.empty((16, room), values), np.empty((16, room), where), np.empty(room, np.uint32)


@jit
def from_dense(bits, kept, row_permutation, row_counts, slice_offsets, values, where, tables, room) -> bool:
    """Fill `values` and `where` (slots, 16) from `bits` (rows, cols).

    kept: the bits of an element of which zeros have none. tables: as in `_compress_row`. room: `room_for` its rows.

    Bits may change meanwhile. Returns whether each row had as many entries as `row_counts` says. If not, what was
    filled is of no use.
    """
    rows = bits.shape[0]
    compressed, places, columns = room
    block, block_of_places = on_stack((16, 16), bits.dtype), on_stack((16, 16), where.dtype)
    for slice_ in range(slice_offsets.shape[0] - 1):
        first = np.int64(slice_offsets[slice_])
        slots = np.int64(slice_offsets[slice_ + 1]) - first
        whole = (slots + 15) & -16
        for lane in range(16):
            position, entries = 16 * slice_ + lane, 0
            if position < rows:
                entries = np.int64(row_counts[position])
                row = np.int64(row_permutation[position])
                following = np.int64(row_permutation[smaller(position + 1, rows - 1)])
                stored = _compress_row(bits, row, following, kept, compressed[lane], columns, tables, block)
                if stored < 0 or not _place_row(columns, stored, compressed[lane], places[lane], entries):
                    return False
            compressed[lane, entries:whole] = 0
            places[lane, entries:whole] = 0
        _turn_rows(compressed, slots, values, first, block)
        _turn_rows(places, slots, where, first, block_of_places)
    return True


@jit
def to_dense(
    values: np.ndarray,
    where: np.ndarray,
    row_permutation: np.ndarray,
    row_counts: np.ndarray,
    slice_offsets: np.ndarray,
    positions: np.ndarray,
    begin: int,
    first_col: int,
    bits: np.ndarray,
) -> None:
    """Fill zeroed `bits` with rows from `begin` on, and columns from `first_col` on, as many as it has.

    positions: int64, of those rows in sorted order.
    """
    cols = bits.shape[1]
    for position in positions:
        slot, col = np.int64(slice_offsets[position >> 4]), 0
        out = bits[np.int64(row_permutation[position]) - begin]
        for _ in range(np.int64(row_counts[position])):
            col = _column(where, slot, position & 15, col)
            # fillers are zeros between two elements
            if np.uint64(col - first_col) < np.uint64(cols):
                out[col - first_col] = values[slot, position & 15]
            elif col >= first_col + cols:
                break
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
