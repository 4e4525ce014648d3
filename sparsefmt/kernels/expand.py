"""From a mask and the values that it marks to the rows of a slice, in registers, for jitted code.

The mask of a slice is read in words of 64 bits: four columns of sixteen rows. There are three ways, all without a
branch. With AVX-512, an instruction expands 16 values by 16 bits of mask, 32 if they are bfloat16, and 64 if they have
one byte; floats of eight bits are looked up, as bfloat16. With AVX2, a table with a row for each of the
256 masks of eight rows says where each lane takes its value from: f32 by a permutation of lanes; smaller values by a
shuffle of bytes, which also puts them where they are nearly a float32, bfloat16 in the upper half of its lane. With
NEON, such a table says it for each byte, of f32 too. Elsewhere, and for float64, kernels put values in their places one
by one.

Vectors of values are read whole, up to 64 bytes from the first of them on: every array is followed by that much.
"""

from __future__ import annotations

from functools import cache

import ml_dtypes
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.isa import ISA, MOVES_BYTES, NEON
from sparsefmt.kernels.dots import dots, dots_of_tokens
from sparsefmt.kernels.kinds import BF16, DOTS, E4M3, E5M2, F16, F32, F64, INT8, ONE_BYTE, UINT8, WIDTH
from sparsefmt.kernels.llvm import behind, from_upper_bytes, fused, opaque, stored_type, widened
from sparsefmt.kernels.simd import VECTOR_BYTES, Vectors, accumulator, broadcast, joined, vectors_of
from sparsefmt.llvm import I1, I8, I16, I32, I64, call, concatenated, constant_of, integer, lanes_of, load_as, store_at
from sparsefmt.positions.masks import SLICE_ROWS

COLUMNS = 4
"""Columns of a slice whose bits make one word of 64."""

_SINGLE8 = ir.VectorType(ir.FloatType(), 8)
_ABSENT = 0x80
"""Makes a byte shuffle give 0, and is the sign of an absent lane in the table of f32 for AVX2."""


_LANE_BYTES = {BF16: 4, INT8: 4, UINT8: 4, E4M3: 2, E5M2: 2}
"""Bytes of a lane that a shuffle puts a value into, where they are more than the value has (AVX2)."""


def _row_bytes(kind: int) -> int:
    """Bytes of a row of the table: for eight lanes."""
    if NEON:
        return 8 * max(2, WIDTH[kind])
    return 8 * _LANE_BYTES.get(kind, WIDTH[kind])


def _make_table(kind: int) -> np.ndarray:
    """For each mask of eight rows, one after the other, how to shuffle the values: `_row_bytes` each."""
    lane_bytes, width = _row_bytes(kind) // 8, WIDTH[kind]
    # the last byte of a lane is the highest; NEON has bytes alone, and nothing in the second half of such a row
    if NEON and width == 1:
        lane_bytes = 1
    lanes = kind == F32 and not NEON
    table = np.full((256, 8, lane_bytes), 0 if lanes else _ABSENT, np.uint8)
    for mask in range(256):
        stored = 0
        for lane in range(8):
            if not mask >> lane & 1:
                table[mask, lane, -1] = _ABSENT
            elif lanes:
                table[mask, lane] = stored, 0, 0, 0
                stored += 1
            else:
                table[mask, lane, -width:] = range(width * stored, width * stored + width)
                stored += 1
    table = table.reshape(256, -1)
    table = np.pad(table, ((0, 0), (0, _row_bytes(kind) - table.shape[1])), constant_values=_ABSENT)
    # rows of eight bytes are read as sixteen
    return np.append(table.reshape(-1), np.zeros(16, np.uint8))


_TABLES = {kind: _make_table(kind) for kind in (F32, BF16, F16, *ONE_BYTE, DOTS)} if ISA == "avx2" or NEON else {}
_ROW_BY_ROW = [SLICE_ROWS * column + row for row in range(SLICE_ROWS) for column in range(COLUMNS)]
"""The bytes of a word, column by column, in the order in which DOTS have them."""

if MOVES_BYTES:
    _TABLES[DOTS] = np.array(_ROW_BY_ROW, np.uint8)


def _make_parts(dtype) -> np.ndarray:
    """Floats of eight bits as bfloat16, which has all of them: 128 upper bytes, without signs, and 128 lower ones. Then
    for each column of a word where its lanes find theirs, the lower ones first: 64 bytes each."""
    halves = np.arange(128, dtype=np.uint8).view(dtype).astype(ml_dtypes.bfloat16).view(np.uint16)
    order = np.zeros((COLUMNS, SLICE_ROWS, 4), np.uint8)
    order[..., 2] = np.arange(COLUMNS * SLICE_ROWS).reshape(COLUMNS, SLICE_ROWS)
    order[..., 3] = order[..., 2] + COLUMNS * SLICE_ROWS
    return np.concatenate([halves >> 8, halves & 255, order.reshape(-1)]).astype(np.uint8)


if MOVES_BYTES:
    _TABLES[E4M3], _TABLES[E5M2] = _make_parts(ml_dtypes.float8_e4m3fn), _make_parts(ml_dtypes.float8_e5m2)

if ISA == "avx512":
    # of 32 values, those of the first and of the second column, each in the upper half of its lane
    _TABLES[BF16] = np.array([[0, row + first] for first in (0, SLICE_ROWS) for row in range(SLICE_ROWS)], np.uint16)


def _aligned(table: np.ndarray) -> np.ndarray:
    """A copy that begins with a line of the cache."""
    room = np.empty(table.nbytes + 64, np.uint8)
    begin = -room.ctypes.data % 64
    room[begin : begin + table.nbytes] = table.view(np.uint8).reshape(-1)
    return room[begin : begin + table.nbytes]


_TABLES = {kind: _aligned(table) for kind, table in _TABLES.items()}


def in_registers(kind: int) -> bool:
    """Whether there is a way without branches for values of a kind."""
    return (ISA != "portable" or NEON) and kind != F64


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
    suffix = {4: "v16f32", 2: "v16i16"}[WIDTH[kind]]
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
    if kind in (INT8, UINT8):
        shuffle = load_as(builder, row, ir.VectorType(I8, 32), 8)
        loaded = load_as(builder, values, ir.VectorType(I64, 1), 1)
        spread = builder.bitcast(builder.shuffle_vector(loaded, loaded, lanes_of([0] * 4)), shuffle.type)
        lanes = ir.VectorType(I32, 8)
        placed = builder.bitcast(call(builder, "llvm.x86.avx2.pshuf.b", shuffle.type, [spread, shuffle]), lanes)
        moved = (builder.ashr if kind == INT8 else builder.lshr)(placed, ir.Constant(lanes, [24] * 8))
        return builder.sitofp(moved, _SINGLE8)
    shuffle = load_as(builder, row, ir.VectorType(I8, 16), 8)
    if kind in ONE_BYTE:
        eight = load_as(builder, values, ir.VectorType(I64, 1), 1)
        loaded = builder.bitcast(builder.shuffle_vector(eight, eight, lanes_of([0, 0])), shuffle.type)
        halves = call(builder, "llvm.x86.ssse3.pshuf.b.128", shuffle.type, [loaded, shuffle])
        return from_upper_bytes(builder, builder.bitcast(halves, ir.VectorType(I16, 8)), kind)
    loaded = load_as(builder, values, shuffle.type, 2)
    halves = call(builder, "llvm.x86.ssse3.pshuf.b.128", shuffle.type, [loaded, shuffle])
    return widened(builder, builder.bitcast(halves, ir.VectorType(I16, 8)), kind)


def _values_up_to(builder, word):
    """NEON: for each byte of a word, how many bits are set in it and in those before it, as a byte of one integer."""

    def every(byte):
        return integer(0x0101010101010101 * byte)

    def step(bits, by, byte):
        return builder.and_(builder.lshr(bits, integer(by)), every(byte))

    # in each pair of bits, in each four, in each byte
    counts = builder.sub(word, step(word, 1, 0x55))
    counts = builder.add(builder.and_(counts, every(0x33)), step(counts, 2, 0x33))
    counts = builder.and_(builder.add(counts, builder.lshr(counts, integer(4))), every(0x0F))
    return builder.mul(counts, every(1))


@intrinsic
def values_of_word(typingctx, mask):
    """How many values the four columns of the word at `mask` have."""

    def codegen(context, builder, signature, args):
        word = load_as(builder, args[0], I64, 8)
        return builder.lshr(_values_up_to(builder, word), integer(56)) if NEON else builder.ctpop(word)

    return types.int64(types.int64), codegen


def _look_ups(builder, mask, kind):
    """NEON: a function of the addresses of values and table and of a byte's number in the word at `mask`, to LLVM
    vectors of 16 bytes, which hold the eight rows whose mask is that byte.

    How many values there are before each eight rows is found for all of the word at once: counting the bits of one mask
    after the other would take longer than the look-ups.
    """
    word = load_as(builder, mask, I64, 2)
    begins = builder.shl(_values_up_to(builder, word), integer(8 + {4: 2, 2: 1, 1: 0}[WIDTH[kind]]))
    begins, word = behind(builder, begins), behind(builder, word)

    def byte_of(bits, number):
        return builder.and_(builder.lshr(bits, integer(8 * number)), integer(0xFF))

    bytes16, row_type = ir.VectorType(I8, 16), ir.ArrayType(I8, _row_bytes(kind))

    def looked_up(values, table, byte):
        rows = builder.inttoptr(table, row_type.as_pointer())
        row = builder.ptrtoint(builder.gep(rows, [byte_of(word, byte)], source_etype=row_type), I64)
        begin = builder.add(values, byte_of(begins, byte))
        parts = range(0, _row_bytes(kind), 16)
        loaded = [load_as(builder, builder.add(begin, integer(at)), bytes16, WIDTH[kind]) for at in parts]
        indices = [load_as(builder, builder.add(row, integer(at)), bytes16, 16) for at in parts]
        return [call(builder, f"llvm.aarch64.neon.tbl{len(loaded)}.v16i8", bytes16, [*loaded, at]) for at in indices]

    return looked_up


def _columns_of_neon(builder, values, mask, kind, table):
    """NEON: like `_columns`. Eight rows are one or two look-ups of bytes."""
    looked_up = _look_ups(builder, mask, kind)

    def column(number, totals=()):
        nonlocal values, table
        # loads stay behind the products before: LLVM would load all columns first, and spill
        values, table = behind(builder, values, *totals), behind(builder, table, *totals)
        parts = [part for byte in (2 * number, 2 * number + 1) for part in looked_up(values, table, byte)]
        if WIDTH[kind] == 1:
            parts = [builder.shuffle_vector(part, part, lanes_of(list(range(8)))) for part in parts]
        found = concatenated(builder, parts)
        found = builder.bitcast(found, stored_type(kind, SLICE_ROWS))
        if kind != BF16:
            return widened(builder, found, kind)
        # not by a shift, for which some processors have one unit where they have two for shuffles
        pairs = [lane for low in range(SLICE_ROWS) for lane in (SLICE_ROWS + low, low)]
        pairs = builder.shuffle_vector(found, ir.Constant(found.type, None), lanes_of(pairs))
        return builder.bitcast(pairs, ir.VectorType(ir.FloatType(), SLICE_ROWS))

    return column


def _columns_of_bytes(builder, values, mask, kind):
    """AVX-512: like `_columns` for values of one byte, all of which one instruction puts in their places."""
    placed = _expand64(builder, values, mask)

    def column(number, totals=()):
        lanes = lanes_of(list(range(SLICE_ROWS * number, SLICE_ROWS * (number + 1))))
        return widened(builder, builder.shuffle_vector(placed, placed, lanes), kind)

    return column


def _columns_of_parts(builder, values, mask, table):
    """AVX-512: like `_columns` for E4M3 and E5M2, by the table of `_make_parts`: two look-ups for all columns, and one
    for each, instead of a dozen instructions for each."""
    bytes64, wide = ir.VectorType(I8, 64), ir.VectorType(ir.FloatType(), SLICE_ROWS)

    def at(offset):
        return load_as(builder, builder.add(table, integer(offset)), bytes64, 64)

    def looked_up(first, index, second):
        return call(builder, "llvm.x86.avx512.vpermi2var.qi.512", bytes64, [first, index, second])

    placed = _expand64(builder, values, mask)
    signs = builder.and_(placed, ir.Constant(bytes64, [0x80] * 64))
    upper, lower = (looked_up(at(begin), placed, at(begin + 64)) for begin in (0, 128))
    upper = builder.or_(upper, signs)

    def column(number, totals=()):
        found = looked_up(lower, at(256 + 64 * number), upper)
        present = builder.bitcast(opaque(builder, ir.Constant(I64, 0xCCCCCCCCCCCCCCCC), "k"), ir.VectorType(I1, 64))
        return builder.bitcast(builder.select(present, found, ir.Constant(bytes64, None)), wide)

    return column


def _columns_of_pairs(builder, values, mask, table):
    """AVX-512: like `_columns` for BF16. One instruction puts the values of two columns in their places, and another
    for each of them in the upper halves of its lanes."""
    halves, halves32, wide = None, ir.VectorType(I16, 2 * SLICE_ROWS), ir.VectorType(ir.FloatType(), SLICE_ROWS)

    def column(number, totals=()):
        nonlocal halves, values
        if number % 2 == 0:
            bits = load_as(builder, builder.add(mask, integer(2 * number)), I32, 2)
            present = builder.bitcast(bits, ir.VectorType(I1, 32))
            loaded = opaque(builder, load_as(builder, values, halves32, 2), "v")
            values = builder.add(values, builder.shl(builder.zext(builder.ctpop(bits), I64), integer(1)))
            arguments = [loaded, ir.Constant(halves32, None), present]
            halves = call(builder, "llvm.x86.avx512.mask.expand.v32i16", halves32, arguments)
        # LLVM would make two instructions of an order that it knows
        order = load_as(builder, builder.add(table, integer(64 * (number % 2))), halves32, 8)
        placed = call(builder, "llvm.x86.avx512.permvar.hi.512", halves32, [halves, order])
        upper = builder.bitcast(opaque(builder, ir.Constant(I32, 0xAAAAAAAA), "k"), ir.VectorType(I1, 32))
        placed = builder.select(upper, placed, ir.Constant(halves32, None))
        return builder.bitcast(placed, wide)

    return column


def _expand64(builder, values, mask):
    """AVX-512: the four columns of the word at `mask`, as an LLVM vector of 64 bytes."""
    bytes64 = ir.VectorType(I8, 64)
    present = builder.bitcast(load_as(builder, mask, I64, 2), ir.VectorType(I1, 64))
    # loaded first: an expansion that reads memory itself takes twice as long (Zen 4)
    loaded = opaque(builder, load_as(builder, values, bytes64, 1), "v")
    arguments = [loaded, ir.Constant(bytes64, None), present]
    return call(builder, "llvm.x86.avx512.mask.expand.v64i8", bytes64, arguments)


def _columns(builder, values, mask, kind, table):
    """For the columns of a word, to be called in order: a function of a column's number, and of sums that the columns
    before were added to, to its LLVM vector of sixteen rows."""
    if not in_registers(kind):
        raise TypeError("no way to expand in registers: see in_registers")
    if NEON:
        return _columns_of_neon(builder, values, mask, kind, table)
    if MOVES_BYTES and kind in (E4M3, E5M2):
        return _columns_of_parts(builder, values, mask, table)
    if ISA == "avx512" and WIDTH[kind] == 1:
        return _columns_of_bytes(builder, values, mask, kind)
    if ISA == "avx512" and kind == BF16:
        return _columns_of_pairs(builder, values, mask, table)

    def taken(bits):
        """Where so many values begin as `bits` has ones; then, those after them begin."""
        nonlocal values
        begin, values = values, builder.add(values, builder.mul(builder.ctpop(bits), integer(WIDTH[kind])))
        return begin

    def column(number, totals=()):
        # a load for each column: taken out of one word, they would all be there at once, in too few registers
        at = builder.add(mask, integer(2 * number))
        bits = builder.zext(load_as(builder, at, I16, 2), I64)
        if ISA == "avx512":
            return _expand16(builder, taken(bits), at, kind, table)
        halves = []
        for bit in (0, 8):
            # eight bits of the mask, and at once the place of their row in the table, whose rows have a power of two
            row_bytes = _row_bytes(kind)
            shift = bit - (row_bytes.bit_length() - 1)
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
        return joined(builder, [column(number) for number in range(COLUMNS)])

    return result(types.int64, types.int64, kind, types.int64), codegen


@intrinsic(prefer_literal=True)
def fma_word(typingctx, values, mask, kind, tables, x, sums):
    """sums[token] + column * x[column, token] for the columns of `expand_word`, in order. x is (4, tokens)."""
    stored = constant_of(kind)

    def codegen(context, builder, signature, args):
        column = _columns(builder, args[0], args[1], stored, args[3])
        totals = vectors_of(builder, args[5], sums)
        for number in range(COLUMNS):
            weights = column(number, totals)
            for token in range(sums.count):
                address = builder.add(args[4], integer(sums.itemsize * (number * sums.count + token)))
                totals[token] = fused(builder, weights, broadcast(builder, address, sums), totals[token])
        return joined(builder, totals)

    int64 = types.int64
    return sums(int64, int64, kind, int64, int64, sums), codegen


def _side_by_side(builder, left, right):
    """The lanes of one LLVM vector and of another in turns, as two vectors: those of the lower halves come first."""
    count = left.type.count
    lanes = [lane for pair in zip(range(count), range(count, 2 * count), strict=True) for lane in pair]
    return [builder.shuffle_vector(left, right, lanes_of(lanes[begin : begin + count])) for begin in (0, count)]


def _shuffled(builder, values, mask, table):
    """AVX2: for each byte of the word at `mask`, an LLVM vector of 16 bytes, whose first eight are its rows of DOTS."""
    bytes16, found = ir.VectorType(I8, 16), []
    for number in range(2 * COLUMNS):
        bits = builder.zext(load_as(builder, builder.add(mask, integer(number)), I8, 1), I64)
        row = builder.add(table, builder.shl(bits, integer(3)))
        # behind eight bytes come others, which are not used
        shuffle, loaded = load_as(builder, row, bytes16, 1), load_as(builder, values, bytes16, 1)
        found.append(call(builder, "llvm.x86.ssse3.pshuf.b.128", bytes16, [loaded, shuffle]))
        values = builder.add(values, builder.ctpop(bits))
    return found


def _rows_of_dots(builder, columns):
    """Eight rows of four columns, each in the first half of an LLVM vector of 16 bytes, as two such vectors: four
    columns of one row after the other."""
    pairs = [_side_by_side(builder, *columns[first : first + 2])[0] for first in (0, 2)]
    halves = ir.VectorType(I16, 8)
    rows = _side_by_side(builder, *(builder.bitcast(pair, halves) for pair in pairs))
    return [builder.bitcast(part, columns[0].type) for part in rows]


@intrinsic(prefer_literal=True)
def expand_dots(typingctx, values, mask, kind, tables):
    """The four columns of the word at `mask` for DOTS, as the bits of a vector of sixteen rows."""
    result = Vectors(accumulator(constant_of(kind)), SLICE_ROWS, 1)

    def codegen(context, builder, signature, args):
        return joined(builder, [builder.bitcast(_dots(builder, args[0], args[1], args[3]), result.llvm)])

    return result(types.int64, types.int64, kind, types.int64), codegen


def _row_by_row(builder, placed, table):
    """AVX-512: 64 bytes, column by column, in the order of DOTS."""
    if not MOVES_BYTES:
        return builder.shuffle_vector(placed, placed, lanes_of(_ROW_BY_ROW))
    # from memory: LLVM would make a dozen instructions of an order that it knows
    arguments = [placed, load_as(builder, table, placed.type, 8)]
    return call(builder, "llvm.x86.avx512.permvar.qi.512", placed.type, arguments)


def _dots(builder, values, mask, table):
    """The four columns of a word as an LLVM vector of 64 bytes, those of one row after the other."""
    if ISA == "avx512":
        return _row_by_row(builder, _expand64(builder, values, mask), table)
    if NEON:
        looked_up = _look_ups(builder, mask, DOTS)
        columns = [part for byte in range(2 * COLUMNS) for part in looked_up(values, table, byte)]
    else:
        columns = _shuffled(builder, values, mask, table)
    return concatenated(builder, [part for half in (0, 1) for part in _rows_of_dots(builder, columns[half::2])])


@intrinsic(prefer_literal=True)
def dot_word(typingctx, values, mask, kind, tables, x, way, sums):
    """sums[row] + the dot product of the four columns of a word of DOTS in that row with four activations at x, in 32
    bits. sums is a vector of sixteen rows."""
    dot = dots[constant_of(way)]

    def codegen(context, builder, signature, args):
        rows, words = _dots(builder, args[0], args[1], args[3]), ir.VectorType(I32, 16)
        alone = builder.insert_element(ir.Constant(words, ir.Undefined), load_as(builder, args[4], I32, 4), I32(0))
        spread = builder.bitcast(builder.shuffle_vector(alone, alone, lanes_of([0] * 16)), rows.type)
        (total,) = vectors_of(builder, args[6], sums)
        total, size, parts = builder.bitcast(total, words), VECTOR_BYTES, []
        for first in range(0, 64, size):
            bytes_, lanes = list(range(first, first + size)), list(range(first // 4, (first + size) // 4))
            part = builder.shuffle_vector(total, total, lanes_of(lanes))
            taken = [builder.shuffle_vector(vector, vector, lanes_of(bytes_)) for vector in (rows, spread)]
            parts.append(dot(builder, *taken, part))
        return joined(builder, [builder.bitcast(concatenated(builder, parts), sums.llvm)])

    int64 = types.int64
    return sums(int64, int64, kind, int64, int64, way, sums), codegen


@intrinsic(prefer_literal=True)
def expand_and_dot(typingctx, values, masks, kind, tables, to, x, way, sums):
    """Two slices of DOTS expanded to a panel at `to` and multiplied at once: like `dot_panel` behind two times
    `expand_dots`. Only for vectors of 64 bytes.

    values, masks: two addresses each.
    """
    number_of_way = constant_of(way)

    def codegen(context, builder, signature, args):
        both = [[builder.extract_value(arg, number) for arg in args[:2]] for number in range(2)]
        rows = [_dots(builder, *addresses, args[3]) for addresses in both]
        for number, row in enumerate(rows):
            store_at(builder, builder.add(args[4], integer(64 * number)), row, 4)
        return joined(
            builder, dots_of_tokens(builder, rows, args[5], number_of_way, vectors_of(builder, args[7], sums))
        )

    int64, pair = types.int64, types.UniTuple(types.int64, 2)
    return sums(pair, pair, kind, int64, int64, int64, way, sums), codegen


@intrinsic(prefer_literal=True)
def begin_dots(typingctx, values, masks, kind, tables, to, sums):
    """Sums, and behind them two slices of DOTS, which are expanded to a panel at `to`, and yet to be multiplied."""
    result = Vectors(sums.dtype, sums.lanes, sums.count + 2)

    def codegen(context, builder, signature, args):
        rows = []
        for number in range(2):
            value, mask = (builder.extract_value(arg, number) for arg in args[:2])
            rows.append(_dots(builder, value, mask, args[3]))
            store_at(builder, builder.add(args[4], integer(64 * number)), rows[number], 4)
        rows = [builder.bitcast(row, result.llvm) for row in rows]
        return joined(builder, [*vectors_of(builder, args[5], sums), *rows])

    pair = types.UniTuple(types.int64, 2)
    return result(pair, pair, kind, types.int64, types.int64, sums), codegen


@intrinsic(prefer_literal=True)
def dot_and_expand(typingctx, values, masks, kind, tables, to, x, way, sums):
    """What `begin_dots` gave, its slices multiplied, and the next two in their place, at `to`.

    Products and expansions take turns, and nothing waits for an expansion: they share a port of the processor.
    """
    number_of_way, tokens = constant_of(way), sums.count // 2 - 1

    def codegen(context, builder, signature, args):
        *totals, left, right = vectors_of(builder, args[7], sums)
        bytes64 = ir.VectorType(I8, 64)
        rows, placed, x, done = [builder.bitcast(row, bytes64) for row in (left, right)], [], args[5], 0

        def multiply(share):
            """Up to so many fifths of the tokens."""
            nonlocal done
            end = tokens * share // 5
            if end == done:
                return
            at = builder.add(x, integer(4 * done))
            totals[2 * done : 2 * end] = dots_of_tokens(builder, rows, at, number_of_way, totals[2 * done : 2 * end])
            done = end

        def place(number):
            value, mask = (builder.extract_value(arg, number) for arg in args[:2])
            placed.append(_expand64(builder, value, mask))

        def put(number):
            placed[number] = _row_by_row(builder, placed[number], args[3])
            store_at(builder, builder.add(args[4], integer(64 * number)), placed[number], 4)

        for share, step, number in ((1, place, 0), (2, place, 1), (3, put, 0), (4, put, 1)):
            multiply(share)
            step(number)
        multiply(5)
        return joined(builder, totals + [builder.bitcast(row, left.type) for row in placed])

    int64, pair = types.int64, types.UniTuple(types.int64, 2)
    return sums(pair, pair, kind, int64, int64, int64, way, sums), codegen


@intrinsic(prefer_literal=True)
def end_dots(typingctx, x, way, sums):
    """The sums, once the slices are multiplied that `dot_and_expand` left."""
    number_of_way, result = constant_of(way), Vectors(sums.dtype, sums.lanes, sums.count - 2)

    def codegen(context, builder, signature, args):
        *totals, left, right = vectors_of(builder, args[2], sums)
        rows = [builder.bitcast(row, ir.VectorType(I8, 64)) for row in (left, right)]
        return joined(builder, dots_of_tokens(builder, rows, args[0], number_of_way, totals))

    return result(types.int64, way, sums), codegen


@intrinsic(prefer_literal=True)
def copy_value(typingctx, source, kind, destination):
    """One stored value, widened."""
    stored = constant_of(kind)

    def codegen(context, builder, signature, args):
        value = widened(builder, load_as(builder, args[0], stored_type(stored, 1), WIDTH[stored]), stored)
        store_at(builder, args[2], value, accumulator(stored).bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, kind, types.int64), codegen
