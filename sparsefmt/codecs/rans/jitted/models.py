"""Bit strings of models, read: numbers, trees of bins, tables of frequencies.

A bit string is uint64 words, the lowest bit first, PADDING words longer than its bits need and zero there. A position
in it is a number of bits. Passes take the position where they begin and the end of the string, and return a status and
the position where they ended; none reads outside its arrays, whatever the bits say.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.codecs.rans.bitstring import MAX_ZEROS
from sparsefmt.jit import jit
from sparsefmt.jit_helpers import larger, on_stack, smaller

OK, EARLY_END, NO_NUMBER, NO_SYMBOL, NO_SUM, WIDE_BIN, MANY_BINS, NO_BIN = range(8)
"""What a pass returns: all well; bits are missing; a number has no end; a table has no symbol; frequencies do not sum
to a power of two; a bin is too wide; there are too many of them; there is none."""

PADDING = 4
"""Words behind a bit string that a pass may look at before it notices."""

MAX_SHIFT = 16
"""Bits by which the widths of two bins next to each other count as different."""

ZERO, ONE, SIX, INDEX_MASK = (np.uint64(number) for number in (0, 1, 6, 63))


@jit
def get(words, at, count):
    """`count` bits, 63 at most, at a position."""
    first, shift = np.uint64(at) >> SIX, np.uint64(at) & INDEX_MASK
    # two shifts, since one by 64 is none
    window = (words[first] >> shift) | ((words[first + ONE] << ONE) << (INDEX_MASK - shift))
    return np.int64(window & ((ONE << np.uint64(count)) - ONE))


@jit
def bit_length(value):
    length = 0
    while value >> length:
        length += 1
    return length


@jit
def get_number(words, at, end, order):
    """A number in exponential Golomb code: (status, position, number)."""
    zeros = 0
    while zeros <= MAX_ZEROS and not get(words, at + zeros, 1):
        zeros += 1
    if zeros > MAX_ZEROS:
        return NO_NUMBER, at, 0
    at += zeros + 1
    high = (1 << zeros) + get(words, at, zeros)
    number = ((high - 1) << order) + get(words, at + zeros, order)
    at += zeros + order
    return (OK if at <= end else EARLY_END), at, number


@jit
def get_tree(words, at, end, key_nbits, max_width, lows, widths):
    """Fill `lows` (uint64) and `widths` (int64) with the used leaves of a tree: (status, position, how many).

    The tree is over keys of `key_nbits`, 64 at most; a used leaf has at most 2^max_width of them.
    """
    found, pending = 0, 1
    # of each level, at most one node waits, and the one at hand
    pending_lows, pending_widths = on_stack(66, np.uint64), on_stack(66, np.int64)
    pending_widths[0] = key_nbits
    while pending:
        if at >= end:
            return EARLY_END, at, 0
        pending -= 1
        low, width = pending_lows[pending], pending_widths[pending]
        at += 1
        if width and get(words, at - 1, 1):
            pending_lows[pending] = low + (ONE << np.uint64(width - 1))
            pending_lows[pending + 1] = low
            pending_widths[pending] = pending_widths[pending + 1] = width - 1
            pending += 2
            continue
        if width:
            at += 1
        if get(words, at - 1, 1):
            if width > max_width:
                return WIDE_BIN, at, width
            if found == lows.shape[0]:
                return MANY_BINS, at, 0
            lows[found], widths[found] = low, width
            found += 1
    if at > end:
        return EARLY_END, at, 0
    return (OK if found else NO_BIN), at, found


@jit
def _expected(before, shift, precision):
    """What a frequency is likely to be near, given the one before and how many times wider, in bits, its bin is."""
    shift = smaller(larger(shift, -MAX_SHIFT), MAX_SHIFT)
    scaled = before << shift if shift >= 0 else before >> -shift
    return smaller(larger(scaled, 1), (1 << precision) - 1)


@jit
def _order(expected):
    return larger(bit_length(expected) - 2, 0)


@jit
def get_positive(words, at, end, precision, widths, frequencies):
    """Fill `frequencies` with numbers of at least 1 that sum to 2^precision: (status, position).

    widths: int64, of the bin of each, in bits.
    """
    count, left = frequencies.shape[0], 1 << precision
    if not count:
        return NO_SYMBOL, at
    before = larger(left // count, 1)
    for index in range(count - 1):
        expected = _expected(before, widths[index] - widths[larger(index - 1, 0)], precision)
        status, at, folded = get_number(words, at, end, _order(expected))
        if status != OK:
            return status, at
        before = expected + ((folded >> 1) if not folded & 1 else -(folded >> 1) - 1)
        left -= before
        if before < 1 or left < 1:
            return NO_SUM, at
        frequencies[index] = before
    frequencies[count - 1] = left
    return OK, at


@jit
def get_frequencies(words, at, end, precision, widths, frequencies):
    """Fill `frequencies`, some of which may be 0, with numbers that sum to 2^precision: (status, position)."""
    symbols, used = frequencies.shape[0], 0
    if at + symbols > end:
        return EARLY_END, at
    of_used = np.empty(symbols, np.int64)
    used_widths = np.empty(symbols, np.int64)
    for symbol in range(symbols):
        if get(words, at + symbol, 1):
            of_used[used], used_widths[used] = symbol, widths[symbol]
            used += 1
    found = np.empty(used, np.int64)
    status, at = get_positive(words, at + symbols, end, precision, used_widths, found)
    frequencies[:] = 0
    for index in range(used if status == OK else 0):
        frequencies[of_used[index]] = found[index]
    return status, at
