"""Passes over masks in slices: (slices, cols), bit i of mask[s, c] for row 16 s + i and column c.

They are uint16, or uint8 if no slice has more than 8 rows (`positions/masks.py`).

A row's elements may lie anywhere, `stride` elements apart, from begins[row] on: side by side with 1, in the slots of
layout `permuted` with 16. Elements in order of slices lie behind each other.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.bits_of_words import four_of, lowest_bit, popcount
from sparsefmt.jit import jit
from sparsefmt.jit_helpers import on_stack, smaller
from sparsefmt.llvm import integer, load_as, store_at

COLUMNS = 32
"""Columns of a slice that go to its rows together: two bytes of each, or four bytes of a row."""

ZERO, ONE, THREE, FOUR, LANES, LANE = (np.uint64(number) for number in (0, 1, 3, 4, 16, 15))


@jit
def last_columns(columns):
    """The bits of the columns of a slice behind the last four of four, up to three of them, as `four_of` gives them."""
    bits = ZERO
    for column in range(columns.shape[0] & -4, columns.shape[0]):
        bits |= np.uint64(columns[column]) << np.uint64(16 * (column & 3))
    return bits


@jit
def offsets(mask, offsets):
    """Fill `offsets` (slices + 1,) with how many bits are set before each slice, and in all."""
    total = 0
    whole = mask.shape[1] & -4
    for slice_ in range(mask.shape[0]):
        columns = mask[slice_]
        last = last_columns(columns)
        offsets[slice_] = total
        for column in range(0, mask.shape[1], 4):
            total += popcount(four_of(columns, column) if column < whole else last)
    offsets[mask.shape[0]] = total


@jit
def _bits_to(found, word, weight):
    for bit in range(64):
        found[bit] += np.int64((word >> np.uint64(bit)) & ONE) * weight


@jit
def counts(mask, counts):
    """Fill `counts` (rows,) with how many bits each row has.

    Words of four columns are added up bit by bit in counters of four binary digits, so that single bits are looked at
    once for sixteen words.
    """
    found = on_stack(64, np.int64)
    whole = mask.shape[1] & -4
    for slice_ in range(mask.shape[0]):
        columns = mask[slice_]
        last = last_columns(columns)
        found[:] = 0
        ones, twos, fours, eights = ZERO, ZERO, ZERO, ZERO
        for column in range(0, mask.shape[1], 4):
            word = four_of(columns, column) if column < whole else last
            carry = ones & word
            ones ^= word
            word = twos & carry
            twos ^= carry
            carry = fours & word
            fours ^= word
            word = eights & carry
            eights ^= carry
            if word != ZERO:
                _bits_to(found, word, 16)
        _bits_to(found, ones, 1)
        _bits_to(found, twos, 2)
        _bits_to(found, fours, 4)
        _bits_to(found, eights, 8)
        for lane in range(smaller(16, counts.shape[0] - 16 * slice_)):
            counts[16 * slice_ + lane] = found[lane] + found[16 + lane] + found[32 + lane] + found[48 + lane]


@jit
def to_rows(mask, elements, begins, stride, out, columns):
    """Put elements in order of slices where their rows are, and their columns likewise."""
    at, step = ZERO, np.uint64(stride)
    cursors = on_stack(16, np.uint64)
    whole = mask.shape[1] & -4
    for slice_ in range(mask.shape[0]):
        slice_columns = mask[slice_]
        last = last_columns(slice_columns)
        for row in range(smaller(16, begins.shape[0] - 16 * slice_)):
            cursors[row] = begins[16 * slice_ + row]
        for column in range(0, mask.shape[1], 4):
            bits = four_of(slice_columns, column) if column < whole else last
            while bits != ZERO:
                bit = np.uint64(lowest_bit(bits))
                lane = bit & LANE
                cursor = cursors[lane]
                out[cursor] = elements[at]
                columns[cursor] = np.uint64(column) + (bit >> FOUR)
                cursors[lane] = cursor + step
                at += ONE
                bits &= bits - ONE


@jit
def from_rows(mask, elements, begins, stride, out):
    """Undo `to_rows`: elements that lie where their rows are, to order of slices."""
    at, step = ZERO, np.uint64(stride)
    cursors = on_stack(16, np.uint64)
    whole = mask.shape[1] & -4
    for slice_ in range(mask.shape[0]):
        columns = mask[slice_]
        last = last_columns(columns)
        for row in range(smaller(16, begins.shape[0] - 16 * slice_)):
            cursors[row] = begins[16 * slice_ + row]
        for column in range(0, mask.shape[1], 4):
            bits = four_of(columns, column) if column < whole else last
            while bits != ZERO:
                lane = np.uint64(lowest_bit(bits)) & LANE
                out[at] = elements[cursors[lane]]
                cursors[lane] += step
                at += ONE
                bits &= bits - ONE


@jit
def set_bits(columns, begins, counts, stride, mask):
    """Set the bits of a zeroed mask: of the columns of each row, counts[row] of them from begins[row] on."""
    for row in range(begins.shape[0]):
        bit = np.uint16(1 << (row & 15))
        at, step = np.uint64(begins[row]), np.uint64(stride)
        for _ in range(counts[row]):
            mask[row >> 4, np.int64(columns[at])] |= bit
            at += step


@jit
def transposed(block):
    """An 8 x 8 block of bits the other way round: bit i of byte j of the word becomes bit j of byte i."""
    swapped = (block ^ (block >> np.uint64(7))) & np.uint64(0x00AA00AA00AA00AA)
    block ^= swapped ^ (swapped << np.uint64(7))
    swapped = (block ^ (block >> np.uint64(14))) & np.uint64(0x0000CCCC0000CCCC)
    block ^= swapped ^ (swapped << np.uint64(14))
    swapped = (block ^ (block >> np.uint64(28))) & np.uint64(0x00000000F0F0F0F0)
    return block ^ swapped ^ (swapped << np.uint64(28))


@intrinsic
def _to_rows(typingctx, columns, out, stride):
    """The bits of COLUMNS columns of a whole slice, uint16 at address `columns`, to its sixteen rows, `stride` bytes
    apart from address `out` on."""

    def codegen(context, builder, signature, args):
        columns, out, stride = args
        vector = ir.VectorType(ir.IntType(16), COLUMNS)
        bits = load_as(builder, columns, vector, 2)
        out = builder.add(out, builder.mul(stride, integer(15)))
        for _ in range(16):
            row = builder.bitcast(builder.icmp_signed("<", bits, ir.Constant(vector, None)), ir.IntType(COLUMNS))
            store_at(builder, out, row, 1)
            bits, out = builder.shl(bits, ir.Constant(vector, [1] * COLUMNS)), builder.sub(out, stride)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@jit
def to_row_bytes(mask, out):
    """Fill `out`, uint8 (rows, at least ceil(cols / 8)): column c of a row is bit c % 8 of byte c // 8."""
    cols, stride = mask.shape[1], out.shape[1]
    mask_at, out_at = np.int64(mask.ctypes.data), np.int64(out.ctypes.data)
    for slice_ in range(mask.shape[0]):
        height, whole = smaller(16, out.shape[0] - 16 * slice_), 0
        if height == 16:
            whole = cols // COLUMNS * COLUMNS
            for column in range(0, whole, COLUMNS):
                _to_rows(mask_at + 2 * (slice_ * cols + column), out_at + 16 * slice_ * stride + column // 8, stride)
        for group in range(whole // 8, (cols + 7) // 8):
            low, high = ZERO, ZERO
            for column in range(8 * group, smaller(8 * group + 8, cols)):
                bits, shift = np.uint64(mask[slice_, column]), np.uint64(8 * (column - 8 * group))
                low |= (bits & np.uint64(255)) << shift
                high |= (bits >> np.uint64(8)) << shift
            low, high = transposed(low), transposed(high)
            for lane in range(height):
                if lane == 8:
                    low = high
                out[16 * slice_ + lane, group] = low & np.uint64(255)
                low >>= np.uint64(8)


@jit
def from_row_bytes(rows, mask):
    """Undo `to_row_bytes`; False if a row has a bit beyond the columns."""
    cols, good = mask.shape[1], True
    for slice_ in range(mask.shape[0]):
        height = smaller(16, rows.shape[0] - 16 * slice_)
        for group in range((cols + 7) // 8):
            low, high = ZERO, ZERO
            for lane in range(smaller(height, 8)):
                low |= np.uint64(rows[16 * slice_ + lane, group]) << np.uint64(8 * lane)
            for lane in range(8, height):
                high |= np.uint64(rows[16 * slice_ + lane, group]) << np.uint64(8 * lane - 64)
            low, high = transposed(low), transposed(high)
            present = smaller(8, cols - 8 * group)
            for column in range(present):
                shift = np.uint64(8 * column)
                both = ((low >> shift) & np.uint64(255)) | ((high >> shift) & np.uint64(255)) << np.uint64(8)
                mask[slice_, 8 * group + column] = both
            if present < 8 and (low | high) >> np.uint64(8 * present) != ZERO:
                good = False
    return good
