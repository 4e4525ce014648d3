"""Passes of layout `bitmask`. Masks are seen as `positions.masks` gives them: (slices, cols).

Dense rows lie far apart, often a power of two, so that sixteen of them share a few lines of the cache. So passes go
through a block of columns at a time, in a scratch of a few KiB, where it is turned over: rows to columns, or back.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.bits_of_words import four_of, lowest_bit, popcount
from sparsefmt.jit import jit
from sparsefmt.jit_helpers import larger, on_stack, smaller
from sparsefmt.layouts.jitted.compared import nonzero
from sparsefmt.layouts.jitted.registers import SHUFFLES, address_of, clear, compress, copy, expand, turn
from sparsefmt.layouts.jitted.wide import WIDE, compress_block, expand_block
from sparsefmt.positions.jitted.masks import last_columns

OK, MASK_PADDING, SLICE_OFFSETS, STORED_ZERO = range(4)

BLOCK = 64
"""Columns that are turned over at once."""

FEW = 32 if SHUFFLES else 16 * BLOCK + 1
"""With fewer elements than so many times their width, a block is filled one by one."""

FEW_WIDE = 32
"""With fewer elements than these, a block is filled one by one, though vectors are wide."""

ZERO, ONE, FOUR, LANE = (np.uint64(number) for number in (0, 1, 4, 15))


@jit
def _take_block(bits, first, height, begin, block):
    """Copy rows and columns of `bits` to `block`, (16, BLOCK). What does not exist of it is 0 afterwards."""
    cols, width = bits.shape[1], bits.itemsize
    if height == 16 and begin + BLOCK <= cols:
        source, target = address_of(bits) + (first * cols + begin) * width, address_of(block)
        for lane in range(16):
            copy(source + lane * cols * width, target + lane * BLOCK * width, BLOCK, bits)
        return
    block[:] = 0
    for lane in range(height):
        for col in range(smaller(BLOCK, cols - begin)):
            block[lane, col] = bits[first + lane, begin + col]


@jit
def _turn_block(rows, columns):
    """Turn `rows` (16, BLOCK) over to `columns` (BLOCK, 16)."""
    width, lanes = rows.itemsize, 16 // rows.itemsize
    source, target = address_of(rows), address_of(columns)
    for begin in range(0, BLOCK, lanes):
        for lane in range(0, 16, lanes):
            at = source + (lane * BLOCK + begin) * width
            turn(at, BLOCK * width, target + (begin * 16 + lane) * width, 16 * width, rows)


@jit
def _turn_back(columns, rows):
    """Undo `_turn_block`."""
    width, lanes = rows.itemsize, 16 // rows.itemsize
    source, target = address_of(columns), address_of(rows)
    for begin in range(0, BLOCK, lanes):
        for lane in range(0, 16, lanes):
            at = source + (begin * 16 + lane) * width
            turn(at, 16 * width, target + (lane * BLOCK + begin) * width, BLOCK * width, rows)


@jit
def _nonzeros(columns, kept):
    """Elements of `columns` (BLOCK, 16) that are not zero."""
    found = 0
    for col in range(BLOCK):
        found += popcount(nonzero(address_of(columns) + col * 16 * columns.itemsize, 16, kept, columns))
    return found


@jit
def from_dense(
    bits: np.ndarray, kept: int, mask: np.ndarray, slice_offsets: np.ndarray, values: np.ndarray, table: np.ndarray
) -> bool:
    """Fill `mask` and `values` (nnz,) from `bits` (rows, cols). Writes to the bytes behind `values`, and zeroes them.

    kept: the bits of an element of which zeros have none. table: `registers.compressing`.

    Bits may change meanwhile: each is read once, to a block that nobody changes. Returns whether each slice had as many
    nonzeros as `slice_offsets` says. If not, what was filled is of no use.
    """
    rows, cols = bits.shape
    block, columns = on_stack((16, BLOCK), bits.dtype), on_stack((BLOCK, 16), bits.dtype)
    out, shuffles, column, width = address_of(values), address_of(table), address_of(columns), bits.itemsize
    end = out + values.shape[0] * width
    for slice_ in range(mask.shape[0]):
        first = 16 * slice_
        for begin in range(0, cols, BLOCK):
            if WIDE and first + 16 <= rows and begin + BLOCK <= cols and out + 16 * BLOCK * width <= end:
                source = address_of(bits) + (first * cols + begin) * width
                masks = address_of(mask) + 2 * (slice_ * cols + begin)
                for part in range(0, BLOCK, 64 // width):
                    out = compress_block(source + part * width, cols * width, kept, masks + 2 * part, out, bits)
                continue
            _take_block(bits, first, smaller(16, rows - first), begin, block)
            _turn_block(block, columns)
            if out + 16 * BLOCK * width > end and out + _nonzeros(columns, kept) * width > end:
                return False
            for col in range(smaller(BLOCK, cols - begin)):
                at = column + col * 16 * width
                word = nonzero(at, 16, kept, bits)
                mask[slice_, begin + col] = word
                out = compress(at, word, 16, out, shuffles, bits)
        if out - address_of(values) != np.int64(slice_offsets[slice_ + 1]) * width:
            return False
    clear(out)
    return True


@jit
def _stored(columns, begin, end):
    """Stored elements in columns `begin` to `end` of a slice."""
    stored, whole = 0, begin + ((end - begin) & -4)
    for col in range(begin, whole, 4):
        stored += popcount(four_of(columns, col))
    for col in range(whole, end):
        stored += popcount(np.int64(columns[col]))
    return stored


@jit
def _scatter(present, begin, count, values, stored, rows):
    """Put the elements of `count` columns from `begin` on to where their bits are in `rows` (16, columns)."""
    rows[:] = 0
    at, whole = np.uint64(stored), count & -4
    for col in range(0, count, 4):
        if col < whole:
            word = four_of(present, begin + col)
        else:
            word = ZERO
            for last in range(col, count):
                word |= np.uint64(present[begin + last]) << np.uint64(16 * (last - col))
        while word != ZERO:
            bit = np.uint64(lowest_bit(word))
            rows[bit & LANE, np.uint64(col) + (bit >> FOUR)] = values[at]
            at += ONE
            word &= word - ONE


@jit
def to_dense(
    mask: np.ndarray,
    slice_offsets: np.ndarray,
    values: np.ndarray,
    begin: int,
    first_col: int,
    bits: np.ndarray,
    table: np.ndarray,
) -> None:
    """Fill zeroed `bits` with rows from `begin` on, and columns from `first_col` on, as many as it has.

    Blocks without a bit are not written to. table: `registers.expanding`.
    """
    end, cols = begin + bits.shape[0], bits.shape[1]
    rows, columns = on_stack((16, BLOCK), values.dtype), on_stack((BLOCK, 16), values.dtype)
    shuffles, block, column, width = address_of(table), address_of(rows), address_of(columns), values.itemsize
    for slice_ in range(begin // 16, (end + 15) // 16):
        present = mask[slice_]
        first, last = larger(begin - 16 * slice_, 0), smaller(end - 16 * slice_, 16)
        stored = np.int64(slice_offsets[slice_]) + _stored(present, 0, first_col)
        for from_col in range(0, cols, BLOCK):
            count, at = smaller(BLOCK, cols - from_col), first_col + from_col
            here = _stored(present, at, at + count)
            if here == 0:
                continue
            if WIDE and here >= FEW_WIDE and count == BLOCK and first == 0 and last == 16:
                source = address_of(values) + stored * width
                masks, out = address_of(mask) + 2 * (slice_ * mask.shape[1] + at), address_of(bits)
                out += ((16 * slice_ - begin) * cols + from_col) * width
                for part in range(0, BLOCK, 64 // width):
                    source = expand_block(source, masks + 2 * part, out + part * width, cols * width, values)
                stored += here
                continue
            if here < FEW * width:
                _scatter(present, at, count, values, stored, rows)
            else:
                source = address_of(values) + stored * width
                for col in range(count):
                    word = np.int64(present[at + col])
                    source = expand(source, word, 16, column + col * 16 * width, shuffles, values)
                _turn_back(columns, rows)
            stored += here
            out = address_of(bits) + ((16 * slice_ + first - begin) * cols + from_col) * width
            for lane in range(first, last):
                if count == BLOCK:
                    copy(block + lane * BLOCK * width, out, BLOCK, values)
                else:
                    row = rows[lane]
                    for col in range(count):
                        bits[16 * slice_ + lane - begin, from_col + col] = row[col]
                out += cols * width


@jit
def stored_before(mask: np.ndarray, row: int) -> int:
    """Stored elements of the slice of a row that stand in rows before it."""
    before, rows = 0, (1 << (row % 16)) - 1
    for col in range(mask.shape[1]):
        before += popcount(np.int64(mask[row // 16, col]) & rows)
    return before


@jit
def check(mask: np.ndarray, slice_offsets: np.ndarray, values: np.ndarray, negative_zero: int, rows: int):
    """(fault, slice) of the first broken invariant, or (OK, 0). Reads every array once, nothing outside them."""
    slices, cols = mask.shape
    whole = cols & -4
    if slice_offsets[0] != 0:
        return SLICE_OFFSETS, 0
    for slice_ in range(slices):
        columns = mask[slice_]
        last = last_columns(columns)
        stored, every = np.int64(0), np.uint16(0)
        for col in range(0, cols, 4):
            stored += popcount(four_of(columns, col) if col < whole else last)
        height = rows - 16 * slice_
        if height < 16:
            for col in range(cols):
                every |= mask[slice_, col]
            if np.int64(every) >> height:
                return MASK_PADDING, slice_
        if np.int64(slice_offsets[slice_]) + stored != np.int64(slice_offsets[slice_ + 1]):
            return SLICE_OFFSETS, slice_
    if np.int64(slice_offsets[slices]) != values.shape[0]:
        return SLICE_OFFSETS, slices
    zeros = np.int64(0)
    for stored in range(values.shape[0]):
        zeros += np.int64(values[stored] == 0) | np.int64(values[stored] == negative_zero)
    if zeros:
        return STORED_ZERO, 0
    return OK, 0
