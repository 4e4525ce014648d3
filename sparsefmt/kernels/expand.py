"""From a mask and packed values to values at their columns, in registers, for jitted code.

Two ways, both without a branch. With AVX-512, an instruction expands 16 values by 16 bits of mask. With AVX2, a table
with a row for each of the 256 masks of eight columns says where each lane takes its value from: f32 by a permutation
of lanes; 16-bit values by a shuffle of bytes, which also puts bfloat16 in the upper half of its lane, where it is a
float32. Elsewhere, and for float64, values are scattered by the bits of the mask (`scatter_word`).

Vectors of values are read whole, up to 64 bytes from the first of them on: every array is followed by that much.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.kernels.simd import (
    BF16,
    F16,
    F32,
    F64,
    I1,
    I8,
    I16,
    I32,
    I64,
    ISA,
    WIDTH,
    Vectors,
    accumulator,
    call,
    concatenated,
    constant_of,
    fused,
    integer,
    lanes_of,
    load_as,
    packed,
    store_at,
    stored_type,
    unpacked,
    widened,
)

WORD = 64
"""Columns of one word of a mask."""

_SINGLE8 = ir.VectorType(ir.FloatType(), 8)
_ABSENT = 0x80
"""Makes a byte shuffle give 0, and is the sign of an absent lane in the table of f32."""


def _make_table(kind: int) -> np.ndarray:
    """(256, bytes): for each mask of eight columns, how to shuffle the values."""
    lane_bytes = {F32: 4, BF16: 4, F16: 2}[kind]
    table = np.full((256, 8, lane_bytes), 0 if kind == F32 else _ABSENT, np.uint8)
    for mask in range(256):
        stored = 0
        for lane in range(8):
            if not mask >> lane & 1:
                table[mask, lane, -1] = _ABSENT
            elif kind == F32:
                table[mask, lane] = stored, 0, 0, 0
                stored += 1
            else:
                table[mask, lane, -2:] = 2 * stored, 2 * stored + 1
                stored += 1
    return table.reshape(256, -1)


_TABLES = {kind: _make_table(kind) for kind in (F32, BF16, F16)} if ISA == "avx2" else {}


def in_registers(kind: int) -> bool:
    """Whether there is a way without branches for values of a kind."""
    return ISA != "portable" and kind != F64


@cache
def tables(kind: int) -> int:
    """What `expand_word` and `fma_word` take as `tables`: the address of a table where one is used.

    Elsewhere 0, but unknown to the compiler: or-ing it to what was loaded keeps LLVM from making one instruction of
    load and expansion, which is slow on Zen 5.
    """
    return _TABLES[kind].ctypes.data if kind in _TABLES else 0


def _expand16(builder, values, mask, kind, nothing):
    """AVX-512: sixteen columns, whose bits lie at the address `mask`."""
    stored = stored_type(kind, 16)
    words = ir.VectorType(ir.IntType(8 * WIDTH[kind]), 16)
    chosen = builder.bitcast(load_as(builder, mask, I16, 2), ir.VectorType(I1, 16))
    spread = builder.insert_element(
        ir.Constant(words, ir.Undefined), builder.trunc(nothing, words.element), ir.Constant(I32, 0)
    )
    spread = builder.shuffle_vector(spread, spread, lanes_of([0] * 16))
    loaded = builder.bitcast(load_as(builder, values, stored, WIDTH[kind]), words)
    loaded = builder.bitcast(builder.or_(loaded, spread), stored)
    if kind == BF16:
        # the bits of the mask go to the odd bits, so that values land in the upper halves of the lanes: widened at once
        bits = builder.zext(load_as(builder, mask, I16, 2), I32)
        bits = call(builder, "llvm.x86.bmi.pdep.32", I32, [bits, ir.Constant(I32, 0xAAAAAAAA)])
        chosen = builder.bitcast(bits, ir.VectorType(I1, 32))
        wide = builder.shuffle_vector(loaded, ir.Constant(stored, None), lanes_of(list(range(32))))
        arguments = [wide, ir.Constant(wide.type, None), chosen]
        placed = call(builder, "llvm.x86.avx512.mask.expand.v32i16", wide.type, arguments)
        return builder.bitcast(placed, ir.VectorType(ir.FloatType(), 16))
    suffix = "v16f32" if kind == F32 else "v16i16"
    arguments = [loaded, ir.Constant(stored, None), chosen]
    return widened(builder, call(builder, f"llvm.x86.avx512.mask.expand.{suffix}", stored, arguments), kind)


def _expand8(builder, values, mask, kind, table):
    """AVX2: eight columns, whose bits are the int64 `mask`."""
    bytes_of_row = {F32: 32, BF16: 32, F16: 16}[kind]
    row = builder.add(table, builder.mul(mask, integer(bytes_of_row)))
    if kind == F32:
        lanes = load_as(builder, row, ir.VectorType(I32, 8), 8)
        loaded = load_as(builder, values, _SINGLE8, 4)
        placed = call(builder, "llvm.x86.avx2.permps", _SINGLE8, [loaded, lanes])
        blended = [placed, ir.Constant(_SINGLE8, None), builder.bitcast(lanes, _SINGLE8)]
        return call(builder, "llvm.x86.avx.blendv.ps.256", _SINGLE8, blended)
    if kind == BF16:
        shuffle = load_as(builder, row, ir.VectorType(I8, 32), 8)
        loaded = load_as(builder, values, ir.VectorType(I64, 2), 2)
        both = builder.bitcast(builder.shuffle_vector(loaded, loaded, lanes_of([0, 1, 0, 1])), shuffle.type)
        return builder.bitcast(call(builder, "llvm.x86.avx2.pshuf.b", shuffle.type, [both, shuffle]), _SINGLE8)
    shuffle = load_as(builder, row, ir.VectorType(I8, 16), 8)
    loaded = load_as(builder, values, shuffle.type, 2)
    halves = call(builder, "llvm.x86.ssse3.pshuf.b.128", shuffle.type, [loaded, shuffle])
    return widened(builder, builder.bitcast(halves, ir.VectorType(I16, 8)), kind)


def _sixteen_columns(builder, values, mask, kind, table):
    """For the four parts of a word: a function of the part's number to its LLVM vector of 16."""
    if ISA == "portable" or kind == F64:
        raise TypeError("no way to expand in registers: see in_registers")
    word = load_as(builder, mask, I64, 8)

    def values_from(bit):
        if not bit:
            return values
        below = builder.ctpop(builder.and_(word, integer((1 << bit) - 1)))
        return builder.add(values, builder.mul(below, integer(WIDTH[kind])))

    def part(number):
        if ISA == "avx512":
            return _expand16(builder, values_from(16 * number), builder.add(mask, integer(2 * number)), kind, table)
        halves = []
        for bit in (16 * number, 16 * number + 8):
            byte = builder.and_(builder.lshr(word, integer(bit)), integer(255))
            halves.append(_expand8(builder, values_from(bit), byte, kind, table))
        return concatenated(builder, halves)

    return part


@intrinsic(prefer_literal=True)
def expand_word(typingctx, values, mask, kind, tables):
    """The 64 columns of the word at `mask`, four vectors of 16: the values that follow each other at `values` in the
    columns whose bit is set, +0.0 in the others."""
    stored = constant_of(kind)
    result = Vectors(accumulator(stored), 16, WORD // 16)

    def codegen(context, builder, signature, args):
        part = _sixteen_columns(builder, args[0], args[1], stored, args[3])
        return packed(builder, [part(number) for number in range(result.count)])

    return result(types.int64, types.int64, kind, types.int64), codegen


@intrinsic(prefer_literal=True)
def fma_word(typingctx, values, mask, kind, tables, x, stride, sums):
    """sums[token] + expand_word(…) * x[token], 16 columns at a time; tokens lie `stride` bytes apart."""
    stored = constant_of(kind)

    def codegen(context, builder, signature, args):
        part = _sixteen_columns(builder, args[0], args[1], stored, args[3])
        totals = unpacked(builder, args[6], sums)
        for number in range(WORD // 16):
            weights = part(number)
            address = builder.add(args[4], integer(16 * sums.itemsize * number))
            for token in range(sums.count):
                activations = load_as(builder, address, sums.llvm, sums.itemsize)
                totals[token] = fused(builder, weights, activations, totals[token])
                address = builder.add(address, args[5])
        return packed(builder, totals)

    int64 = types.int64
    return sums(int64, int64, kind, int64, int64, int64, sums), codegen


@intrinsic(prefer_literal=True)
def copy_value(typingctx, source, kind, destination):
    """One stored value, widened."""
    stored = constant_of(kind)

    def codegen(context, builder, signature, args):
        value = widened(builder, load_as(builder, args[0], stored_type(stored, 1), WIDTH[stored]), stored)
        store_at(builder, args[2], value, accumulator(stored).bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, kind, types.int64), codegen
