"""Sixteen rows of values as they lie in memory, transposed in registers, so that rows lie in the lanes of a vector.

`fma_transposed` multiplies the columns at once, `transpose_columns` writes them to memory. Both take rows a piece after
the other, of a copy that `copy_block` makes of a block. Nothing is checked here: kernels see arrays of checked tiles
only.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from sparsefmt.isa import NEON
from sparsefmt.jit import jit
from sparsefmt.kernels.kinds import BF16, F64, ONE_BYTE, WIDTH
from sparsefmt.kernels.llvm import behind, fused, stored_type, widened
from sparsefmt.kernels.raw_memory import prefetch, store_scalar
from sparsefmt.kernels.simd import Vectors, accumulator, broadcast, joined, store, vectors_of
from sparsefmt.llvm import I8, I16, I32, concatenated, constant_of, integer, lanes_of, load_as, store_at
from sparsefmt.positions.masks import SLICE_ROWS

PIECE = 16
"""Bytes of a vector that are transposed at once."""

BLOCK_BYTES = 512
"""Bytes of a row that are copied at once, before they are transposed. Rows often lie a power of two apart, and then
share a few places of the cache: a line would be gone before all its pieces are taken."""

PITCH = BLOCK_BYTES + 64
"""From one row to the next in the copy, which spreads over the whole cache."""

SCRATCH_BYTES = 2 * SLICE_ROWS * PITCH
"""Room for the copies of two slices."""


def piece_bytes(kind: int) -> int:
    """Bytes of a row that are transposed at once: values of one byte are made two bytes first."""
    return PIECE // 2 if kind in ONE_BYTE else PIECE


def piece_columns(kind: int) -> int:
    """Columns that are transposed at once."""
    return piece_bytes(kind) // WIDTH[kind]


def _rows_at_once(kind: int) -> int:
    """Rows that are transposed by themselves: as many as elements of a word fill 16 bytes."""
    return 2 if kind == F64 else 4


def _transposed(builder, address, stride, kind: int, row_count: int = SLICE_ROWS) -> list:
    """The columns of a piece of sixteen rows, `stride` bytes apart, as LLVM vectors, widened.

    Rows that lie next to each other in the result come from different loads into the same 16 bytes of a vector. So no
    shuffle crosses the borders of 16 bytes, which is what processors do fastest.
    """
    # 16-bit values go in pairs, and are taken apart at the end
    words = I32 if WIDTH[kind] < 4 else stored_type(kind, 1).element
    per_piece = _rows_at_once(kind)
    piece_type = ir.VectorType(words, per_piece)
    rows = []
    for first in range(per_piece):
        pieces = []
        for row in range(first, row_count, per_piece):
            row_at = builder.add(address, builder.mul(stride, integer(row)))
            if kind in ONE_BYTE:
                piece = load_as(builder, row_at, stored_type(kind, 8), 1)
                pieces.append(builder.bitcast(builder.zext(piece, ir.VectorType(I16, 8)), piece_type))
            else:
                pieces.append(load_as(builder, row_at, piece_type, WIDTH[kind]))
        rows.append(concatenated(builder, pieces))

    def shuffled(left, right, pattern: list[int]):
        """The pattern numbers the elements of 16 bytes of one vector, then those of the other."""
        lanes = [
            base + lane if lane < per_piece else base + lane - per_piece + row_count
            for base in range(0, row_count, per_piece)
            for lane in pattern
        ]
        return builder.shuffle_vector(left, right, lanes_of(lanes))

    if kind == F64:
        return [shuffled(rows[0], rows[1], pattern) for pattern in ([0, 2], [1, 3])]
    low, high = [0, 4, 1, 5], [2, 6, 3, 7]
    columns = []
    for pattern in (low, high):
        left, right = shuffled(rows[0], rows[1], pattern), shuffled(rows[2], rows[3], pattern)
        columns += [shuffled(left, right, [0, 1, 4, 5]), shuffled(left, right, [2, 3, 6, 7])]
    if WIDTH[kind] >= 4:
        return columns
    sixteen = ir.Constant(columns[0].type, [16] * row_count)
    single = ir.VectorType(ir.FloatType(), row_count)
    singles = []
    for pair in columns:
        if kind == BF16:
            upper = builder.and_(pair, ir.Constant(pair.type, [0xFFFF0000] * row_count))
            singles += [builder.bitcast(half, single) for half in (builder.shl(pair, sixteen), upper)]
        else:
            halves = [
                builder.trunc(half, ir.VectorType(I16, row_count)) for half in (pair, builder.lshr(pair, sixteen))
            ]
            if kind in ONE_BYTE:
                halves = [builder.trunc(half, stored_type(kind, row_count)) for half in halves]
            singles += [widened(builder, half, kind) for half in halves]
    return singles


@intrinsic(prefer_literal=True)
def transposed(typingctx, address, stride, kind):
    """The columns of a piece of sixteen rows that lie `stride` bytes apart: a vector of sixteen rows each."""
    stored = constant_of(kind)
    result = Vectors(accumulator(stored), SLICE_ROWS, piece_columns(stored))

    def codegen(context, builder, signature, args):
        return joined(builder, _transposed(builder, args[0], args[1], stored))

    return result(types.int64, types.int64, kind), codegen


def _by_groups(builder, addresses, kind: int, totals: list, slices: int) -> list:
    """NEON: what `fma_transposed` does, a few rows after the other: they fill its vectors of 16 bytes."""
    address, stride, x = addresses
    rows, tokens = _rows_at_once(kind), len(totals) // slices
    single = ir.VectorType(totals[0].type.element, rows)
    row_bytes, columns = piece_columns(kind) * tokens * 16 // rows, piece_columns(kind)
    activations = [load_as(builder, builder.add(x, integer(at)), single, 16 // rows) for at in range(0, row_bytes, 16)]
    result = []
    for number in range(slices):
        of_slice = totals[number * tokens : (number + 1) * tokens]
        groups: list[list] = [[] for _ in of_slice]
        for first in range(0, SLICE_ROWS, rows):
            lanes = lanes_of(list(range(first, first + rows)))
            sums = [builder.shuffle_vector(total, total, lanes) for total in of_slice]
            at = builder.add(address, builder.mul(stride, integer(SLICE_ROWS * number + first)))
            weights = _transposed(builder, at, stride, kind, rows)
            for column in range(columns):
                for token in range(tokens):
                    place = column * tokens + token
                    activation = activations[place // rows]
                    activation = builder.shuffle_vector(activation, activation, lanes_of([place % rows] * rows))
                    sums[token] = fused(builder, weights[column], activation, sums[token])
            for token in range(tokens):
                groups[token].append(sums[token])
            # loads of the next rows stay behind these products: LLVM would load all first, and spill
            address = behind(builder, address, *sums)
        result += [concatenated(builder, group) for group in groups]
    return result


@intrinsic(prefer_literal=True)
def fma_transposed(typingctx, address, stride, kind, slices, x, sums):
    """sums[slice, token] + column * x[column, token] for the columns of `transposed`, in order; so many `slices`."""
    stored, slice_count = constant_of(kind), constant_of(slices)
    tokens = sums.count // slice_count

    def codegen(context, builder, signature, args):
        totals = vectors_of(builder, args[5], sums)
        address, stride, x = args[0], args[1], args[4]
        if NEON:
            return joined(builder, _by_groups(builder, (address, stride, x), stored, totals, slice_count))
        for number in range(slice_count):
            if number:
                # loads of the next slice stay behind it: LLVM would load all slices first, and spill
                builder.fence("seq_cst", "singlethread")
            first = builder.add(address, builder.mul(stride, integer(SLICE_ROWS * number)))
            for column, weights in enumerate(_transposed(builder, first, stride, stored)):
                for token in range(tokens):
                    at = builder.add(x, integer(sums.itemsize * (column * tokens + token)))
                    index = number * tokens + token
                    totals[index] = fused(builder, weights, broadcast(builder, at, sums), totals[index])
        return joined(builder, totals)

    int64 = types.int64
    return sums(int64, int64, kind, slices, int64, sums), codegen


@intrinsic
def copy_line(typingctx, source, destination):
    """Copy 64 bytes."""

    def codegen(context, builder, signature, args):
        store_at(builder, args[1], load_as(builder, args[0], ir.VectorType(I8, 64), 1), 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@jit
def copy_block(values, stride, rows, row_bytes, to, all_rows):
    """Copy some bytes of some rows, PITCH bytes apart, and fill up with zeros to whole pieces and `all_rows` rows."""
    for row in range(all_rows):
        to_row = to + row * PITCH
        filled = 0
        if row < rows:
            filled = row_bytes
            # perhaps up to 64 bytes more: they can be read
            for at in range(0, row_bytes, 64):
                copy_line(values + row * stride + at, to_row + at)
        for at in range(filled, (row_bytes + PIECE - 1) // PIECE * PIECE, 2):
            store_scalar(to_row + at, np.uint16(0))


def transpose_columns(kind, values, stride, rows, columns, to, pitch, scratch):
    """Write some columns of a slice, whose rows lie `stride` bytes apart, to `to`, `pitch` bytes apart; return where
    the next ones begin.

    Fills up with zeros to sixteen rows, and to up to seven more columns. scratch: SCRATCH_BYTES.
    """
    raise NotImplementedError("jitted code only")


@overload(transpose_columns, prefer_literal=True)
def _make_transpose_columns(kind, values, stride, rows, columns, to, pitch, scratch):
    width, per_piece = WIDTH[kind.literal_value], piece_columns(kind.literal_value)
    # a half that begins within a line of the cache ends within another one
    lines, two, step = BLOCK_BYTES // 128 + 1, 2, piece_bytes(kind.literal_value)

    def transpose(kind, values, stride, rows, columns, to, pitch, scratch):
        for done in range(0, columns * width, BLOCK_BYTES):
            row_bytes = min(BLOCK_BYTES, columns * width - done)
            copy_block(values + done, stride, min(rows, SLICE_ROWS), row_bytes, scratch, SLICE_ROWS)
            ahead = values + done + SLICE_ROWS * stride
            for at in range(0, row_bytes, step):
                # the same block of the next slice, half a row after the other
                half = at // step % 2
                prefetch(ahead + half * BLOCK_BYTES // 2, lines, two)
                ahead += half * stride
                store(to, pitch, transposed(scratch + at, PITCH, kind))
                to += per_piece * pitch
        return values + columns * width

    return transpose
