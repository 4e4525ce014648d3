"""Passes of layout `bitmask`, and its conversion to and from `permuted`.

Masks are seen as uint64 words, (rows, words): column c is bit c % 64 of word c // 64.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.bits_of_words import lowest_bit, popcount
from sparsefmt.jit import jit

OK, MASK_PADDING, ROW_OFFSETS, STORED_ZERO = range(4)


@jit
def pack(bits: np.ndarray, negative_zero: int, row_offsets: np.ndarray, mask: np.ndarray, values: np.ndarray) -> None:
    """Fill `mask` (rows, words) and `values` (nnz,) from `bits` (rows, cols), given `row_offsets`."""
    cols = bits.shape[1]
    for row in range(bits.shape[0]):
        stored = np.int64(row_offsets[row])
        for index in range(mask.shape[1]):
            begin = index * 64
            width = min(64, cols - begin)
            word = np.uint64(0)
            if stored + width <= values.shape[0]:
                # every element is stored, and overwritten by the next if it was zero: no branch to mispredict
                for bit in range(width):
                    value = bits[row, begin + bit]
                    keep = np.uint64((value != 0) & (value != negative_zero))
                    values[stored] = value
                    stored += np.int64(keep)
                    word |= keep << np.uint64(bit)
            else:
                # near the end of `values`, where there may be no room for a zero
                for bit in range(width):
                    value = bits[row, begin + bit]
                    if value != 0 and value != negative_zero:
                        values[stored] = value
                        stored += 1
                        word |= np.uint64(1) << np.uint64(bit)
            mask[row, index] = word


@jit
def row_offsets(mask: np.ndarray, offsets: np.ndarray) -> None:
    """Fill `offsets` (rows + 1,) with how many positions are kept before each row, and in all."""
    kept = 0
    for row in range(mask.shape[0]):
        offsets[row] = kept
        for word in range(mask.shape[1]):
            kept += popcount(mask[row, word])
    offsets[mask.shape[0]] = kept


@jit
def unpack(
    mask: np.ndarray, row_offsets: np.ndarray, values: np.ndarray, begin: int, end: int, bits: np.ndarray
) -> None:
    """Scatter rows `begin` to `end` into zeroed `bits` (end - begin, cols)."""
    one = np.uint64(1)
    for row in range(begin, end):
        stored = np.int64(row_offsets[row])
        for index in range(mask.shape[1]):
            word = mask[row, index]
            while word != 0:
                bits[row - begin, index * 64 + lowest_bit(word)] = values[stored]
                stored += 1
                word &= word - one


@jit
def check(mask: np.ndarray, row_offsets: np.ndarray, values: np.ndarray, negative_zero: int, cols: int):
    """(fault, row) of the first broken invariant, or (OK, 0). Reads every array once, nothing outside them."""
    rows = mask.shape[0]
    last_bits = cols & 63
    padding = np.uint64(0)
    if last_bits:
        padding = ~((np.uint64(1) << np.uint64(last_bits)) - np.uint64(1))
    if row_offsets[0] != 0:
        return ROW_OFFSETS, 0
    for row in range(rows):
        if last_bits and mask[row, mask.shape[1] - 1] & padding:
            return MASK_PADDING, row
        stored = np.int64(0)
        for index in range(mask.shape[1]):
            stored += popcount(mask[row, index])
        if np.int64(row_offsets[row]) + stored != np.int64(row_offsets[row + 1]):
            return ROW_OFFSETS, row
    if np.int64(row_offsets[rows]) != values.shape[0]:
        return ROW_OFFSETS, rows
    zeros = np.int64(0)
    for stored in range(values.shape[0]):
        zeros += np.int64(values[stored] == 0) | np.int64(values[stored] == negative_zero)
    if zeros:
        return STORED_ZERO, 0
    return OK, 0


@jit
def to_permuted(
    mask: np.ndarray,
    row_offsets: np.ndarray,
    values: np.ndarray,
    row_permutation: np.ndarray,
    slice_offsets: np.ndarray,
    slot_values: np.ndarray,
    slot_columns: np.ndarray,
) -> None:
    """Fill zeroed `slot_values` and `slot_columns` (slots * 8,) from a checked bitmask tile."""
    # indices are unsigned: numba would look for negative ones
    one, eight = np.uint64(1), np.uint64(8)
    for position in range(row_permutation.shape[0]):
        row = np.int64(row_permutation[position])
        at = np.uint64(slice_offsets[position >> 3]) * eight + np.uint64(position & 7)
        stored = np.uint64(row_offsets[row])
        for index in range(mask.shape[1]):
            word = mask[row, index]
            while word != 0:
                slot_columns[at] = index * 64 + lowest_bit(word)
                slot_values[at] = values[stored]
                at += eight
                stored += one
                word &= word - one


@jit
def from_permuted(
    slot_values: np.ndarray,
    slot_columns: np.ndarray,
    row_permutation: np.ndarray,
    row_counts: np.ndarray,
    slice_offsets: np.ndarray,
    row_offsets: np.ndarray,
    mask: np.ndarray,
    values: np.ndarray,
) -> None:
    """Fill zeroed `mask` (rows, words) and `values` (nnz,) from a checked permuted tile, given `row_offsets`."""
    one = np.uint64(1)
    for position in range(row_permutation.shape[0]):
        row = np.int64(row_permutation[position])
        slot = np.int64(slice_offsets[position >> 3])
        lane = position & 7
        stored = np.int64(row_offsets[row])
        for _ in range(np.int64(row_counts[position])):
            col = np.int64(slot_columns[slot, lane])
            mask[row, col >> 6] |= one << np.uint64(col & 63)
            values[stored] = slot_values[slot, lane]
            slot += 1
            stored += 1


@jit
def of_entries(rows, columns, mask):
    """Set in zeroed `mask` (rows, words) the bit of each entry."""
    for entry in range(rows.shape[0]):
        column = columns[entry]
        mask[rows[entry], column >> 6] |= np.uint64(1) << np.uint64(column & 63)


@jit
def columns_of(mask, columns):
    """Fill `columns` with that of each entry."""
    entry = 0
    for row in range(mask.shape[0]):
        for word in range(mask.shape[1]):
            bits = mask[row, word]
            while bits:
                columns[entry] = 64 * word + lowest_bit(bits)
                entry += 1
                bits &= bits - np.uint64(1)
