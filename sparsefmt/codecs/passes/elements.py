"""Elements, and the bins and places in bins that they are made of."""

from __future__ import annotations

import numpy as np

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
