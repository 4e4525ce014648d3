"""Elements to bins and places in bins with AVX-512: what `elements.split` does, 64 elements at a time.

The bin of an element is found by a search for its prefix among the ends of intervals, which are bins and the gaps
between them. They lie in registers, as a binary tree whose nodes are numbered from 1 on, the children of node i being
2 i and 2 i + 1: every look is an instruction or two for 32 elements. What is known of intervals lies in registers, too.
Places in bins are taken out of keys by the instruction that extracts bits, from 64 bits of keys at a time.

Tables are those of `make_tables`.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.bits_of_words import extracted_bits, popcount, store_word
from sparsefmt.jit import jit
from sparsefmt.llvm import I64, call, everywhere, integer, lanes_of, load_as, store_at

OK, NO_BIN = 0, 4
"""As in `elements.py`."""

MOST = 256
"""Intervals that tables have room for."""

WIDTHS = (1, 2, 4)
"""Bytes of elements for which there is such a pass."""

AT_ONCE = 64
"""Elements that are looked up together."""

LANES = 32
"""Prefixes in a register."""

PARTS = AT_ONCE // LANES

BLOCK = 1 << 10
"""Elements whose keys and masks are kept at a time: 8 KiB. Finding bins waits for one look after the other, so that the
processor works on several elements at once, and should not come upon anything else on the way."""

HALF = 64
"""Nodes that two registers hold."""

SYMBOLS, PLACES = 2 * MOST, 3 * MOST
"""Where the second and the third table begin, in bytes."""

GAP = 1 << 7
"""The bits of a place in a gap."""

MOST_PUT = 56
"""Bits that are written at once."""

ZERO, ONE, THREE, SIX, SEVEN, INDEX_MASK, LOW_HALF = (np.uint64(number) for number in (0, 1, 3, 6, 7, 63, 0xFFFFFFFF))

VECTOR, BYTES = ir.VectorType(ir.IntType(16), LANES), ir.VectorType(ir.IntType(8), AT_ONCE)


def make_tables(
    lows: np.ndarray, widths: np.ndarray, left_out: int, prefix_nbits: int
) -> tuple[np.ndarray, int, int] | None:
    """(tables, levels of the tree, bits of a place at most); None if a bin is narrower than a prefix, or intervals are
    more than MOST.

    Tables are uint8 (4 * MOST,): the nodes of the tree, uint16 (MOST,), and for each interval its bin, and how many
    bits of a prefix tell the place in that, GAP if it is none. A node has the last prefix before an interval. There are
    six levels if there is room for all intervals below these, else a level or two more.

    Args:
        lows: uint64 (bins,), the first key of each bin, ascending.
        widths: bits of a place in each bin.
        left_out: lower bits of a key that prefixes have not.
    """
    begins, sizes = (lows >> np.uint64(left_out)).astype(np.int64), widths.astype(np.int64) - left_out
    if sizes.min() < 0:
        return None
    ends = begins + np.left_shift(1, np.maximum(sizes, 0))
    # a gap begins where a bin ends, or at 0, unless the next bin begins there
    gaps = np.setdiff1d(np.append(0, ends), np.append(begins, 1 << prefix_nbits))
    first, count = np.append(begins, gaps), begins.size + gaps.size
    if count > MOST:
        return None
    order = np.argsort(first)
    tables = np.zeros(4 * MOST, np.uint8)
    tables[SYMBOLS : SYMBOLS + count] = np.append(np.arange(begins.size), np.zeros(gaps.size, np.int64))[order]
    tables[PLACES : PLACES + count] = np.append(sizes, np.full(gaps.size, GAP))[order]
    size, nodes = _room(count), tables[:SYMBOLS].view(np.uint16)
    borders = np.full(size, 0xFFFF)  # beyond which no prefix lies
    borders[: count - 1] = first[order][1:] - 1
    for node in range(1, size):
        level = node.bit_length() - 1
        nodes[node] = borders[(2 * (node - (1 << level)) + 1) * (size >> level + 1) - 1]
    return tables, size.bit_length() - 1, int(widths.max())


def _room(intervals: int) -> int:
    """For how many of them there is room in the tree."""
    return HALF if intervals <= HALF else 2 * HALF if intervals <= 2 * HALF else MOST


def _next_nodes(builder, tables, level: int, nodes, prefix):
    """The nodes to go on with, of a level, for LANES prefixes."""

    def register(number: int):
        return load_as(builder, builder.add(tables, integer(64 * number)), VECTOR, 2)

    def half(number: int):
        pair = [register(2 * number), nodes, register(2 * number + 1)]
        return call(builder, "llvm.x86.avx512.vpermi2var.hi.512", VECTOR, pair)

    if level < 5:
        border = call(builder, "llvm.x86.avx512.permvar.hi.512", VECTOR, [register(0), nodes])
    elif level < 7:
        border = half(level - 5)
    else:
        upper = builder.icmp_unsigned(">=", nodes, ir.Constant(VECTOR, [3 * HALF] * LANES))
        border = builder.select(upper, half(3), half(2))
    # 1 if the prefix is larger, without a condition
    larger = call(builder, "llvm.usub.sat.v32i16", VECTOR, [prefix, border])
    larger = call(builder, "llvm.umin.v32i16", VECTOR, [larger, ir.Constant(VECTOR, [1] * LANES)])
    return builder.add(builder.add(nodes, nodes), larger)


def _byte_of(builder, table, intervals):
    """Bytes of a table of MOST."""
    parts = [load_as(builder, builder.add(table, integer(begin)), BYTES, 1) for begin in range(0, MOST, AT_ONCE)]
    low, high = (
        call(builder, "llvm.x86.avx512.vpermi2var.qi.512", BYTES, [parts[first], intervals, parts[first + 1]])
        for first in (0, 2)
    )
    # the highest bit says which
    upper = builder.icmp_signed("<", intervals, ir.Constant(BYTES, None))
    return builder.select(upper, high, low)


@intrinsic
def _look_up(typingctx, elements, tables, levels, prefix_shift, sign, shift, symbols, keys, masks, like):
    """The bins of AT_ONCE elements to `symbols` (uint8), their keys to `keys`, and to `masks` the bits of these that
    tell the places in bins; keys and masks are as wide as elements, of 16 bits at least. 0 if none is in a gap.

    elements, tables, symbols, keys, masks: addresses. levels: of the tree, 6 to 8. prefix_shift: lower bits of a key
    that its prefix has not. sign, shift: as in `elements.join`. like: an array of elements, of which nothing else is
    used.
    """
    element = ir.IntType(like.dtype.bitwidth)
    wide = ir.IntType(max(element.width, 16))

    def codegen(context, builder, signature, args):
        elements, tables, levels, prefix_shift, sign, shift, symbols, keys, masks, _ = args
        vector = ir.VectorType(wide, LANES)
        folded = builder.icmp_signed(">=", sign, integer(0))
        at = builder.select(folded, sign, integer(0))
        low_sign, sign_mask = builder.zext(folded, I64), builder.select(folded, builder.shl(integer(1), at), integer(0))
        shifts = [everywhere(builder, number, wide, LANES) for number in (shift, low_sign, at, prefix_shift)]
        right, left, down, less = shifts
        sign_bits = everywhere(builder, sign_mask, wide, LANES)
        others = builder.not_(sign_bits)
        found, prefixes, places = [], [], []
        for part in range(PARTS):
            address = builder.add(elements, integer(part * LANES * element.width // 8))
            some = load_as(builder, address, ir.VectorType(element, LANES), element.width // 8)
            some = some if element == wide else builder.zext(some, vector)
            signs = builder.lshr(builder.and_(some, sign_bits), down)
            key = builder.or_(builder.shl(builder.lshr(builder.and_(some, others), right), left), signs)
            found.append(key)
            prefix = builder.lshr(key, less)
            prefixes.append(prefix if wide.width == 16 else builder.trunc(prefix, VECTOR))
            places.append(ir.Constant(VECTOR, [1] * LANES))
        for level in range(6):
            places = [_next_nodes(builder, tables, level, *pair) for pair in zip(places, prefixes, strict=True)]
        for level in (6, 7):
            before, above = builder.block, places
            with builder.if_then(builder.icmp_signed(">", levels, integer(level))):
                deeper = [_next_nodes(builder, tables, level, *pair) for pair in zip(places, prefixes, strict=True)]
                inside = builder.block
            places = []
            for values in zip(above, deeper, strict=True):
                places.append(builder.phi(VECTOR))
                for value, block in zip(values, (before, inside), strict=True):
                    places[-1].add_incoming(value, block)
        # below the tree, without the bit that comes before the number of an interval
        size = builder.shl(integer(1), levels)
        size = everywhere(builder, builder.sub(size, integer(1)), ir.IntType(16), LANES)
        intervals = [builder.and_(place, size) for place in places]
        both = builder.shuffle_vector(*intervals, lanes_of(list(range(AT_ONCE))))
        intervals = builder.trunc(both, BYTES)
        store_at(builder, symbols, _byte_of(builder, builder.add(tables, integer(SYMBOLS)), intervals), 1)
        nbits = _byte_of(builder, builder.add(tables, integer(PLACES)), intervals)
        gaps = builder.icmp_signed("<", nbits, ir.Constant(BYTES, None))
        for part in range(PARTS):
            some = builder.shuffle_vector(nbits, nbits, lanes_of(list(range(part * LANES, part * LANES + LANES))))
            ones = [ir.Constant(VECTOR, [1] * LANES), builder.zext(some, VECTOR)]
            # a shift by 16 gives 0
            power = call(builder, "llvm.x86.avx512.psllv.w.512", VECTOR, ones)
            mask = builder.sub(power, ir.Constant(VECTOR, [1] * LANES))
            if wide.width > 16:
                mask = builder.shl(builder.zext(mask, vector), less)
                below = builder.sub(builder.shl(integer(1), prefix_shift), integer(1))
                mask = builder.or_(mask, everywhere(builder, below, wide, LANES))
            for address, value in ((keys, found[part]), (masks, mask)):
                place = builder.add(address, integer(part * LANES * wide.width // 8))
                store_at(builder, place, value, wide.width // 8)
        return builder.bitcast(gaps, I64)

    i64 = types.int64
    return i64(i64, i64, i64, i64, i64, i64, i64, i64, i64, like), codegen


@intrinsic
def _copy(typingctx, address, out, like):
    """Copy an element."""

    def codegen(context, builder, signature, args):
        element = ir.IntType(like.dtype.bitwidth)
        store_at(builder, args[1], load_as(builder, args[0], element, 1), 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, like), codegen


@jit
def _put(bits, count, waiting, fill, out):
    """Write `count` bits, MOST_PUT at most, behind the `fill` lowest ones of `waiting`, fewer than eight, which come at
    address `out`: what waits then, how many of them, and where. Writes eight bytes."""
    waiting |= bits << fill
    store_word(out, waiting)
    fill += count
    return waiting >> (fill & ~SEVEN), fill & SEVEN, out + np.int64(fill >> THREE)


@jit
def split(elements, tables, levels, widest, key_nbits, sign, shift, scratch, symbols, offsets):
    """`elements.split` for elements of WIDTHS, with what `make_tables` gives. symbols: uint8.

    scratch: uint64 (3 * BLOCK,). offsets need not be zeroed: all that have a bit are written. The bits of all offsets
    are 0 if none are kept.
    """
    prefix_shift, count, keep = np.int64(max(key_nbits - 16, 0)), elements.shape[0], offsets.shape[0] > 0
    narrow, wide = elements.itemsize, max(elements.itemsize, 2)
    keys_at, out = np.int64(scratch.ctypes.data), np.int64(offsets.ctypes.data)
    masks_at, last_at = keys_at + 8 * BLOCK, keys_at + 16 * BLOCK
    elements_at, symbols_at, tables_at = elements.ctypes.data, np.int64(symbols.ctypes.data), tables.ctypes.data
    failed, waiting, fill, start = 0, ZERO, ZERO, out
    for begin in range(0, count, BLOCK):
        height = min(BLOCK, count - begin)
        for first in range(0, height, AT_ONCE):
            here, to, some = (
                np.int64(elements_at) + (begin + first) * narrow,
                symbols_at + begin + first,
                height - first,
            )
            if some < AT_ONCE:
                # the last ones, and one of them again and again
                for index in range(AT_ONCE):
                    _copy(here + min(index, some - 1) * narrow, last_at + index * narrow, elements)
                here, to = last_at, last_at + 8 * AT_ONCE
            key, mask = keys_at + first * wide, masks_at + first * wide
            failed |= _look_up(here, np.int64(tables_at), levels, prefix_shift, sign, shift, to, key, mask, elements)
            if some < AT_ONCE:
                for index in range(some):
                    _copy(to + index, symbols_at + begin + first + index, symbols)
        if failed:
            return NO_BIN, 0  # before places are written for which there is no room
        if not keep:
            continue
        nbits = np.uint64(8 * height * wide)
        if nbits & INDEX_MASK != ZERO:
            # what is behind the last element
            scratch[np.uint64(BLOCK) + (nbits >> SIX)] &= (ONE << (nbits & INDEX_MASK)) - ONE
        for index in range((nbits + INDEX_MASK) >> SIX):
            key, mask = scratch[index], scratch[np.uint64(BLOCK) + index]
            if widest * (8 // wide) <= MOST_PUT:
                places = extracted_bits(key, mask)
                waiting, fill, out = _put(places, np.uint64(popcount(mask)), waiting, fill, out)
            else:
                for half in range(2):
                    here = mask & ~LOW_HALF if half else mask & LOW_HALF
                    places = extracted_bits(key, here)
                    waiting, fill, out = _put(places, np.uint64(popcount(here)), waiting, fill, out)
    if keep:
        store_word(out, waiting)
    return OK, 8 * (out - start) + np.int64(fill)
