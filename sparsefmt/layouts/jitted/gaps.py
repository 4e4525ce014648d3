"""Passes of layout `permuted` with gaps (`gaps.py`), and how many fillers that form of a tile needs.

Values and gaps are seen as (slots, 16): lane l of slice s holds row `row_permutation[16 * s + l]` of the tile.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.bits_of_words import four_of, lowest_bit
from sparsefmt.jit import jit
from sparsefmt.layouts.jitted.permuted import COLUMN_ORDER, COLUMN_RANGE, OK, SLOT_PADDING, STORED_ZERO
from sparsefmt.positions.jitted.masks import last_columns

BLOCK = 128
"""Columns that are looked at together: rows that have a nonzero in each block of so many need no filler."""

AT_ONCE = 256
"""Slots whose gaps are added up in 16 bits."""

ZERO, ONE, FOUR, LANE, SLOT = (np.uint64(number) for number in (0, 1, 4, 15, 16))
FULL, EVERY_OTHER, EIGHT = np.uint64(255), np.uint64(0x00FF00FF00FF00FF), np.uint64(8)


@jit
def _fillers(distance: int) -> int:
    """Fillers before an element so many columns from the one before, or from column 0."""
    return (distance - 1) // 255 if distance > 255 else 0


@jit
def _put(values: np.ndarray, gaps: np.ndarray, slot: int, lane: int, distance: int, value: int) -> int:
    """Put an element in zeroed slots, fillers first, from `slot` on; the slot after it."""
    while distance > 255:
        gaps[slot, lane] = 255
        distance -= 255
        slot += 1
    gaps[slot, lane] = distance
    values[slot, lane] = value
    return slot + 1


@jit
def from_dense(
    bits: np.ndarray,
    negative_zero: int,
    row_permutation: np.ndarray,
    slice_offsets: np.ndarray,
    values: np.ndarray,
    gaps: np.ndarray,
) -> None:
    """Fill zeroed `values` and `gaps` (slots, 16) from `bits` (rows, cols)."""
    for position in range(row_permutation.shape[0]):
        row = np.int64(row_permutation[position])
        slot, last = np.int64(slice_offsets[position >> 4]), 0
        for col in range(bits.shape[1]):
            value = bits[row, col]
            if value != 0 and value != negative_zero:
                slot = _put(values, gaps, slot, position & 15, col - last, value)
                last = col


@jit
def to_dense(
    values: np.ndarray,
    gaps: np.ndarray,
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
                col += np.int64(gaps[slot, position & 15])
                # fillers are zeros between two elements
                bits[row - begin, col] = values[slot, position & 15]
                slot += 1


@jit
def of_entries(columns, values, begins, counts, row_permutation, slice_offsets, slot_values, slot_gaps):
    """Fill zeroed `slot_values` and `slot_gaps` (slots, 16). begins, counts: int64 (rows,), entries of each row."""
    for position in range(row_permutation.shape[0]):
        row = np.int64(row_permutation[position])
        slot, last = np.int64(slice_offsets[position >> 4]), 0
        for entry in range(begins[row], begins[row] + counts[row]):
            slot = _put(slot_values, slot_gaps, slot, position & 15, columns[entry] - last, values[entry])
            last = columns[entry]


@jit
def to_entries(slot_values, slot_gaps, row_permutation, row_counts, slice_offsets, begins, columns, values):
    """Undo `of_entries`."""
    for position in range(row_permutation.shape[0]):
        slot, lane, col = np.int64(slice_offsets[position >> 4]), position & 15, 0
        entry = begins[np.int64(row_permutation[position])]
        for _ in range(np.int64(row_counts[position])):
            col += np.int64(slot_gaps[slot, lane])
            value = slot_values[slot, lane]
            if value != 0:
                values[entry] = value
                columns[entry] = col
                entry += 1
            slot += 1


@jit
def of_mask(mask, elements, begins, values, gaps):
    """Fill zeroed flat `values` and `gaps` from a mask uint16 (slices, cols) and its elements in order of slices.

    begins: int64 (rows,), where each row begins in them, its entries 16 elements apart.
    """
    at = ZERO
    cursors, lasts = np.zeros(16, np.uint64), np.zeros(16, np.uint64)
    whole = mask.shape[1] & -4
    for slice_ in range(mask.shape[0]):
        columns = mask[slice_]
        last = last_columns(columns)
        for row in range(min(16, begins.shape[0] - 16 * slice_)):
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
    """Fill `stored` (rows,) with the elements of each row that are no fillers, rows in sorted order."""
    found = np.zeros(16, np.int64)
    for slice_ in range(slice_offsets.shape[0] - 1):
        found[:] = 0
        for slot in range(np.int64(slice_offsets[slice_]), np.int64(slice_offsets[slice_ + 1])):
            for lane in range(16):
                found[lane] += np.int64(values[slot, lane] != 0)
        for lane in range(min(16, row_counts.shape[0] - 16 * slice_)):
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
        end = min(first + AT_ONCE, last)
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
    sums = np.zeros(16, np.int64)
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


@jit
def fillers_of_entries(rows, columns, lasts, fillers):
    """Add to `fillers` (rows,) those before elements, whose columns ascend in each row. lasts: where each row ends."""
    for entry in range(rows.shape[0]):
        row = rows[entry]
        fillers[row] += _fillers(columns[entry] - lasts[row])
        lasts[row] = columns[entry]


@jit
def fillers_of_columns(columns, row_counts, slice_offsets, fillers):
    """Add to zeroed `fillers` (rows,) those of rows by their columns (slots, 16), in sorted order."""
    for position in range(row_counts.shape[0]):
        first, lane, last = np.int64(slice_offsets[position >> 4]), position & 15, 0
        for slot in range(first, first + np.int64(row_counts[position])):
            col = np.int64(columns[slot, lane])
            fillers[position] += _fillers(col - last)
            last = col


@jit
def fillers_of_mask(mask, fillers):
    """Add to zeroed `fillers` (rows,) those of rows by their mask, uint16 (slices, cols)."""
    cols = mask.shape[1]
    whole = cols & -4
    lasts = np.zeros(16, np.int64)
    for slice_ in range(mask.shape[0]):
        columns = mask[slice_]
        last = last_columns(columns)
        height = min(16, fillers.shape[0] - 16 * slice_)
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


@jit
def _is_empty(row, first, last, kept):
    """Whether columns `first` to `last` of a row have no bit of those in `kept`."""
    found = np.uint8(0)
    for col in range(np.uint64(first), np.uint64(last)):
        found |= np.uint8((row[col] & kept) != 0)
    return found == 0


@jit
def fillers_of_bits(bits, kept, fillers):
    """Add to zeroed `fillers` (rows,) those of dense rows. kept: the bits of an element of which zeros have none.

    Elements are looked for one by one only where empty blocks begin and end.
    """
    cols = bits.shape[1]
    for row_number in range(bits.shape[0]):
        row = bits[row_number]
        # the element before the block, if empty blocks are between: column 0 counts as one
        last, is_known = np.int64(0), True
        for begin in range(0, cols, BLOCK):
            end = min(begin + BLOCK, cols)
            if _is_empty(row, begin, end, kept):
                if not is_known:
                    # the last element of the block before
                    last = begin - 1
                    while row[last] & kept == 0:
                        last -= 1
                    is_known = True
            elif is_known:
                col = begin
                while row[col] & kept == 0:
                    col += 1
                fillers[row_number] += _fillers(col - last)
                is_known = False
