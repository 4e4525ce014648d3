"""rANS with AVX-512: `rans.decode_symbols` for streams of 32 states, sixteen of them in a vector.

Symbols are below 256. Tables of a precision of at most ONE_LOOK have a word of 32 bits for each slot: the symbol, its
frequency less 1 << 8, and how far the slot is from the symbol's first << 20. Others have the symbol of each slot as a
byte, and for each symbol a word: its frequency less 1 << 16, and its first slot.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.jit import jit

OK, EARLY_END, STATE, LEFT_OVER = range(4)
"""As in `rans.py`."""

STATES = 32

ONE_LOOK = 12
"""Precision up to which one look into the table tells all."""

PADDING = 64
"""Elements that a pass may read beyond the end of `words` before it notices."""

LANES = 16
LOWEST = np.uint32(1 << 16)

ZERO, ONE = np.uint64(0), np.uint64(1)

I1, I8, I16, I32, I64 = (ir.IntType(nbits) for nbits in (1, 8, 16, 32, 64))


@intrinsic
def _sixteen_steps(typingctx, states, words, slots, entries, contexts, precision, out):
    """Take a symbol out of each of sixteen states; how many words they took in.

    All but `precision` are addresses: of states (uint32), the next words, the tables, the contexts or 0, and of the
    symbols to be (uint8). slots: as above. entries: 0 if slots tell all.
    """

    def codegen(context, builder, signature, args):
        states, words, slots, entries, contexts, precision, out = args
        vector, lanes = ir.VectorType(I32, LANES), ir.VectorType(I1, LANES)

        def splat(value):
            single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
            return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))

        def constant(number):
            return ir.Constant(vector, [number] * LANES)

        def pointer(address, element):
            return builder.inttoptr(address, element.as_pointer())

        def call(name, result, arguments):
            kind = ir.FunctionType(result, [argument.type for argument in arguments])
            return builder.call(builder.module.declare_intrinsic(name, (), kind), arguments)

        def gather(table, index, scale):
            return call(
                "llvm.x86.avx512.mask.gather.dpi.512",
                vector,
                [
                    constant(0),
                    builder.inttoptr(table, I8.as_pointer()),
                    index,
                    ir.Constant(lanes, [1] * LANES),
                    ir.Constant(I32, scale),
                ],
            )

        shift = splat(builder.trunc(precision, I32))
        x = builder.load(pointer(states, vector), align=4)
        slot = builder.and_(x, builder.sub(builder.shl(constant(1), shift), constant(1)))
        several = builder.icmp_unsigned("!=", contexts, ir.Constant(I64, 0))
        # without contexts, what lies at `out` is read and not used
        context = builder.load(pointer(builder.select(several, contexts, out), ir.VectorType(I8, LANES)), align=1)
        context = builder.select(several, builder.zext(context, vector), constant(0))
        slot_of_all = builder.add(slot, builder.shl(context, shift))
        look_twice = builder.icmp_unsigned("!=", entries, ir.Constant(I64, 0))
        quotient = builder.lshr(x, shift)
        results = []
        with builder.if_else(look_twice) as (twice, once):
            with twice:
                symbol = builder.and_(gather(slots, slot_of_all, 1), constant(0xFF))
                entry = gather(entries, builder.add(symbol, builder.shl(context, constant(8))), 4)
                frequency = builder.add(builder.lshr(entry, constant(16)), constant(1))
                distance = builder.sub(slot, builder.and_(entry, constant(0xFFFF)))
                left = builder.add(builder.mul(frequency, quotient), distance)
                results.append((symbol, left, builder.block))
            with once:
                entry = gather(slots, slot_of_all, 4)
                frequency = builder.add(builder.and_(builder.lshr(entry, constant(8)), constant(0xFFF)), constant(1))
                left = builder.add(builder.mul(frequency, quotient), builder.lshr(entry, constant(20)))
                results.append((entry, left, builder.block))
        symbol, left = builder.phi(vector), builder.phi(vector)
        for found, rest, block in results:
            symbol.add_incoming(found, block)
            left.add_incoming(rest, block)
        builder.store(builder.trunc(symbol, ir.VectorType(I8, LANES)), pointer(out, ir.VectorType(I8, LANES)), align=1)
        low = builder.icmp_unsigned("<", left, constant(1 << 16))
        taken = builder.zext(builder.load(pointer(words, ir.VectorType(I16, LANES)), align=2), vector)
        spread = call("llvm.x86.avx512.mask.expand.v16i32", vector, [taken, constant(0), low])
        filled = builder.or_(builder.shl(left, constant(16)), spread)
        builder.store(builder.select(low, filled, left), pointer(states, vector), align=4)
        return builder.zext(builder.ctpop(builder.bitcast(low, I16)), I64)

    return types.int64(states, words, slots, entries, contexts, precision, out), codegen


@jit
def decode_symbols(words, states, slots, entries, precision, contexts, out):
    """Like `rans.decode_symbols`, with tables in one array or two.

    words: uint16, PADDING more than there are. states: uint32 (32,), changed. slots: uint32, or, with PADDING, uint8.
    entries: uint32 (tables, 256) flat, empty if slots tell all. contexts: uint8, as many as symbols, or None.
    """
    for state in states:
        if state < LOWEST:
            return STATE
    at, whole, word_count = 0, out.shape[0] // STATES * STATES, words.shape[0] - PADDING
    words_at, states_at, out_at = np.int64(words.ctypes.data), np.int64(states.ctypes.data), np.int64(out.ctypes.data)
    slots_at, entries_at, contexts_at = np.int64(slots.ctypes.data), 0, 0
    if entries.shape[0]:
        entries_at = np.int64(entries.ctypes.data)
    if contexts is not None:
        contexts_at = np.int64(contexts.ctypes.data)
    for done in range(0, whole, STATES):
        if at > word_count:
            return EARLY_END
        for half in range(0, STATES, LANES):
            here = 0 if contexts is None else contexts_at + done + half
            at += _sixteen_steps(
                states_at + 4 * half, words_at + 2 * at, slots_at, entries_at, here, precision, out_at + done + half
            )
    if at > word_count:
        return EARLY_END
    for index in range(whole, out.shape[0]):
        context = 0 if contexts is None else np.int64(contexts[index])
        state = np.int64(states[index - whole])
        slot = state & ((1 << precision) - 1)
        entry = np.int64(slots[(context << precision) + slot])
        symbol = entry & 0xFF
        if entries.shape[0]:
            entry = np.int64(entries[256 * context + symbol])
            state = ((entry >> 16) + 1) * (state >> precision) + slot - (entry & 0xFFFF)
        else:
            state = ((entry >> 8 & 0xFFF) + 1) * (state >> precision) + (entry >> 20)
        if state < 1 << 16:
            if at >= word_count:
                return EARLY_END
            state = state << 16 | np.int64(words[at])
            at += 1
        states[index - whole], out[index] = state, symbol
    if at != word_count:
        return LEFT_OVER
    for state in states:
        if state != LOWEST:
            return STATE
    return OK
