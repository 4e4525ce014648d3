"""rANS: symbols to and from 16-bit words, several states taking turns (J. Duda, arXiv 1311.2540; interleaving:
F. Giesen, arXiv 1402.3392).

A state x is 2^16 <= x < 2^32. To decode, the low `precision` bits of x say which symbol it is, x shrinks by the
symbol's frequency, and if it fell below 2^16, it takes in the next word. Encoding is all that backwards. Symbol i
belongs to state i modulo the number of states, so that a processor can work on many of them at once.

Tables are those of `frequencies.py`, flat: slots[table << precision | slot] is a symbol, and entries[table * symbols +
symbol] is its frequency << 16 | its first slot. No pass reads a word or a bit that is not there, whatever the stream
says, and each does bounded work for every symbol.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.jit import jit

OK, EARLY_END, STATE, LEFT_OVER, NO_BIN = range(5)
"""What a pass returns: all well; words or bits are missing; a state is none, or not the last one; words are left over;
a value is in no bin."""

LANES = 8
"""States that are worked on at once; streams have as many, or a multiple of them, or one."""

PADDING = 64
"""Elements that a pass may read beyond an array's end before it notices."""

LOWEST = np.uint64(1 << 16)
"""The smallest state, with which encoding starts and decoding ends."""

ZERO, ONE, SIX, WORD_BITS, WORD_MASK, INDEX_MASK = (np.uint64(number) for number in (0, 1, 6, 16, 0xFFFF, 63))


@jit
def _step(state, words, at, slots, first_slot, entries, first_entry, precision):
    """Take a symbol out of a state: (symbol, state, where the next word is). `words` goes on at `at`."""
    # all of it unsigned: numba would look for negative indices
    slot = state & ((ONE << precision) - ONE)
    symbol = slots[first_slot + slot]
    entry = entries[first_entry + np.uint64(symbol)]
    state = (entry >> WORD_BITS) * (state >> precision) + slot - (entry & WORD_MASK)
    low = state < LOWEST
    filled = (state << WORD_BITS) | np.uint64(words[at])
    return symbol, (filled if low else state), at + np.uint64(low)


@jit
def _begins(states):
    """Whether these can be the states of an encoder."""
    good = True
    for state in states:
        good &= state >= LOWEST
    return good


@jit
def _ends(states, at, count):
    """Status at the end of a stream that has `count` words."""
    if at != count:
        return LEFT_OVER if at < count else EARLY_END
    for state in states:
        if state != LOWEST:
            return STATE
    return OK


@jit
def decode_symbols(words, states, slots, entries, precision, symbols, contexts, out):
    """Fill `out` with symbols below `symbols`, symbol i by table contexts[i]. Returns a status.

    words: uint16, PADDING more than there are. states: uint64, changed. contexts: uint8, all of them numbers of tables.
    """
    if not _begins(states):
        return STATE
    bits, alphabet, at = np.uint64(precision), np.uint64(symbols), ZERO
    done, count, word_count = 0, out.shape[0], np.uint64(words.shape[0] - PADDING)
    group, lanes = 0, states.shape[0]
    if lanes % LANES == 0:
        while done + LANES <= count and at <= word_count:
            x0, x1, x2, x3 = states[group], states[group + 1], states[group + 2], states[group + 3]
            x4, x5, x6, x7 = states[group + 4], states[group + 5], states[group + 6], states[group + 7]
            table = np.uint64(contexts[done])
            out[done], x0, at = _step(x0, words, at, slots, table << bits, entries, table * alphabet, bits)
            table = np.uint64(contexts[done + 1])
            out[done + 1], x1, at = _step(x1, words, at, slots, table << bits, entries, table * alphabet, bits)
            table = np.uint64(contexts[done + 2])
            out[done + 2], x2, at = _step(x2, words, at, slots, table << bits, entries, table * alphabet, bits)
            table = np.uint64(contexts[done + 3])
            out[done + 3], x3, at = _step(x3, words, at, slots, table << bits, entries, table * alphabet, bits)
            table = np.uint64(contexts[done + 4])
            out[done + 4], x4, at = _step(x4, words, at, slots, table << bits, entries, table * alphabet, bits)
            table = np.uint64(contexts[done + 5])
            out[done + 5], x5, at = _step(x5, words, at, slots, table << bits, entries, table * alphabet, bits)
            table = np.uint64(contexts[done + 6])
            out[done + 6], x6, at = _step(x6, words, at, slots, table << bits, entries, table * alphabet, bits)
            table = np.uint64(contexts[done + 7])
            out[done + 7], x7, at = _step(x7, words, at, slots, table << bits, entries, table * alphabet, bits)
            states[group], states[group + 1], states[group + 2], states[group + 3] = x0, x1, x2, x3
            states[group + 4], states[group + 5], states[group + 6], states[group + 7] = x4, x5, x6, x7
            done += LANES
            group = (group + LANES) % lanes
    for index in range(done, count):
        if at > word_count:
            return EARLY_END
        table, lane = np.uint64(contexts[index]), index % lanes
        out[index], states[lane], at = _step(
            states[lane], words, at, slots, table << bits, entries, table * alphabet, bits
        )
    return _ends(states, at, word_count)


@jit
def encode_symbols(symbols, contexts, entries, precision, alphabet, states, words):
    """Write the words of `symbols`, in the order in which they will be read, to the end of `words`; how many.

    entries: as in `decode_symbols`, none of a frequency of 0 for a symbol that occurs. words: uint16, as long as
    `symbols`. states: filled with the decoder's first ones.
    """
    states[:] = LOWEST
    bits, at, lanes = np.uint64(precision), words.shape[0], states.shape[0]
    for index in range(symbols.shape[0] - 1, -1, -1):
        entry = entries[np.int64(contexts[index]) * alphabet + np.int64(symbols[index])]
        frequency, state = entry >> WORD_BITS, states[index % lanes]
        if state >> (np.uint64(32) - bits) >= frequency:
            at -= 1
            words[at] = state & WORD_MASK
            state >>= WORD_BITS
        whole = state // frequency
        states[index % lanes] = (whole << bits) + (state - whole * frequency) + (entry & WORD_MASK)
    return words.shape[0] - at


@jit
def _window(offsets, position):
    """64 bits from bit `position` on."""
    first, shift = position >> SIX, position & INDEX_MASK
    # two shifts, since one by 64 is none
    return (offsets[first] >> shift) | ((offsets[first + ONE] << ONE) << (INDEX_MASK - shift))


@jit
def _bits_at(offsets, position, width):
    """`width` bits, 63 at most, from bit `position` on."""
    return _window(offsets, position) & ((ONE << width) - ONE)


@jit
def _from_window(symbol, lows, widths, window):
    """The key of a bin and the lowest bits of `window`; the other bits."""
    width = np.uint64(widths[symbol])
    return lows[symbol] + (window & ((ONE << width) - ONE)), window >> width


@jit
def decode_elements(words, states, slots, entries, precision, lows, widths, offsets, offset_bits, sign, shift, out):
    """Fill `out` with elements: bins by rANS, then offsets in them as they are. Returns a status.

    words, states: as in `decode_symbols`. lows: uint64, the first key of each bin. widths: uint8, its bits, 63 at most.
    offsets: uint64, PADDING + 1 elements more than `offset_bits` need. sign: where the lowest bit of a key goes, or -1
    if it is like the others. shift: of keys.
    """
    if not _begins(states):
        return STATE
    bits, left = np.uint64(precision), np.uint64(shift)
    at, position, bit_count = ZERO, ZERO, np.uint64(offset_bits)
    done, count, word_count = 0, out.shape[0], np.uint64(words.shape[0] - PADDING)
    widest = 0
    for width in widths:
        widest = max(widest, np.int64(width))
    keys = np.empty(LANES, np.uint64)
    low_sign, sign_shift = np.uint64(sign >= 0), np.uint64(max(sign, 0))
    group, lanes = 0, states.shape[0]
    if lanes % LANES == 0:
        while done + LANES <= count and at <= word_count and position <= bit_count:
            x0, x1, x2, x3 = states[group], states[group + 1], states[group + 2], states[group + 3]
            x4, x5, x6, x7 = states[group + 4], states[group + 5], states[group + 6], states[group + 7]
            s0, x0, at = _step(x0, words, at, slots, ZERO, entries, ZERO, bits)
            s1, x1, at = _step(x1, words, at, slots, ZERO, entries, ZERO, bits)
            s2, x2, at = _step(x2, words, at, slots, ZERO, entries, ZERO, bits)
            s3, x3, at = _step(x3, words, at, slots, ZERO, entries, ZERO, bits)
            s4, x4, at = _step(x4, words, at, slots, ZERO, entries, ZERO, bits)
            s5, x5, at = _step(x5, words, at, slots, ZERO, entries, ZERO, bits)
            s6, x6, at = _step(x6, words, at, slots, ZERO, entries, ZERO, bits)
            s7, x7, at = _step(x7, words, at, slots, ZERO, entries, ZERO, bits)
            if widest <= 16:
                # four offsets fit into a word
                window = _window(offsets, position)
                keys[0], window = _from_window(s0, lows, widths, window)
                keys[1], window = _from_window(s1, lows, widths, window)
                keys[2], window = _from_window(s2, lows, widths, window)
                keys[3], window = _from_window(s3, lows, widths, window)
                position += (
                    np.uint64(widths[s0]) + np.uint64(widths[s1]) + np.uint64(widths[s2]) + np.uint64(widths[s3])
                )
                window = _window(offsets, position)
                keys[4], window = _from_window(s4, lows, widths, window)
                keys[5], window = _from_window(s5, lows, widths, window)
                keys[6], window = _from_window(s6, lows, widths, window)
                keys[7], window = _from_window(s7, lows, widths, window)
                position += (
                    np.uint64(widths[s4]) + np.uint64(widths[s5]) + np.uint64(widths[s6]) + np.uint64(widths[s7])
                )
            else:
                keys[0] = lows[s0] + _bits_at(offsets, position, np.uint64(widths[s0]))
                position += np.uint64(widths[s0])
                keys[1] = lows[s1] + _bits_at(offsets, position, np.uint64(widths[s1]))
                position += np.uint64(widths[s1])
                keys[2] = lows[s2] + _bits_at(offsets, position, np.uint64(widths[s2]))
                position += np.uint64(widths[s2])
                keys[3] = lows[s3] + _bits_at(offsets, position, np.uint64(widths[s3]))
                position += np.uint64(widths[s3])
                keys[4] = lows[s4] + _bits_at(offsets, position, np.uint64(widths[s4]))
                position += np.uint64(widths[s4])
                keys[5] = lows[s5] + _bits_at(offsets, position, np.uint64(widths[s5]))
                position += np.uint64(widths[s5])
                keys[6] = lows[s6] + _bits_at(offsets, position, np.uint64(widths[s6]))
                position += np.uint64(widths[s6])
                keys[7] = lows[s7] + _bits_at(offsets, position, np.uint64(widths[s7]))
                position += np.uint64(widths[s7])
            for lane in range(LANES):
                key = keys[lane]
                out[done + lane] = ((key >> low_sign) << left) | ((key & low_sign) << sign_shift)
            states[group], states[group + 1], states[group + 2], states[group + 3] = x0, x1, x2, x3
            states[group + 4], states[group + 5], states[group + 6], states[group + 7] = x4, x5, x6, x7
            done += LANES
            group = (group + LANES) % lanes
    for index in range(done, count):
        if at > word_count or position > bit_count:
            return EARLY_END
        lane = index % lanes
        symbol, states[lane], at = _step(states[lane], words, at, slots, ZERO, entries, ZERO, bits)
        key = lows[symbol] + _bits_at(offsets, position, np.uint64(widths[symbol]))
        position += np.uint64(widths[symbol])
        out[index] = ((key >> low_sign) << left) | ((key & low_sign) << sign_shift)
    if position != bit_count:
        return LEFT_OVER if position < bit_count else EARLY_END
    return _ends(states, at, word_count)


@jit
def encode_elements(elements, lows, widths, first_bins, key_bits, sign, shift, symbols, offsets):
    """Find the bin of each element: its symbol, and its offset, put behind each other in zeroed `offsets`.

    Returns a status and the bits of all offsets.

    first_bins[p]: first bin that may hold a key whose highest bits are p: the highest 16, or all `key_bits` if they
    are fewer. sign, shift, lows, widths, offsets: as in `decode_elements`.
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
