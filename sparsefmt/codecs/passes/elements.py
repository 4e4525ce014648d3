"""Elements, and the bins and places in bins that they are made of."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.jit import jit

OK, EARLY_END, LEFT_OVER, NO_BIN = 0, 1, 3, 4
"""What a pass returns: all well; bits are missing; bits are left over; an element is in no bin."""

PADDING = 2
"""Elements behind `offsets` that may be read in vain."""

ZERO, ONE, SIX, INDEX_MASK = (np.uint64(number) for number in (0, 1, 6, 63))


@jit
def _window(offsets, position):
    """64 bits from bit `position` on."""
    first, shift = position >> SIX, position & INDEX_MASK
    # two shifts, since one by 64 is none
    return (offsets[first] >> shift) | ((offsets[first + ONE] << ONE) << (INDEX_MASK - shift))


@jit
def _from_window(symbol, lows, widths, window):
    """The key of a bin and the lowest bits of `window`; the other bits."""
    width = np.uint64(widths[symbol])
    return lows[symbol] + (window & ((ONE << width) - ONE)), window >> width


@jit
def join(symbols, lows, widths, offsets, offset_bits, sign, shift, out):
    """Fill `out` with elements: in bin symbols[i], at the place that the next offset says. A status.

    lows: uint64, the first key of each bin. widths: uint8, its bits, 63 at most. offsets: uint64, PADDING elements more
    than `offset_bits` need. sign: where the lowest bit of a key goes, or -1 if it is like the others. shift: of keys.
    """
    low_sign, sign_shift, left = np.uint64(sign >= 0), np.uint64(max(sign, 0)), np.uint64(shift)
    position, bit_count, done, count, widest = ZERO, np.uint64(offset_bits), 0, symbols.shape[0], 0
    for width in widths:
        widest = max(widest, np.int64(width))
    if widest <= 14:
        # four offsets, and the bits before them, fit into a word
        while done + 4 <= count and position <= bit_count:
            window = _window(offsets, position)
            s0, s1, s2, s3 = symbols[done], symbols[done + 1], symbols[done + 2], symbols[done + 3]
            key0, window = _from_window(s0, lows, widths, window)
            key1, window = _from_window(s1, lows, widths, window)
            key2, window = _from_window(s2, lows, widths, window)
            key3, window = _from_window(s3, lows, widths, window)
            position += np.uint64(widths[s0]) + np.uint64(widths[s1]) + np.uint64(widths[s2]) + np.uint64(widths[s3])
            out[done] = ((key0 >> low_sign) << left) | ((key0 & low_sign) << sign_shift)
            out[done + 1] = ((key1 >> low_sign) << left) | ((key1 & low_sign) << sign_shift)
            out[done + 2] = ((key2 >> low_sign) << left) | ((key2 & low_sign) << sign_shift)
            out[done + 3] = ((key3 >> low_sign) << left) | ((key3 & low_sign) << sign_shift)
            done += 4
    for index in range(done, count):
        if position > bit_count:
            return EARLY_END
        width = np.uint64(widths[symbols[index]])
        key = lows[symbols[index]] + (_window(offsets, position) & ((ONE << width) - ONE))
        position += width
        out[index] = ((key >> low_sign) << left) | ((key & low_sign) << sign_shift)
    if position != bit_count:
        return EARLY_END if position > bit_count else LEFT_OVER
    return OK


@intrinsic
def _lowest_bit(typingctx, word):
    """Position of the lowest set bit of a nonzero uint64, as uint64."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), codegen


@jit
def columns_of(mask, columns):
    """Fill `columns` with the columns that mask (rows, words) uint64 keeps, row by row."""
    at = ZERO
    for row in range(mask.shape[0]):
        for index in range(mask.shape[1]):
            word = mask[row, index]
            while word != ZERO:
                columns[at] = 64 * index + np.int64(_lowest_bit(word))
                word &= word - ONE
                at += ONE


@jit
def contexts_of(mask, row_classes, column_classes, table_of, contexts):
    """Fill `contexts` with the table of each position that `mask` keeps; there may be 64 elements too many.

    column_classes: one for every bit of a row of the mask.
    """
    at = ZERO
    for row in range(mask.shape[0]):
        row_class = np.uint64(row_classes[row])
        for index in range(mask.shape[1]):
            word, first = mask[row, index], np.uint64(64 * index)
            while word != ZERO:
                contexts[at] = table_of[row_class + np.uint64(column_classes[first + _lowest_bit(word)])]
                word &= word - ONE
                at += ONE


@jit
def choose(symbols, counts, column_classes, table_of, lengths, row_lengths, row_classes):
    """Fill `row_classes` with those that make rows shortest; False if a row has none that can code it.

    counts: elements of each row. column_classes: of each element. lengths: float32 (tables, symbols), bits of a symbol,
    infinite where it cannot be. row_lengths: float32, bits of a class.
    """
    begin, fits = 0, True
    for row in range(counts.shape[0]):
        best = np.float32(np.inf)
        for row_class in range(row_lengths.shape[0]):
            length = row_lengths[row_class]
            for index in range(begin, begin + counts[row]):
                table = table_of[np.uint64(row_class) + np.uint64(column_classes[np.uint64(index)])]
                length += lengths[table, symbols[np.uint64(index)]]
            if length < best:
                best, row_classes[row] = length, row_class
        begin += counts[row]
        fits &= best < np.float32(np.inf)
    return fits


@jit
def split(elements, lows, widths, first_bins, key_bits, sign, shift, symbols, offsets):
    """Fill `symbols` with the bin of each element, and zeroed `offsets` with the places in them, behind each other.

    Returns a status and the bits of all offsets.

    first_bins[p]: first bin that may hold a key whose highest bits are p: the highest 16, or all `key_bits` if they
    are fewer. sign, shift, lows, widths, offsets: as in `join`.
    """
    prefix_shift = np.uint64(max(key_bits - 16, 0))
    low_sign, sign_shift, right = np.uint64(sign >= 0), np.uint64(max(sign, 0)), np.uint64(shift)
    sign_mask = low_sign << sign_shift
    position, last = 0, lows.shape[0] - 1
    for index in range(elements.shape[0]):
        element = np.uint64(elements[index])
        key = (((element & ~sign_mask) >> right) << low_sign) | ((element & sign_mask) >> sign_shift)
        bin_ = np.int64(first_bins[key >> prefix_shift])
        while bin_ < last and lows[bin_ + 1] <= key:
            bin_ += 1
        width, offset = np.uint64(widths[bin_]), key - lows[bin_]
        if key < lows[bin_] or offset >> width:
            return NO_BIN, 0
        symbols[index] = bin_
        first, bit = position >> 6, np.uint64(position) & INDEX_MASK
        offsets[first] |= offset << bit
        offsets[first + 1] |= (offset >> ONE) >> (INDEX_MASK - bit)
        position += np.int64(width)
    return OK, position
