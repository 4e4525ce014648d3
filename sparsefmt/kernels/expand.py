"""From a mask and packed values to the rows of a slice, in registers, for jitted code.

The mask of a slice is read in words of 64 bits: four columns of sixteen rows. There are two ways, both without a
branch. With AVX-512, an instruction expands 16 values by 16 bits of mask. With AVX2, a table with a row for each of the
256 masks of eight rows says where each lane takes its value from: f32 by a permutation
of lanes; 16-bit values by a shuffle of bytes, which also puts bfloat16 in the upper half of its lane, where it is a
float32. Elsewhere, and for float64, kernels put
values in their places one by one.

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
    broadcast,
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
from sparsefmt.positions.masks import SLICE_ROWS

COLUMNS = 4
"""Columns of a slice whose bits make one word of 64."""

_SINGLE8 = ir.VectorType(ir.FloatType(), 8)
_ABSENT = 0x80
"""Makes a byte shuffle give 0, and is the sign of an absent lane in the table of f32."""


def _make_table(kind: int) -> np.ndarray:
    """(256, bytes): for each mask of eight rows, how to shuffle the values."""
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


_ROW_SHIFT = {F32: 5, BF16: 5, F16: 4}
"""Power of two of the bytes of a row of the table."""

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
    """AVX-512: sixteen rows, whose bits lie at the address `mask`."""
    stored = stored_type(kind, 16)
    words = ir.VectorType(ir.IntType(8 * WIDTH[kind]), 16)
    present = builder.bitcast(load_as(builder, mask, I16, 2), ir.VectorType(I1, 16))
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
        present = builder.bitcast(bits, ir.VectorType(I1, 32))
        wide = builder.shuffle_vector(loaded, ir.Constant(stored, None), lanes_of(list(range(32))))
        arguments = [wide, ir.Constant(wide.type, None), present]
        placed = call(builder, "llvm.x86.avx512.mask.expand.v32i16", wide.type, arguments)
        return builder.bitcast(placed, ir.VectorType(ir.FloatType(), 16))
    suffix = "v16f32" if kind == F32 else "v16i16"
    arguments = [loaded, ir.Constant(stored, None), present]
    return widened(builder, call(builder, f"llvm.x86.avx512.mask.expand.{suffix}", stored, arguments), kind)


def _expand8(builder, values, row, kind):
    """AVX2: eight rows, for whose mask the table has a row at the address `row`."""
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


def _columns(builder, values, mask, kind, table):
    """For the columns of a word, to be called in order: a function of a column's number to its LLVM vector of sixteen
    rows."""
    if ISA == "portable" or kind == F64:
        raise TypeError("no way to expand in registers: see in_registers")

    def taken(bits):
        """Where so many values begin as `bits` has ones; then, those after them begin."""
        nonlocal values
        begin, values = values, builder.add(values, builder.mul(builder.ctpop(bits), integer(WIDTH[kind])))
        return begin

    def column(number):
        # a load for each column: taken out of one word, they would all be there at once, in too few registers
        at = builder.add(mask, integer(2 * number))
        bits = builder.zext(load_as(builder, at, I16, 2), I64)
        if ISA == "avx512":
            return _expand16(builder, taken(bits), at, kind, table)
        halves = []
        for bit in (0, 8):
            # eight bits of the mask, and at once the place of their row in the table, whose rows have a power of two
            shift, row_bytes = bit - _ROW_SHIFT[kind], 1 << _ROW_SHIFT[kind]
            row = builder.lshr(bits, integer(shift)) if shift >= 0 else builder.shl(bits, integer(-shift))
            row = builder.and_(row, integer(255 * row_bytes))
            halves.append(_expand8(builder, taken(row), builder.add(table, row), kind))
        return concatenated(builder, halves)

    return column


@intrinsic(prefer_literal=True)
def expand_word(typingctx, values, mask, kind, tables):
    """The four columns of the word at `mask`, a vector of sixteen rows each: the values that follow each other at
    `values` where a bit is set, +0.0 elsewhere."""
    stored = constant_of(kind)
    result = Vectors(accumulator(stored), SLICE_ROWS, COLUMNS)

    def codegen(context, builder, signature, args):
        column = _columns(builder, args[0], args[1], stored, args[3])
        return packed(builder, [column(number) for number in range(COLUMNS)])

    return result(types.int64, types.int64, kind, types.int64), codegen


@intrinsic(prefer_literal=True)
def fma_word(typingctx, values, mask, kind, tables, x, sums):
    """sums[token] + column * x[column, token] for the columns of `expand_word`, in order. x is (4, tokens)."""
    stored = constant_of(kind)

    def codegen(context, builder, signature, args):
        column = _columns(builder, args[0], args[1], stored, args[3])
        totals = unpacked(builder, args[5], sums)
        for number in range(COLUMNS):
            weights = column(number)
            for token in range(sums.count):
                address = builder.add(args[4], integer(sums.itemsize * (number * sums.count + token)))
                totals[token] = fused(builder, weights, broadcast(builder, address, sums), totals[token])
        return packed(builder, totals)

    int64 = types.int64
    return sums(int64, int64, kind, int64, int64, sums), codegen


@intrinsic(prefer_literal=True)
def copy_value(typingctx, source, kind, destination):
    """One stored value, widened."""
    stored = constant_of(kind)

    def codegen(context, builder, signature, args):
        value = widened(builder, load_as(builder, args[0], stored_type(stored, 1), WIDTH[stored]), stored)
        store_at(builder, args[2], value, accumulator(stored).bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, kind, types.int64), codegen
