"""Bit strings of models, read and written: numbers, trees of bins, tables of frequencies.

A bit string is uint64 words, the lowest bit first, PADDING words longer than its bits need and zero there. A position
in it is a number of bits. Passes that read take the position where they begin and the end of the string, and return a
status and the position where they ended; none reads outside its arrays, whatever the bits say. Passes that write expect
the words that they write to be zero, and return the position where they ended.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.jit import jit

OK, EARLY_END, NO_NUMBER, NO_SYMBOL, NO_SUM, WIDE_BIN, MANY_BINS, NO_BIN = range(8)
"""What a pass returns: all well; bits are missing; a number has no end; a table has no symbol; frequencies do not sum
to a power of two; a bin is too wide; there are too many of them; there is none."""

PADDING = 4
"""Words behind a bit string that a pass may look at before it notices."""

MAX_ZEROS = 32
"""Zeros that a number in exponential Golomb code may start with."""

MOST_BITS = 2 * MAX_ZEROS + 17
"""Bits of a number, of an order of 16 at most."""

MAX_SHIFT = 16
"""Bits by which the widths of two bins next to each other count as different."""

ZERO, ONE, SIX, INDEX_MASK = (np.uint64(number) for number in (0, 1, 6, 63))

POPCOUNTS = np.bitwise_count(np.arange(256, dtype=np.uint8)).astype(np.int64)
BYTES_OF_POPCOUNT = np.bincount(POPCOUNTS)


@jit
def get(words, at, count):
    """`count` bits, 63 at most, at a position."""
    first, shift = np.uint64(at) >> SIX, np.uint64(at) & INDEX_MASK
    # two shifts, since one by 64 is none
    window = (words[first] >> shift) | ((words[first + ONE] << ONE) << (INDEX_MASK - shift))
    return np.int64(window & ((ONE << np.uint64(count)) - ONE))


@jit
def put(words, at, value, count):
    """Write the low `count` bits of `value`, which has no others; the position behind them."""
    first, shift, bits = np.uint64(at) >> SIX, np.uint64(at) & INDEX_MASK, np.uint64(value)
    words[first] |= bits << shift
    words[first + ONE] |= (bits >> ONE) >> (INDEX_MASK - shift)
    return at + count


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
def put_number(words, at, value, order):
    """Write a number >= 0 in exponential Golomb code, which is short for numbers about as long as `order` bits."""
    high = (value >> order) + 1
    zeros = bit_length(high) - 1
    at = put(words, at, 1 << zeros, zeros + 1)
    at = put(words, at, high - (1 << zeros), zeros)
    return put(words, at, value & ((1 << order) - 1), order)


@jit
def get_tree(words, at, end, key_bits, max_width, lows, widths):
    """Fill `lows` (uint64) and `widths` (int64) with the used leaves of a tree: (status, position, how many).

    The tree is over keys of `key_bits`, 64 at most; a used leaf has at most 2^max_width of them.
    """
    found, pending = 0, 1
    # of each level, at most one node waits, and the one at hand
    pending_lows, pending_widths = np.zeros(66, np.uint64), np.zeros(66, np.int64)
    pending_widths[0] = key_bits
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
def put_tree(words, at, key_bits, lows, widths):
    """Write the tree over keys of `key_bits` whose used leaves are these, in preorder."""
    pending, begins, ends = 1, np.zeros(66, np.int64), np.zeros(66, np.int64)
    of_lows, of_widths = np.zeros(66, np.uint64), np.zeros(66, np.int64)
    ends[0], of_widths[0] = lows.shape[0], key_bits
    while pending:
        pending -= 1
        begin, end, low, width = begins[pending], ends[pending], of_lows[pending], of_widths[pending]
        if begin == end or (end == begin + 1 and widths[begin] == width):
            if width:
                at = put(words, at, 0, 1)
            at = put(words, at, np.int64(begin < end), 1)
            continue
        at = put(words, at, 1, 1)
        middle, split = low + (ONE << np.uint64(width - 1)), begin
        while split < end and lows[split] < middle:
            split += 1
        begins[pending], ends[pending], of_lows[pending] = split, end, middle
        begins[pending + 1], ends[pending + 1], of_lows[pending + 1] = begin, split, low
        of_widths[pending] = of_widths[pending + 1] = width - 1
        pending += 2
    return at


@jit
def _expected(before, shift, precision):
    """What a frequency is likely to be near, given the one before and how many times wider, in bits, its bin is."""
    shift = min(max(shift, -MAX_SHIFT), MAX_SHIFT)
    scaled = before << shift if shift >= 0 else before >> -shift
    return min(max(scaled, 1), (1 << precision) - 1)


@jit
def _order(expected):
    return max(bit_length(expected) - 2, 0)


@jit
def get_positive(words, at, end, precision, widths, frequencies):
    """Fill `frequencies` with numbers of at least 1 that sum to 2^precision: (status, position).

    widths: int64, of the bin of each, in bits.
    """
    count, left = frequencies.shape[0], 1 << precision
    if not count:
        return NO_SYMBOL, at
    before = max(left // count, 1)
    for index in range(count - 1):
        expected = _expected(before, widths[index] - widths[max(index - 1, 0)], precision)
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
def put_positive(words, at, precision, widths, frequencies):
    """Write frequencies of at least 1 that sum to 2^precision, as differences to what their bins' widths make likely;
    the last, which follows from the others, is left out."""
    count = frequencies.shape[0]
    before = max((1 << precision) // max(count, 1), 1)
    for index in range(count - 1):
        expected = _expected(before, widths[index] - widths[max(index - 1, 0)], precision)
        before = frequencies[index]
        difference = before - expected
        at = put_number(words, at, 2 * difference if difference >= 0 else -2 * difference - 1, _order(expected))
    return at


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


@jit
def put_frequencies(words, at, precision, widths, frequencies):
    """Write frequencies that sum to 2^precision; those that are 0 are marked by a bit."""
    used = frequencies > 0
    for is_used in used:
        at = put(words, at, np.int64(is_used), 1)
    return put_positive(words, at, precision, widths[used], frequencies[used])


@jit
def get_popcounts(words, at, end, precision, frequencies):
    """Fill `frequencies` (256,) with those of bytes, equal for equal numbers of set bits: (status, position)."""
    of_popcounts, before, left = np.zeros(9, np.int64), 0, 1 << precision
    for popcount in range(8, 0, -1):
        status, at, before = get_number(words, at, end, bit_length(before))
        if status != OK:
            return status, at
        if before > 1 << precision:
            return NO_SUM, at
        of_popcounts[popcount] = before
        left -= before * BYTES_OF_POPCOUNT[popcount]
    if left < 0:
        return NO_SUM, at
    of_popcounts[0] = left
    for byte in range(256):
        frequencies[byte] = of_popcounts[POPCOUNTS[byte]]
    return OK, at


@jit
def put_popcounts(words, at, frequencies):
    """Write frequencies of bytes with 8, 7, … 1 set bits; 0 set bits have what is left."""
    before = 0
    for popcount in range(8, 0, -1):
        at = put_number(words, at, frequencies[popcount], bit_length(before))
        before = frequencies[popcount]
    return at


@jit
def get_tables(words, at, end, precision, widths, tables):
    """Fill `tables` (tables, symbols) as `get_frequencies` does, each: (status, position)."""
    for number in range(tables.shape[0]):
        status, at = get_frequencies(words, at, end, precision, widths, tables[number])
        if status != OK:
            return status, at
    return OK, at


@jit
def get_byte_tables(words, at, end, precision, by_popcount, tables):
    """Fill `tables` (tables, 256), each behind a bit that says whether it is one of popcounts; and `by_popcount`:
    (status, position)."""
    widths = np.zeros(256, np.int64)
    for number in range(tables.shape[0]):
        by_popcount[number] = get(words, at, 1)
        at += 1
        if by_popcount[number]:
            status, at = get_popcounts(words, at, end, precision, tables[number])
        else:
            status, at = get_frequencies(words, at, end, precision, widths, tables[number])
        if status != OK:
            return status, at
    return OK, at
