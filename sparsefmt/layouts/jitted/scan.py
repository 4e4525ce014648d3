"""Passes over dense bits that every sparse layout shares: words of 64 columns say what is in a row.

kept: the bits of an element of which zeros of either sign have none (`DType.kept_bits`).
"""

from __future__ import annotations

import numpy as np

from sparsefmt.bits_of_words import (
    deposited_bits,
    extracted_bits,
    highest_bit,
    lowest_bit,
    popcount,
    store_word,
    word_at,
)
from sparsefmt.jit import jit
from sparsefmt.layouts.jitted.compared import equal, nonzero
from sparsefmt.layouts.jitted.registers import address_of, or_where

ZERO, ONE, WORD = np.uint64(0), np.uint64(1), np.uint64(64)

MAX_GAP = 255
"""As in `layouts/fillers.py`."""


@jit
def _last_nonzero(bits, row, column, kept):
    """The nonzeros of the columns from `column` on, fewer than 64, as bits."""
    word = ZERO
    for col in range(column, bits.shape[1]):
        word |= np.uint64((np.int64(bits[row, col]) & kept) != 0) << np.uint64(col - column)
    return word


@jit
def _last_equal(bits, row, column, number):
    """Those of the columns from `column` on, fewer than 64, that are `number`, as bits."""
    word = ZERO
    for col in range(column, bits.shape[1]):
        word |= np.uint64(np.int64(bits[row, col]) == number) << np.uint64(col - column)
    return word


@jit
def survey(bits: np.ndarray, kept: int, negative_zero: int, counts: np.ndarray, fillers: np.ndarray) -> int:
    """Write the nonzeros of each row of `bits` (rows, cols) to `counts` (rows,) int64; return how many -0.0 there are.

    Fillers, int64 (rows,), become those that each row has in `permuted` with gaps. A type without negative zero passes
    0 for it. One read of the bits.
    """
    cols, negatives = bits.shape[1], 0
    for row in range(bits.shape[0]):
        stored, filled, last = 0, 0, 0
        for column in range(0, cols, 64):
            is_whole, at = column + 64 <= cols, address_of(bits) + (row * cols + column) * bits.itemsize
            word = np.uint64(nonzero(at, 64, kept, bits)) if is_whole else _last_nonzero(bits, row, column, kept)
            if word != ZERO:
                stored += popcount(word)
                # nowhere else can a distance be that long
                distance = column + lowest_bit(word) - last
                if distance > MAX_GAP:
                    filled += (distance - 1) // MAX_GAP
                last = column + highest_bit(word)
            if negative_zero and is_whole:
                negatives += popcount(equal(at, 64, negative_zero, bits))
            elif negative_zero:
                negatives += popcount(_last_equal(bits, row, column, negative_zero))
        counts[row] = stored
        fillers[row] = filled
    return negatives


@jit
def mark_negative_zeros(bits: np.ndarray, kept: int, negative_zero: int, expected: int, array: np.ndarray) -> bool:
    """Fill `array` (uint8), a bit for each of `expected` pruned positions of `bits` (rows, cols): whether it is -0.0.

    Writes to bytes behind the array, which become 0. Returns whether there are as many pruned positions: bits may
    change meanwhile.
    """
    cols, out, seen = bits.shape[1], address_of(array), 0
    waiting, count = ZERO, ZERO
    for row in range(bits.shape[0]):
        for column in range(0, cols, 64):
            if column + 64 <= cols:
                at = address_of(bits) + (row * cols + column) * bits.itemsize
                pruned = ~np.uint64(nonzero(at, 64, kept, bits))
                signs = np.uint64(equal(at, 64, negative_zero, bits))
            else:
                pruned = ~_last_nonzero(bits, row, column, kept) & ((ONE << np.uint64(cols - column)) - ONE)
                signs = _last_equal(bits, row, column, negative_zero)
            signs = extracted_bits(signs, pruned)
            more = np.uint64(popcount(pruned))
            seen += popcount(pruned)
            if seen > expected:
                return False
            waiting |= signs << count
            if count + more >= WORD:
                store_word(out, waiting)
                out += 8
                # a shift by 64 would be by 0
                waiting = (signs >> ONE) >> (np.uint64(63) - count)
                count += more - WORD
            else:
                count += more
    if count != ZERO:
        store_word(out, waiting)
    return seen == expected


@jit
def restore_negative_zeros(
    bits: np.ndarray, kept: int, negative_zero: int, array: np.ndarray, first_pruned: int
) -> None:
    """Turn the zeros of `bits` (rows, cols) whose bit in `array` is set into -0.0. Reads bytes behind the array."""
    cols, source, pruned_before = bits.shape[1], address_of(array), first_pruned
    for row in range(bits.shape[0]):
        for column in range(0, cols, 64):
            is_whole, at = column + 64 <= cols, address_of(bits) + (row * cols + column) * bits.itemsize
            if is_whole:
                pruned = ~np.uint64(nonzero(at, 64, kept, bits))
            else:
                pruned = ~_last_nonzero(bits, row, column, kept) & ((ONE << np.uint64(cols - column)) - ONE)
            number = popcount(pruned)
            if number:
                signs = deposited_bits(word_at(source, pruned_before), pruned)
                pruned_before += number
                if signs == ZERO:
                    continue
                if is_whole:
                    for group in range(4):
                        of_group = np.int64(signs >> np.uint64(16 * group))
                        or_where(at + 16 * group * bits.itemsize, of_group, negative_zero, bits)
                    continue
                while signs != ZERO:
                    bits[row, column + lowest_bit(signs)] = negative_zero
                    signs &= signs - ONE
