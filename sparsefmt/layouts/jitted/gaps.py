"""Passes of layout `permuted` with gaps alone: those of both forms are in `permuted.py`."""

from __future__ import annotations

import numpy as np

from sparsefmt.bits_of_words import four_of, lowest_bit
from sparsefmt.jit import jit
from sparsefmt.jit_helpers import on_stack, smaller
from sparsefmt.layouts.jitted.permuted import COLUMN_ORDER, COLUMN_RANGE, OK, SLOT_PADDING, STORED_ZERO
from sparsefmt.positions.jitted.masks import last_columns

AT_ONCE = 256
"""Slots whose gaps are added up in 16 bits."""

ZERO, ONE, FOUR, LANE, SLOT = (np.uint64(number) for number in (0, 1, 4, 15, 16))
FULL, EVERY_OTHER, EIGHT = np.uint64(255), np.uint64(0x00FF00FF00FF00FF), np.uint64(8)


@jit
def of_mask(mask, elements, begins, values, gaps):
    """Fill zeroed flat `values` and `gaps` from a mask (slices, cols) and its elements in order of slices.

    begins: int64 (rows,), where each row begins in them, its entries 16 elements apart.
    """
    at = ZERO
    cursors, lasts = on_stack(16, np.uint64), on_stack(16, np.uint64)
    whole = mask.shape[1] & -4
    for slice_ in range(mask.shape[0]):
        columns = mask[slice_]
        last = last_columns(columns)
        for row in range(smaller(16, begins.shape[0] - 16 * slice_)):
            cursors[row] = begins[16 * slice_ + row]
            lasts[row] = ZERO
        for column in range(0, mask.shape[1], 4):
            bits = four_of(columns, column) if column < whole else last
            while bits != ZERO:
                bit = np.uint64(lowest_bit(bits))
                lane = bit & LANE
                cursor, col = cursors[lane], np.uint64(column) + (bit >> FOUR)
                distance = col - lasts[lane]
                lasts[lane] = col
                while distance > FULL:
                    gaps[cursor] = 255
                    distance -= FULL
                    cursor += SLOT
                values[cursor] = elements[at]
                gaps[cursor] = distance
                cursors[lane] = cursor + SLOT
                at += ONE
                bits &= bits - ONE


@jit
def count(values, row_counts, slice_offsets, stored):
    """Fill `stored` (rows,) with the elements of each row that are not fillers, rows in sorted order."""
    found = on_stack(16, np.int64)
    for slice_ in range(slice_offsets.shape[0] - 1):
        found[:] = 0
        for slot in range(np.int64(slice_offsets[slice_]), np.int64(slice_offsets[slice_ + 1])):
            for lane in range(16):
                found[lane] += np.int64(values[slot, lane] != 0)
        for lane in range(smaller(16, row_counts.shape[0] - 16 * slice_)):
            stored[16 * slice_ + lane] = found[lane]


@jit
def _are_good(values, gaps, negative_zero, first, last):
    """Whether slots `first` to `last` of a slice, in which all lanes have entries, have zeros only as fillers, and gaps
    of 0 only in the first of them. No branch and no early end.
    """
    flat_values, flat_gaps = values.reshape(-1), gaps.reshape(-1)
    faults = np.uint8(0)
    for element in range(np.uint64(first) * SLOT, np.uint64(last) * SLOT):
        value = flat_values[element]
        zero = np.uint8(value == 0)
        faults |= zero & np.uint8(flat_gaps[element] != 255)
        faults |= np.uint8(value == negative_zero) & (zero ^ np.uint8(1))
    for element in range(np.uint64(first + 1) * SLOT, np.uint64(last) * SLOT):
        faults |= np.uint8(flat_gaps[element] == 0)
    return faults == 0


@jit
def _add_up(words, first, last, sums):
    """Fill `sums`, int64 (16,), with the gaps of each lane in slots `first` to `last`. words: eight gaps each."""
    sums[:] = 0
    while first < last:
        end = smaller(first + AT_ONCE, last)
        even0, odd0, even1, odd1 = ZERO, ZERO, ZERO, ZERO
        for slot in range(np.uint64(first), np.uint64(end)):
            low, high = words[slot * np.uint64(2)], words[slot * np.uint64(2) + ONE]
            even0 += low & EVERY_OTHER
            odd0 += (low >> EIGHT) & EVERY_OTHER
            even1 += high & EVERY_OTHER
            odd1 += (high >> EIGHT) & EVERY_OTHER
        for pair in range(4):
            shift, mask = np.uint64(16 * pair), np.uint64(0xFFFF)
            sums[2 * pair] += np.int64((even0 >> shift) & mask)
            sums[2 * pair + 1] += np.int64((odd0 >> shift) & mask)
            sums[2 * pair + 8] += np.int64((even1 >> shift) & mask)
            sums[2 * pair + 9] += np.int64((odd1 >> shift) & mask)
        first = end


@jit
def check(
    values: np.ndarray,
    gaps: np.ndarray,
    words: np.ndarray,
    row_counts: np.ndarray,
    slice_offsets: np.ndarray,
    negative_zero: int,
    cols: int,
):
    """(fault, position) of the first broken invariant, or (OK, 0), the small arrays being right. Reads each once.

    words: uint64, the gaps again, eight each.
    """
    rows = row_counts.shape[0]
    sums = on_stack(16, np.int64)
    for slice_ in range(slice_offsets.shape[0] - 1):
        first = np.int64(slice_offsets[slice_])
        last = np.int64(slice_offsets[slice_ + 1])
        # counts never ascend: the last lane has the fewest
        full = np.int64(row_counts[slice_ * 16 + 15]) if slice_ * 16 + 15 < rows else np.int64(0)
        if not _are_good(values, gaps, negative_zero, first, first + full):
            full = np.int64(0)  # to say which of them is not
        _add_up(words, first, first + full, sums)
        for lane in range(16):
            position, col = slice_ * 16 + lane, sums[lane]
            count = np.int64(row_counts[position]) if position < rows else np.int64(0)
            for slot in range(first + full, first + count):
                value, gap = values[slot, lane], np.int64(gaps[slot, lane])
                if gap == 0 and slot > first:
                    return COLUMN_ORDER, position
                if (value == 0 and gap != 255) or (value != 0 and value == negative_zero):
                    return STORED_ZERO, position
                col += gap
            if col >= cols:
                return COLUMN_RANGE, position
            if count and values[first + count - 1, lane] == 0:
                return STORED_ZERO, position
            for slot in range(first + count, last):
                if values[slot, lane] != 0 or gaps[slot, lane] != 0:
                    return SLOT_PADDING, position
    return OK, 0
