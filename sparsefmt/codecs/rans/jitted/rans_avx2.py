"""rANS with AVX2: `rans.encode_symbols` and `rans.decode_symbols` with eight states in a vector.

Symbols are below 256. What tables look like:

    slots, entries   as in `rans_wide.py`
    recipes   uint64 for each symbol of each table, at table << 8 | symbol: its first slot, its frequency f << 16, and
              floor(2^(32 + s) / f) << 32, with s the position of the highest bit of f; 2^32 - 1 where that has 33 bits

A state divided by f with the help of a recipe is too small by one at most, which the remainder tells.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.codecs.rans.jitted.eight_lanes import byte_shuffled
from sparsefmt.jit import jit

OK, EARLY_END, STATE, LEFT_OVER, NEVER = 0, 1, 2, 3, -1
"""As in `rans.py`."""

PADDING = 64
"""Elements that a pass may read beyond the end of `words` before it notices."""

BEFORE = 8
"""Elements in front of the words that the encoder may write to."""

LANES = 8
LOWEST = np.uint32(1 << 16)

I8, I16, I32, I64 = (ir.IntType(nbits) for nbits in (8, 16, 32, 64))
VECTOR, WIDE, HALVES, BYTES = (ir.VectorType(*kind) for kind in ((I32, LANES), (I64, LANES), (I16, LANES), (I8, 16)))


class _Builder:
    """What both steps are made of."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def constant(self, number: int, kind: ir.VectorType = VECTOR) -> ir.Constant:
        return ir.Constant(kind, [number] * LANES)

    def splat(self, value: ir.Value) -> ir.Value:
        """An int64 in all lanes."""
        single = self.builder.trunc(value, I32)
        single = self.builder.insert_element(ir.Constant(VECTOR, ir.Undefined), single, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(single, single, self.constant(0))

    def load(self, address: ir.Value, kind: ir.Type) -> ir.Value:
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=1)

    def store(self, value: ir.Value, address: ir.Value) -> None:
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer()), align=1)

    def shuffled(self, halves: ir.Value, shuffles: ir.Value, lanes: ir.Value) -> ir.Value:
        """Eight uint16 as `shuffles` has it for some lanes, a bit each."""
        at = self.builder.add(shuffles, self.builder.shl(lanes, ir.Constant(I64, 4)))
        moved = byte_shuffled(self.builder, self.builder.bitcast(halves, BYTES), self.load(at, BYTES))
        return self.builder.bitcast(moved, HALVES)

    def look_up(self, table: ir.Value, places: ir.Value, kind: ir.VectorType) -> ir.Value:
        """Elements of a table, eight loads: gathers take longer on many processors. places: eight unsigned integers."""
        builder, found = self.builder, ir.Constant(kind, ir.Undefined)
        pointer = builder.inttoptr(table, kind.element.as_pointer())
        for lane in range(LANES):
            place = builder.zext(builder.extract_element(places, ir.Constant(I32, lane)), I64)
            found = builder.insert_element(found, builder.load(builder.gep(pointer, [place])), ir.Constant(I32, lane))
        return found

    def places(self, symbols: ir.Value, contexts: ir.Value) -> list[ir.Value]:
        """context << 8 | symbol of eight of each, at these addresses. Words are taken apart where addresses are
        computed: to take elements out of a vector needs what works on vectors."""
        builder = self.builder
        bytes_ = [self.load(address, ir.VectorType(I8, LANES)) for address in (symbols, contexts)]
        turns = ir.Constant(
            ir.VectorType(I32, 2 * LANES), [lane + LANES * part for lane in range(LANES) for part in (0, 1)]
        )
        words = builder.bitcast(builder.shuffle_vector(*bytes_, turns), ir.VectorType(I64, 2))
        found = []
        for word in (builder.extract_element(words, ir.Constant(I32, number)) for number in (0, 1)):
            found += [builder.trunc(builder.lshr(word, ir.Constant(I64, shift)), I16) for shift in range(0, 64, 16)]
        return found

    def recipes(self, table: ir.Value, places: list[ir.Value]) -> ir.Value:
        """Eight uint64 of a table."""
        builder, found = self.builder, ir.Constant(WIDE, ir.Undefined)
        pointer = builder.inttoptr(table, I64.as_pointer())
        for lane, place in enumerate(places):
            recipe = builder.load(builder.gep(pointer, [builder.zext(place, I64)]))
            found = builder.insert_element(found, recipe, ir.Constant(I32, lane))
        return found

    def tables(self, contexts: ir.Value, instead: ir.Value, kind: ir.VectorType) -> ir.Value:
        """The numbers of eight tables, at address `contexts`; 0 if that is 0: what lies at `instead` is read then."""
        several = self.builder.icmp_unsigned("!=", contexts, ir.Constant(I64, 0))
        found = self.load(self.builder.select(several, contexts, instead), ir.VectorType(I8, LANES))
        return self.builder.select(several, self.builder.zext(found, kind), self.constant(0, kind))

    def lanes(self, wanted: ir.Value) -> ir.Value:
        """Eight conditions as the bits of a number."""
        return self.builder.zext(self.builder.bitcast(wanted, I8), I64)


@intrinsic
def _eight_encoded(typingctx, states, symbols, contexts, recipes, precision, shuffles, words):
    """Put a symbol into each of eight states: how many words they gave off, and << 8, which symbols had no frequency.

    All but `precision` are addresses: of states (uint32), symbols (uint8), contexts or 0, recipes,
    `eight_lanes.TOGETHER`, and of what is behind the words to be (uint16).
    """

    def codegen(context, builder, signature, args):
        states, symbols, contexts, recipes, precision, shuffles, words = args
        eight = _Builder(builder)
        x = eight.load(states, VECTOR)
        several = builder.icmp_unsigned("!=", contexts, ir.Constant(I64, 0))
        found = []
        with builder.if_else(several) as (many, one):
            with many:
                found.append((eight.recipes(recipes, eight.places(symbols, contexts)), builder.block))
            with one:
                single = [eight.load(builder.add(symbols, ir.Constant(I64, lane)), I8) for lane in range(LANES)]
                found.append((eight.recipes(recipes, single), builder.block))
        recipe = builder.phi(WIDE)
        for value, block in found:
            recipe.add_incoming(value, block)
        low = builder.trunc(recipe, VECTOR)
        frequency, first = builder.lshr(low, eight.constant(16)), builder.and_(low, eight.constant(0xFFFF))
        # what is too large gives off a word
        limit = builder.shl(frequency, builder.sub(eight.constant(16), eight.splat(precision)))
        high = builder.lshr(x, eight.constant(16))
        full = builder.icmp_signed(">=", high, limit)
        lanes = eight.lanes(full)
        halves = eight.shuffled(builder.trunc(x, HALVES), shuffles, lanes)
        eight.store(halves, builder.sub(words, ir.Constant(I64, 2 * LANES)))
        x = builder.select(full, high, x)
        # the position of the highest bit of a number is the exponent of its float
        as_float = builder.uitofp(frequency, ir.VectorType(ir.FloatType(), LANES))
        shift = builder.sub(
            builder.lshr(builder.bitcast(as_float, VECTOR), eight.constant(23)), eight.constant(127 - 32)
        )
        product = builder.mul(builder.zext(x, WIDE), builder.lshr(recipe, eight.constant(32, WIDE)))
        quotient = builder.trunc(builder.lshr(product, builder.zext(shift, WIDE)), VECTOR)
        rest = builder.sub(x, builder.mul(quotient, frequency))
        small = builder.icmp_signed(">=", rest, frequency)
        # a quotient that is too small by one
        total = builder.shl(eight.constant(1), eight.splat(precision))
        more = builder.select(small, builder.sub(total, frequency), eight.constant(0))
        state = builder.add(builder.shl(quotient, eight.splat(precision)), builder.add(rest, first))
        eight.store(builder.add(state, more), states)
        never = eight.lanes(builder.icmp_unsigned("==", frequency, eight.constant(0)))
        return builder.or_(builder.ctpop(lanes), builder.shl(never, ir.Constant(I64, 8)))

    return types.int64(states, symbols, contexts, recipes, precision, shuffles, words), codegen


@jit
def encode_symbols(symbols, contexts, recipes, precision, shuffles, states, words):
    """Like `rans.encode_symbols`.

    symbols, contexts: uint8, no contexts for table 0. shuffles: `eight_lanes.TOGETHER`. states: uint32, one or a
    multiple of eight. words: uint16, BEFORE more than there are symbols.
    """
    states[:] = LOWEST
    at, lanes, several, never = words.shape[0], states.shape[0], contexts.shape[0] > 0, 0
    whole = symbols.shape[0] // lanes * lanes if lanes >= LANES else 0
    for index in range(symbols.shape[0] - 1, whole - 1, -1):
        table, lane = np.int64(contexts[index]) if several else 0, index % lanes
        recipe = np.int64(recipes[table << 8 | np.int64(symbols[index])] & np.uint64(0xFFFFFFFF))
        frequency, state = recipe >> 16, np.int64(states[lane])
        if not frequency:
            return NEVER
        if state >> (32 - precision) >= frequency:
            at -= 1
            words[at] = state & 0xFFFF
            state >>= 16
        states[lane] = (state // frequency << precision) + state % frequency + (recipe & 0xFFFF)
    states_at, symbols_at, words_at = states.ctypes.data, np.int64(symbols.ctypes.data), np.int64(words.ctypes.data)
    recipes_at, shuffles_at, contexts_at = np.int64(recipes.ctypes.data), np.int64(shuffles.ctypes.data), 0
    if several:
        contexts_at = np.int64(contexts.ctypes.data)
    for done in range(whole - lanes, -1, -lanes):
        for first in range(lanes - LANES, -1, -LANES):
            here = contexts_at + done + first if several else 0
            found = _eight_encoded(
                np.int64(states_at) + 4 * first,
                symbols_at + done + first,
                here,
                recipes_at,
                precision,
                shuffles_at,
                words_at + 2 * at,
            )
            at -= found & 0xFF
            never |= found >> 8
    return NEVER if never else words.shape[0] - at


@intrinsic
def _eight_decoded(typingctx, states, words, slots, entries, contexts, precision, shuffles, out):
    """Take a symbol out of each of eight states; how many words they took in.

    All but `precision` are addresses: of states (uint32), the next words, the tables, contexts or 0,
    `eight_lanes.APART`, and of the symbols to be (uint8). entries: 0 if slots tell all.
    """

    def codegen(context, builder, signature, args):
        states, words, slots, entries, contexts, precision, shuffles, out = args
        eight = _Builder(builder)
        x, shift = eight.load(states, VECTOR), eight.splat(precision)
        slot = builder.and_(x, builder.sub(builder.shl(eight.constant(1), shift), eight.constant(1)))
        table = eight.tables(contexts, out, VECTOR)
        place, quotient = builder.or_(slot, builder.shl(table, shift)), builder.lshr(x, shift)
        results = []
        with builder.if_else(builder.icmp_unsigned("!=", entries, ir.Constant(I64, 0))) as (twice, once):
            with twice:
                symbol = builder.zext(eight.look_up(slots, place, ir.VectorType(I8, LANES)), VECTOR)
                entry = eight.look_up(entries, builder.or_(symbol, builder.shl(table, eight.constant(8))), VECTOR)
                frequency = builder.add(builder.lshr(entry, eight.constant(16)), eight.constant(1))
                distance = builder.sub(slot, builder.and_(entry, eight.constant(0xFFFF)))
                results.append((symbol, builder.add(builder.mul(frequency, quotient), distance), builder.block))
            with once:
                entry = eight.look_up(slots, place, VECTOR)
                frequency = builder.and_(builder.lshr(entry, eight.constant(8)), eight.constant(0xFFF))
                frequency = builder.add(frequency, eight.constant(1))
                distance = builder.lshr(entry, eight.constant(20))
                results.append((entry, builder.add(builder.mul(frequency, quotient), distance), builder.block))
        symbol, left = builder.phi(VECTOR), builder.phi(VECTOR)
        for found, rest, block in results:
            symbol.add_incoming(found, block)
            left.add_incoming(rest, block)
        eight.store(builder.trunc(symbol, ir.VectorType(I8, LANES)), out)
        low = builder.icmp_unsigned("==", builder.lshr(left, eight.constant(16)), eight.constant(0))
        lanes = eight.lanes(low)
        taken = builder.zext(eight.shuffled(eight.load(words, HALVES), shuffles, lanes), VECTOR)
        filled = builder.or_(builder.shl(left, eight.constant(16)), taken)
        eight.store(builder.select(low, filled, left), states)
        return builder.ctpop(lanes)

    return types.int64(states, words, slots, entries, contexts, precision, shuffles, out), codegen


@jit
def decode_symbols(words, states, slots, entries, precision, contexts, shuffles, out):
    """Like `rans.decode_symbols`.

    words: uint16, PADDING more than there are. states: uint32, one or a multiple of eight, 32 at most, changed. slots:
    the bytes of those of `rans_wide`. entries: uint32, empty if slots tell all. contexts: uint8, as many as symbols, or
    none for table 0. shuffles: `eight_lanes.APART`.
    """
    for state in states:
        if state < LOWEST:
            return STATE
    at, lanes, word_count = 0, states.shape[0], words.shape[0] - PADDING
    whole = out.shape[0] // lanes * lanes if lanes >= LANES else 0
    words_at, states_at, out_at = np.int64(words.ctypes.data), np.int64(states.ctypes.data), np.int64(out.ctypes.data)
    slots_at, shuffles_at = np.int64(slots.ctypes.data), np.int64(shuffles.ctypes.data)
    twice, several = entries.shape[0] > 0, contexts.shape[0] > 0
    entries_at, contexts_at = np.int64(entries.ctypes.data) if twice else 0, np.int64(contexts.ctypes.data)
    for done in range(0, whole, lanes):
        if at > word_count:
            return EARLY_END
        for first in range(0, lanes, LANES):
            here = contexts_at + done + first if several else 0
            at += _eight_decoded(
                states_at + 4 * first,
                words_at + 2 * at,
                slots_at,
                entries_at,
                here,
                precision,
                shuffles_at,
                out_at + done + first,
            )
    if at > word_count:
        return EARLY_END
    for index in range(whole, out.shape[0]):
        state, table = np.int64(states[index % lanes]), np.int64(contexts[index]) if several else 0
        slot = state & ((1 << precision) - 1)
        place = (table << precision) + slot
        if twice:
            symbol = np.int64(slots[place])
            entry = np.int64(entries[table << 8 | symbol])
            state = ((entry >> 16) + 1) * (state >> precision) + slot - (entry & 0xFFFF)
        else:
            symbol, entry = np.int64(slots[4 * place]), 0
            for byte in range(3, 0, -1):
                entry = entry << 8 | np.int64(slots[4 * place + byte])
            state = ((entry & 0xFFF) + 1) * (state >> precision) + (entry >> 12)
        if state < 1 << 16:
            if at >= word_count:
                return EARLY_END
            state = state << 16 | np.int64(words[at])
            at += 1
        states[index % lanes], out[index] = state, symbol
    if at != word_count:
        return LEFT_OVER
    for state in states:
        if state != LOWEST:
            return STATE
    return OK
