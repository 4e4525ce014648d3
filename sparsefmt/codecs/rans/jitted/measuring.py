"""How often elements occur, and how large those of each row and each column are: what a model is made of."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.bits_of_words import four_of, lowest_bit, popcount
from sparsefmt.codecs.rans.jitted.eight_lanes import byte_shuffled
from sparsefmt.jit import jit
from sparsefmt.jit_helpers import on_stack, smaller
from sparsefmt.positions.jitted.masks import last_columns

ZERO, ONE, FOUR, LANE = (np.uint64(number) for number in (0, 1, 4, 15))

BLOCK = 1 << 10
"""Columns of a slice whose sizes are computed at a time: 32 KiB. Their sums fit 32 bits."""

PADDING = 8
"""Sizes that may be read in vain."""

SIZES = 16 * BLOCK + PADDING


@jit
def count_tops(elements, shift, counts):
    """Add to counts[element >> shift]; all elements or'ed together. counts: uint32."""
    every, right = ZERO, np.uint64(shift)
    for index in range(np.uint64(elements.shape[0])):
        element = np.uint64(elements[index])
        every |= element
        counts[element >> right] += np.uint32(1)
    return every


@jit
def _fill_sizes(elements, kept, right, most, sizes):
    """sizes[i] = p, or most - p if that is less, with p the bits `kept` of an element >> right."""
    for index in range(np.uint64(elements.shape[0])):
        place = np.uint32((elements[index] & kept) >> right)
        other = np.uint32(most - place)
        sizes[index] = place if place < other else other


@intrinsic
def _column_measured(typingctx, sizes, bits, shuffles, row_sums, row_counts):
    """Add the sizes of a column of a slice to those of its rows, and whether they are not 0 to their counts. x86.

    sizes: address of uint16, of the rows whose bit is set. shuffles: address of `eight_lanes.APART`. row_sums,
    row_counts: addresses of uint32 (16,).

    Returns their sum, and how many are not 0 << 32.
    """

    def codegen(context, builder, signature, args):
        sizes, bits, shuffles, row_sums, row_counts = args
        word, byte_lanes = ir.IntType(64), ir.VectorType(ir.IntType(8), 16)
        halves, sums = ir.VectorType(ir.IntType(16), 8), ir.VectorType(ir.IntType(32), 16)

        def load(address, kind):
            return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)

        low = builder.and_(bits, ir.Constant(word, 255))
        high = builder.lshr(bits, ir.Constant(word, 8))
        later = builder.add(sizes, builder.shl(builder.ctpop(low), ir.Constant(word, 1)))
        parts = []
        for address, lanes in ((sizes, low), (later, high)):
            order = load(builder.add(shuffles, builder.shl(lanes, ir.Constant(word, 4))), byte_lanes)
            parts.append(builder.bitcast(byte_shuffled(builder, load(address, byte_lanes), order), halves))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), 16), list(range(16)))
        column = builder.shuffle_vector(*parts, lanes)
        some = builder.icmp_unsigned("!=", column, ir.Constant(column.type, [0] * 16))
        wide = builder.zext(column, sums)
        for address, added in ((row_sums, wide), (row_counts, builder.zext(some, sums))):
            changed = builder.add(load(address, sums), added)
            builder.store(changed, builder.inttoptr(address, sums.as_pointer()), align=4)
        kind = ir.FunctionType(ir.IntType(32), [sums])
        total = builder.call(builder.module.declare_intrinsic("llvm.vector.reduce.add.v16i32", (), kind), [wide])
        count = builder.ctpop(builder.zext(builder.bitcast(some, ir.IntType(16)), word))
        return builder.or_(builder.zext(total, word), builder.shl(count, ir.Constant(word, 32)))

    return types.uint64(sizes, bits, shuffles, row_sums, row_counts), codegen


@jit
def _sum_of_squares(sizes, count):
    total = ZERO
    for index in range(np.uint64(count)):
        total += np.uint64(np.uint32(sizes[index]) * np.uint32(sizes[index]))
    return total


@jit
def measure_slices(mask, elements, kept, right, most, shuffles, row_sums, row_counts, column_sums, column_counts):
    """Add up the sizes of the elements that a mask in slices keeps, by row and by column, and count those that are not
    0. The sum of their squares.

    kept, right, most: as in `_fill_sizes`; sizes are below 2^15. shuffles: `eight_lanes.APART`, or empty where there
    are not instructions of x86. row_sums, column_sums: int64. row_counts, column_counts: uint32.
    """
    rows, cols = row_sums.shape[0], mask.shape[1]
    sizes = on_stack(SIZES, np.uint16)
    some_sums, some_counts = on_stack(16, np.uint32), on_stack(16, np.uint32)
    sizes_at, shuffles_at = np.int64(sizes.ctypes.data), np.int64(shuffles.ctypes.data)
    sums_at, counts_at = np.int64(some_sums.ctypes.data), np.int64(some_counts.ctypes.data)
    squares, begin = 0.0, 0
    for slice_ in range(mask.shape[0]):
        line = mask[slice_]
        last = last_columns(line)
        for first in range(0, cols, BLOCK):
            width, end = smaller(BLOCK, cols - first), begin
            for column in range(first, first + width, 4):
                end += popcount(four_of(line, column) if column + 4 <= cols else last)
            _fill_sizes(elements[begin:end], kept, right, most, sizes)
            squares += np.float64(_sum_of_squares(sizes, end - begin))
            begin = end
            some_sums[:] = 0
            some_counts[:] = 0
            if shuffles.shape[0]:
                at = sizes_at
                for column in range(np.uint64(first), np.uint64(first + width)):
                    bits = np.uint64(line[column])
                    found = _column_measured(at, bits, shuffles_at, sums_at, counts_at)
                    at += 2 * popcount(bits)
                    column_sums[column] += np.int64(np.uint32(found))
                    column_counts[column] += np.uint32(found >> np.uint64(32))
            else:
                place = ZERO
                for column in range(first, first + width, 4):
                    bits = four_of(line, column) if column + 4 <= cols else last
                    while bits != ZERO:
                        bit = np.uint64(lowest_bit(bits))
                        size, here = np.uint32(sizes[place]), np.uint64(column) + (bit >> FOUR)
                        some_sums[bit & LANE] += size
                        some_counts[bit & LANE] += np.uint32(size != 0)
                        column_sums[here] += np.int64(size)
                        column_counts[here] += np.uint32(size != 0)
                        place += ONE
                        bits &= bits - ONE
            for lane in range(smaller(16, rows - 16 * slice_)):
                row_sums[16 * slice_ + lane] += np.int64(some_sums[lane])
                row_counts[16 * slice_ + lane] += some_counts[lane]
    return squares


@jit
def measure_rows(elements, kept, right, most, row_sums, row_counts, column_sums, column_counts):
    """`measure_slices` for elements at every position, row by row."""
    cols, squares = column_sums.shape[0], 0.0
    sizes = np.empty(smaller(cols, 16 * BLOCK), np.uint16)
    for row in range(row_sums.shape[0]):
        for first in range(0, cols, sizes.shape[0]):
            width = smaller(sizes.shape[0], cols - first)
            begin = row * cols + first
            _fill_sizes(elements[begin : begin + width], kept, right, most, sizes)
            squares += np.float64(_sum_of_squares(sizes, width))
            total, count = np.uint32(0), np.uint32(0)
            for index in range(np.uint64(width)):
                size, column = np.uint32(sizes[index]), np.uint64(first) + index
                total += size
                count += np.uint32(size != 0)
                column_sums[column] += np.int64(size)
                column_counts[column] += np.uint32(size != 0)
            row_sums[row] += np.int64(total)
            row_counts[row] += count
    return squares
