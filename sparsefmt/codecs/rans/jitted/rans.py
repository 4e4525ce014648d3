"""rANS: symbols to and from 16-bit words, several states taking turns (J. Duda, arXiv 1311.2540; interleaving:
F. Giesen, arXiv 1402.3392).

A state x is 2^16 <= x < 2^32. To decode, the low `precision` bits of x say which symbol it is, x shrinks by the
symbol's frequency, and if it fell below 2^16, it takes in the next word. Encoding does all of that backwards. Symbol i
belongs to state i modulo the number of states, so that a processor can work on many of them at once.

Tables are those of `frequencies.py`, flat: slots[table << precision | slot] is a symbol, and entries[table * symbols +
symbol] is its frequency << 16 | its first slot. No pass reads outside its arrays, whatever the stream says, and each
does bounded work for every symbol. `rans_wide.py` decodes the same streams with AVX-512.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.jit import jit

OK, EARLY_END, STATE, LEFT_OVER = range(4)
"""What a pass returns: all well; words are missing; a state is none, or not the last one; words are left over."""

NEVER = -1
"""What the encoder returns if its tables were not made for the symbols."""

LANES = 8
"""States that are worked on at once; streams have as many, or a multiple of them, or one."""

PADDING = 64
"""Elements that a pass may read beyond an array's end before it notices."""

LOWEST = np.uint64(1 << 16)
"""The smallest state, with which encoding starts and decoding ends."""

ZERO, ONE, FOUR, WORD_NBITS, TWO_WORDS, WORD_MASK = (np.uint64(number) for number in (0, 1, 4, 16, 32, 0xFFFF))


@jit
def _step(state, words, at, slots, first_slot, entries, first_entry, precision):
    """Take a symbol out of a state: (symbol, state, where the next word is). `words` goes on at `at`."""
    # all of it unsigned: numba would look for negative indices
    slot = state & ((ONE << precision) - ONE)
    symbol = slots[first_slot + slot]
    entry = entries[first_entry + np.uint64(symbol)]
    state = (entry >> WORD_NBITS) * (state >> precision) + slot - (entry & WORD_MASK)
    low = state < LOWEST
    filled = (state << WORD_NBITS) | np.uint64(words[at])
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

    words: uint16, PADDING more than there are. states: uint64, changed. contexts: uint8, all of them numbers of tables;
    None for table 0.
    """
    if not _begins(states):
        return STATE
    shift, alphabet, at = np.uint64(precision), np.uint64(symbols), ZERO
    done, count, word_count = 0, out.shape[0], np.uint64(words.shape[0] - PADDING)
    group, lanes = 0, states.shape[0]
    if lanes % LANES == 0:
        while done + LANES <= count and at <= word_count:
            x0, x1, x2, x3 = states[group], states[group + 1], states[group + 2], states[group + 3]
            x4, x5, x6, x7 = states[group + 4], states[group + 5], states[group + 6], states[group + 7]
            table = ZERO if contexts is None else np.uint64(contexts[done])
            out[done], x0, at = _step(x0, words, at, slots, table << shift, entries, table * alphabet, shift)
            table = ZERO if contexts is None else np.uint64(contexts[done + 1])
            out[done + 1], x1, at = _step(x1, words, at, slots, table << shift, entries, table * alphabet, shift)
            table = ZERO if contexts is None else np.uint64(contexts[done + 2])
            out[done + 2], x2, at = _step(x2, words, at, slots, table << shift, entries, table * alphabet, shift)
            table = ZERO if contexts is None else np.uint64(contexts[done + 3])
            out[done + 3], x3, at = _step(x3, words, at, slots, table << shift, entries, table * alphabet, shift)
            table = ZERO if contexts is None else np.uint64(contexts[done + 4])
            out[done + 4], x4, at = _step(x4, words, at, slots, table << shift, entries, table * alphabet, shift)
            table = ZERO if contexts is None else np.uint64(contexts[done + 5])
            out[done + 5], x5, at = _step(x5, words, at, slots, table << shift, entries, table * alphabet, shift)
            table = ZERO if contexts is None else np.uint64(contexts[done + 6])
            out[done + 6], x6, at = _step(x6, words, at, slots, table << shift, entries, table * alphabet, shift)
            table = ZERO if contexts is None else np.uint64(contexts[done + 7])
            out[done + 7], x7, at = _step(x7, words, at, slots, table << shift, entries, table * alphabet, shift)
            states[group], states[group + 1], states[group + 2], states[group + 3] = x0, x1, x2, x3
            states[group + 4], states[group + 5], states[group + 6], states[group + 7] = x4, x5, x6, x7
            done += LANES
            group = (group + LANES) % lanes
    for index in range(done, count):
        if at > word_count:
            return EARLY_END
        table, lane = ZERO if contexts is None else np.uint64(contexts[index]), index % lanes
        out[index], states[lane], at = _step(
            states[lane], words, at, slots, table << shift, entries, table * alphabet, shift
        )
    return _ends(states, at, word_count)


@intrinsic
def _high_product(typingctx, first, second):
    """The high 64 bits of a product of two uint64."""

    def codegen(context, builder, signature, args):
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(arg, wide) for arg in args))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), codegen


@jit
def encode_symbols(symbols, contexts, recipes, alphabet, states, words):
    """Write the words of `symbols`, in the order in which they will be read, to the end of `words`; how many.

    contexts: as in `decode_symbols`, but empty for table 0. recipes: uint64, two for each symbol of each table
    (`streams.Tables`), flat. words: uint16, one more than there are symbols. states: filled with the decoder's first
    ones.

    No step divides, and none branches: whether a state gives off a word is as good as random. NEVER if a symbol has no
    frequency.
    """
    states[:] = LOWEST
    # a power of two; unsigned, since numba would look for negative indices
    at, last_lane = np.uint64(words.shape[0] - 1), np.uint64(states.shape[0] - 1)
    alphabet, several, never = np.uint64(alphabet), contexts.shape[0] > 0, False
    for step in range(symbols.shape[0]):
        index = np.uint64(symbols.shape[0] - 1 - step)
        table = np.uint64(contexts[index]) if several else ZERO
        place = (table * alphabet + np.uint64(symbols[index])) << ONE
        reciprocal, recipe = recipes[place], recipes[place | ONE]
        lane = index & last_lane
        state = states[lane]
        words[at] = state & WORD_MASK
        limit = recipe >> TWO_WORDS
        never |= limit == ZERO
        full = np.uint64(state >> WORD_NBITS >= limit)
        at -= full
        state >>= full << FOUR  # by a word, or not at all
        whole = _high_product(state, reciprocal)
        states[lane] = state + (recipe & WORD_MASK) + whole * ((recipe >> WORD_NBITS) & WORD_MASK)
    return NEVER if never else words.shape[0] - 1 - np.int64(at)
