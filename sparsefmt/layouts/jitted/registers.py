"""Elements on their way between dense rows and layouts, in registers: compressed, expanded and turned over.

Elements are unsigned integers of 1, 2, 4 or 8 bytes, as many as those of `like` have, an array of which nothing else is
used. Memory is addressed by plain int64 addresses, as `address_of` gives them, and nothing is checked; some functions
write or read a little more than what they are asked for, and say so. Counts of elements must be constants.

A vector of 16 bytes has up to 16 elements. With AVX2 and NEON, a table with a row for each mask of them says how to
shuffle its bytes, so that those whose bit is set are side by side, or come to where their bits are. Elsewhere elements
move one by one, without branches.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.isa import ISA, NEON
from sparsefmt.layouts.memory import frozen
from sparsefmt.llvm import I1, I8, I16, I32, I64, call, constant_of, everywhere, integer, lanes_of, load_as, store_at

BYTES = 16
"""Bytes of a vector."""

SHUFFLES = ISA != "portable" or NEON
"""Whether there is an instruction that puts the bytes of a vector into any order."""

BITS_AT_ONCE = 8
"""Bits of a mask that are looked up together: eight elements, or two, four or eight vectors of fewer."""

_NOTHING = 0x80
"""As an index, gives 0."""

BYTES16, BYTES32 = ir.VectorType(I8, BYTES), ir.VectorType(I8, 2 * BYTES)


def _lanes(width: int) -> int:
    """Elements that are looked up together."""
    return min(BITS_AT_ONCE, BYTES // width)


def _table(width: int, compresses: bool) -> np.ndarray:
    """For each mask of `_lanes(width)` elements the order of the bytes of a vector: 16 bytes each."""
    if not SHUFFLES:
        return np.zeros(0, np.uint8)
    lanes = _lanes(width)
    table = np.full((1 << lanes, BYTES // width, width), _NOTHING, np.uint8)
    for mask in range(1 << lanes):
        kept = [lane for lane in range(lanes) if mask >> lane & 1]
        for number, lane in enumerate(kept):
            target, source = (number, lane) if compresses else (lane, number)
            table[mask, target] = range(source * width, source * width + width)
    return table.reshape(-1)


_COMPRESSING, _EXPANDING = (
    {width: frozen(_table(width, compresses)) for width in (1, 2, 4, 8)} for compresses in (True, False)
)
_PLACES = frozen(_COMPRESSING[1].reshape(-1, 2, 8)[:, 0].reshape(-1))
"""For each mask of eight columns the numbers of those whose bit is set."""


def compressing(bits: np.ndarray) -> np.ndarray:
    """The table of `compress` for such elements. Where none is used, it is empty."""
    return _COMPRESSING[bits.itemsize]


def expanding(bits: np.ndarray) -> np.ndarray:
    """The table of `expand` for such elements. Where none is used, it is empty."""
    return _EXPANDING[bits.itemsize]


def places() -> np.ndarray:
    """The table of `compress_columns`. Where none is used, it is empty."""
    return _PLACES


@intrinsic
def address_of(typingctx, array):
    """The address of the first element of an array."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(context.make_array(signature.args[0])(context, builder, args[0]).data, I64)

    return types.int64(array), codegen


def _shuffled(builder, vector, order):
    """The bytes of a vector in another order."""
    name = "llvm.aarch64.neon.tbl1.v16i8" if NEON else "llvm.x86.ssse3.pshuf.b.128"
    return call(builder, name, BYTES16, [vector, order])


def _row_of(builder, bits, first: int, lanes: int, table):
    """The address of the row of a table of 16 bytes each for the bits `first` to `first + lanes - 1`, and how many of
    them are set, both as int64."""
    mask = builder.and_(builder.lshr(bits, integer(first)), integer((1 << lanes) - 1))
    return builder.add(table, builder.shl(mask, integer(4))), builder.ctpop(mask)


@intrinsic(prefer_literal=True)
def compress(typingctx, address, bits, count, out, table, like):
    """Elements of `count`, 8 or 16, whose bit is set, side by side at `out`. Returns the address behind them.

    Writes up to 16 bytes more than these take. bits: int64, of which the others are not looked at.
    """
    elements, nbytes = constant_of(count), like.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        source, mask, _, out, table, _ = args
        lanes = _lanes(nbytes)
        if not SHUFFLES:
            for lane in range(elements):
                at = builder.add(source, integer(lane * nbytes))
                store_at(builder, out, load_as(builder, at, ir.IntType(8 * nbytes), nbytes), nbytes)
                bit = builder.and_(builder.lshr(mask, integer(lane)), integer(1))
                out = builder.add(out, builder.mul(bit, integer(nbytes)))
            return out
        for first in range(0, elements, lanes):
            at = builder.add(source, integer(first * nbytes))
            row, stored = _row_of(builder, mask, first, lanes, table)
            if nbytes == 1:
                vector = _lower(builder, load_as(builder, at, I64, 1))
            else:
                vector = load_as(builder, at, BYTES16, nbytes)
            store_at(builder, out, _shuffled(builder, vector, load_as(builder, row, BYTES16, 1)), nbytes)
            out = builder.add(out, builder.mul(stored, integer(nbytes)))
        return out

    int64 = types.int64
    return int64(int64, int64, count, int64, int64, like), codegen


def _lower(builder, word):
    """A vector whose first eight bytes are a word."""
    pair = ir.VectorType(I64, 2)
    return builder.bitcast(builder.insert_element(ir.Constant(pair, None), word, ir.Constant(I32, 0)), BYTES16)


@intrinsic(prefer_literal=True)
def expand(typingctx, address, bits, count, out, table, like):
    """Write `count` elements, 8 or 16, to `out`: where a bit is set the next of those at `address`, else 0.

    Returns the address behind what was read. Reads up to 16 bytes more.
    """
    elements, nbytes = constant_of(count), like.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        source, mask, _, out, table, _ = args
        lanes, element = _lanes(nbytes), ir.IntType(8 * nbytes)
        for first in range(0, elements, lanes if SHUFFLES else 1):
            at = builder.add(out, integer(first * nbytes))
            if not SHUFFLES:
                present = builder.and_(builder.lshr(mask, integer(first)), integer(1))
                value = load_as(builder, source, element, nbytes)
                # all bits or none: a condition would become a branch, which is mispredicted
                wanted = builder.sub(integer(0), present)
                wanted = wanted if element == I64 else builder.trunc(wanted, element)
                store_at(builder, at, builder.and_(value, wanted), nbytes)
                source = builder.add(source, builder.mul(present, integer(nbytes)))
                continue
            row, stored = _row_of(builder, mask, first, lanes, table)
            vector = _shuffled(builder, load_as(builder, source, BYTES16, nbytes), load_as(builder, row, BYTES16, 1))
            if nbytes == 1:
                word = builder.extract_element(builder.bitcast(vector, ir.VectorType(I64, 2)), ir.Constant(I32, 0))
                store_at(builder, at, word, 1)
            else:
                store_at(builder, at, vector, nbytes)
            source = builder.add(source, builder.mul(stored, integer(nbytes)))
        return source

    int64 = types.int64
    return int64(int64, int64, count, int64, int64, like), codegen


@intrinsic
def compress_columns(typingctx, bits, first, out, table):
    """The numbers of the columns, of eight from `first` on, whose bit is set, as uint32 side by side at `out`.

    Returns the address behind them. Writes 32 bytes, whatever the bits. bits: int64, of which others are not looked at.
    """

    def codegen(context, builder, signature, args):
        mask, first, out, table = args
        if not SHUFFLES:
            for lane in range(8):
                store_at(builder, out, builder.trunc(builder.add(first, integer(lane)), I32), 4)
                bit = builder.and_(builder.lshr(mask, integer(lane)), integer(1))
                out = builder.add(out, builder.shl(bit, integer(2)))
            return out
        mask = builder.and_(mask, integer(255))
        eight = load_as(builder, builder.add(table, builder.shl(mask, integer(3))), ir.VectorType(I8, 8), 1)
        columns = builder.add(builder.zext(eight, ir.VectorType(I32, 8)), everywhere(builder, first, I32, 8))
        store_at(builder, out, columns, 4)
        return builder.add(out, builder.shl(builder.ctpop(mask), integer(2)))

    int64 = types.int64
    return int64(int64, int64, int64, int64), codegen


def _interleaved(builder, low, high):
    """The lanes of one vector and of another in turns, as two vectors."""
    count = low.type.count
    lanes = [lane for pair in zip(range(count), range(count, 2 * count), strict=True) for lane in pair]
    return [builder.shuffle_vector(low, high, lanes_of(lanes[begin : begin + count])) for begin in (0, count)]


@intrinsic(prefer_literal=True)
def turn(typingctx, address, stride, out, out_stride, like):
    """Turn a square over, whose rows are vectors of 16 bytes: row i, from `address` on, becomes column i of `out`.

    stride, out_stride: bytes from row to row, int64.
    """
    nbytes = like.dtype.bitwidth // 8
    lanes = BYTES // nbytes

    def codegen(context, builder, signature, args):
        source, stride, out, out_stride, _ = args
        vector = ir.VectorType(ir.IntType(8 * nbytes), lanes)
        rows = []
        for _ in range(lanes):
            rows.append(load_as(builder, source, vector, nbytes))
            source = builder.add(source, stride)
        # interleaving row i with row i + half, again and again, turns a square over
        for _ in range(lanes.bit_length() - 1):
            pairs = zip(rows[: lanes // 2], rows[lanes // 2 :], strict=True)
            rows = [part for pair in pairs for part in _interleaved(builder, *pair)]
        for row in rows:
            store_at(builder, out, row, nbytes)
            out = builder.add(out, out_stride)
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(int64, int64, int64, int64, like), codegen


@intrinsic(prefer_literal=True)
def copy(typingctx, address, out, count, like):
    """Copy `count` elements, which are a multiple of 32 bytes."""
    size = constant_of(count) * like.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        for begin in range(0, size, 2 * BYTES):
            part = load_as(builder, builder.add(args[0], integer(begin)), BYTES32, 1)
            store_at(builder, builder.add(args[1], integer(begin)), part, 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, count, like), codegen


@intrinsic(prefer_literal=True)
def or_where(typingctx, address, bits, number, like):
    """Or `number`, an int64, to those of 16 elements whose bit is set."""
    nbytes = like.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        element = ir.IntType(8 * nbytes)
        vector = ir.VectorType(element, 16)
        wanted = builder.bitcast(builder.trunc(args[1], I16), ir.VectorType(I1, 16))
        added = builder.select(wanted, everywhere(builder, args[2], element, 16), ir.Constant(vector, None))
        found = builder.or_(load_as(builder, args[0], vector, nbytes), added)
        store_at(builder, args[0], found, nbytes)
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(int64, int64, int64, like), codegen


@intrinsic
def prefetch(typingctx, address):
    """Fetch a line to the second cache. Whether there is memory at the address does not matter."""

    def codegen(context, builder, signature, args):
        place = builder.inttoptr(args[0], I8.as_pointer())
        reads, level, data = (ir.Constant(I32, number) for number in (0, 2, 1))
        call(builder, "llvm.prefetch.p0", ir.VoidType(), [place, reads, level, data])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def clear(typingctx, address):
    """Write 16 zero bytes."""

    def codegen(context, builder, signature, args):
        store_at(builder, args[0], ir.Constant(BYTES16, None), 1)
        return context.get_dummy_value()

    return types.void(types.int64), codegen
