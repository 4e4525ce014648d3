"""Masks in slices, (slices, cols), as rANS codes them: groups of eight columns of a row as bytes, their contexts."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.bits_of_words import four_of
from sparsefmt.jit import jit
from sparsefmt.jit_helpers import larger, on_stack, smaller
from sparsefmt.positions.jitted.masks import last_columns, transposed

LOWEST_ROWS = np.uint64(0x0001000100010001)
"""The first row of four columns."""

MOST_COUNTED = 1 << 15
"""Columns whose bits can be counted in 16 bits."""

BLOCK = 1 << 12
"""Groups of columns that `join` turns over at once, in two scratches of 32 KiB: some runs of 64 columns, within which
columns are sorted."""


@jit
def order(column_classes, group_classes, places):
    """Sort the columns of each word by class, the highest first.

    group_classes: uint8 (groups,), filled with the mean class of each eight columns. places: uint8 (words, 64), filled
    with the bit to which each bit of a word goes.
    """
    counts, ordered = on_stack(256, np.int64), on_stack(64, np.int64)
    for word in range(places.shape[0]):
        classes = column_classes[64 * word : 64 * word + 64]
        counts[:] = 0
        for class_ in classes:
            counts[class_] += 1
        begin = 0
        for class_ in range(255, -1, -1):
            counts[class_], begin = begin, begin + counts[class_]
        for bit in range(64):
            # bits behind the last column come last
            place = bit
            if bit < classes.shape[0]:
                place = counts[classes[bit]]
                counts[classes[bit]] += 1
            places[word, bit], ordered[place] = place, bit
        for begin in range(0, classes.shape[0], 8):
            members = smaller(8, classes.shape[0] - begin)
            total = members
            for place in range(begin, begin + members):
                total += 2 * np.int64(classes[ordered[place]])
            group_classes[8 * word + begin // 8] = total // (2 * members)


@intrinsic
def _add_bits(typingctx, word, counters):
    """Add the bits of four columns of a slice, as `four_of` gives them, to those of their rows.

    counters: address of uint16 (16,).
    """

    def codegen(context, builder, signature, args):
        word, counters = args
        half, lanes = ir.IntType(16), ir.VectorType(ir.IntType(16), 16)
        of_rows = ir.Constant(lanes, [1 << row for row in range(16)])
        first = ir.Constant(ir.VectorType(ir.IntType(32), 16), [0] * 16)
        pointer = builder.inttoptr(counters, lanes.as_pointer())
        total = builder.load(pointer, align=2)
        for column in range(4):
            bits = builder.trunc(builder.lshr(word, ir.Constant(word.type, 16 * column)), half)
            single = builder.insert_element(ir.Constant(lanes, ir.Undefined), bits, ir.Constant(ir.IntType(32), 0))
            bits = builder.and_(builder.shuffle_vector(single, single, first), of_rows)
            # true is -1
            total = builder.sub(total, builder.sext(builder.icmp_unsigned("==", bits, of_rows), lanes))
        builder.store(total, pointer, align=2)
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(types.uint64, types.int64), codegen


@jit
def count_rows(mask, kept, differing):
    """Fill `kept` with how many bits each row of a tile has, and `differing` with how many differ from the row above,
    all of them in the first row. int64 (rows,)."""
    cols, rows = mask.shape[1], kept.shape[0]
    some = on_stack((2, 16), np.uint16)
    kept_at = np.int64(some.ctypes.data)
    kept[:], differing[:] = 0, 0
    for slice_ in range(mask.shape[0]):
        line, above = mask[slice_], mask[larger(slice_ - 1, 0)]
        last, last_above, before = last_columns(line), last_columns(above), np.uint64(LOWEST_ROWS if slice_ else 0)
        for first in range(0, cols, MOST_COUNTED):
            some[:] = 0
            for column in range(first, smaller(first + MOST_COUNTED, cols), 4):
                word = four_of(line, column) if column + 4 <= cols else last
                ahead = four_of(above, column) if column + 4 <= cols else last_above
                shifted = ((word << np.uint64(1)) & ~LOWEST_ROWS) | ((ahead >> np.uint64(15)) & before)
                _add_bits(word, kept_at)
                _add_bits(word ^ shifted, kept_at + 32)
            for lane in range(smaller(16, rows - 16 * slice_)):
                kept[16 * slice_ + lane] += np.int64(some[0, lane])
                differing[16 * slice_ + lane] += np.int64(some[1, lane])


@jit
def split(mask, rows, columns, copies, groups, words):
    """Undo `join`: fill `groups`, the bytes of a chunk, from a mask.

    copies: uint16, for each slice its rows that are coded as what differs from the row above; empty if there are none.
    words: uint64, the bytes of whole slices again. mask, columns: as in `join`.
    """
    slices, cols = mask.shape
    count, in_place, plain = np.uint64((cols + 7) // 8), columns.shape[0] == 0, copies.shape[0] == 0
    for slice_ in range(slices):
        height, line, above = smaller(16, rows - 16 * slice_), mask[slice_], mask[larger(slice_ - 1, 0)]
        copied = np.uint64(0) if plain else np.uint64(copies[slice_])
        at = np.uint64(16 * slice_) * count
        for group in range(count):
            low, high = np.uint64(0), np.uint64(0)
            first = group << np.uint64(3)
            for place in range(smaller(np.uint64(8), np.uint64(cols) - first)):
                column = first + place if in_place else np.uint64(columns[first + place])
                bits = np.uint64(line[column])
                if copied:
                    bits ^= copied & (bits << np.uint64(1) | np.uint64(above[column]) >> np.uint64(15))
                low |= (bits & np.uint64(255)) << (place << np.uint64(3))
                high |= (bits >> np.uint64(8)) << (place << np.uint64(3))
            low, high = transposed(low), transposed(high)
            if height == 16:
                words[at >> np.uint64(3)], words[(at >> np.uint64(3)) + np.uint64(1)] = low, high
            else:
                for lane in range(height):
                    if lane == 8:
                        low = high
                    groups[at + np.uint64(lane)] = low & np.uint64(255)
                    low >>= np.uint64(8)
            at += np.uint64(height)


@jit
def contexts_in_slices(row_symbols, group_classes, tables, lines, out):
    """Fill `out` with the table of each row and group, in the order of a chunk: slice by slice, group by group, row by
    row. tables: uint8, that of a row's symbol and a group's class, at symbol << 6 | class. lines: uint64 (16,).
    """
    rows, at = row_symbols.shape[0], np.uint64(0)
    for first in range(0, rows, 16):
        height = np.uint64(smaller(16, rows - first))
        for lane in range(height):
            lines[lane] = np.uint64(row_symbols[np.uint64(first) + lane]) << np.uint64(6)
        for group in range(group_classes.shape[0]):
            class_ = np.uint64(group_classes[group])
            for lane in range(height):
                out[at + lane] = tables[lines[lane] | class_]
            at += height


@jit
def restore_copies(groups, rows, copies):
    """Undo `difference` in place. groups: the bytes of a chunk, flat, as `contexts_in_slices` orders them."""
    count = groups.shape[0] // larger(rows, 1)
    above = np.zeros(count, np.uint8)  # the last row of the slice before
    for first in range(0, rows, 16):
        height, begin = smaller(16, rows - first), first * count
        for group in range(count):
            byte = above[group]
            for lane in range(height):
                if copies[first + lane]:
                    groups[begin + lane] ^= byte
                byte = groups[begin + lane]
            above[group] = byte
            begin += height


@jit
def join(groups, words, rows, columns, scratch, mask):
    """Fill `mask` from the bytes of a chunk, as `contexts_in_slices` orders them; False if a bit is beyond its columns.

    words: uint64, the bytes of whole slices again, eight each. columns: int64 (8 * groups,), the column of each place,
    ascending beyond the last; empty if it is the place itself.

    scratch: of BLOCK groups of a slice, for each column the bits of its first eight rows, and of the others: uint64,
    eight columns each, and the same bytes as uint8.
    """
    slices, cols = mask.shape
    count, good = (cols + 7) // 8, True
    low_words, high_words, low, high = scratch
    for slice_ in range(slices):
        height, line = smaller(16, rows - 16 * slice_), mask[slice_]
        for begin in range(0, count, BLOCK):
            some = smaller(BLOCK, count - begin)
            if height == 16:
                at = np.uint64(2 * (count * slice_ + begin))
                for group in range(np.uint64(some)):
                    low_words[group] = transposed(words[at + group + group])
                    high_words[group] = transposed(words[at + group + group + np.uint64(1)])
            else:
                at = 16 * count * slice_ + height * begin
                for group in range(some):
                    word = np.uint64(0)
                    for lane in range(smaller(height, 8)):
                        word |= np.uint64(groups[at + lane]) << np.uint64(8 * lane)
                    low_words[group], word = transposed(word), np.uint64(0)
                    for lane in range(8, height):
                        word |= np.uint64(groups[at + lane]) << np.uint64(8 * lane - 64)
                    high_words[group] = transposed(word)
                    at += height
            first, present = np.uint64(8 * begin), np.uint64(smaller(8 * some, cols - 8 * begin))
            if columns.shape[0] == 0:
                for place in range(present):
                    line[first + place] = np.uint16(low[place]) | np.uint16(high[place]) << np.uint16(8)
            else:
                for place in range(present):
                    both = np.uint16(low[place]) | np.uint16(high[place]) << np.uint16(8)
                    line[np.uint64(columns[first + place])] = both
            for place in range(present, np.uint64(8 * some)):
                good &= (low[place] | high[place]) == 0
    return good


@jit
def shortest_symbols(plain, copied, group_classes, table_of, copy, lengths, row_lengths, symbols):
    """Fill `symbols` with the row symbols that make rows shortest; False if a row has none that can code it.

    plain, copied: the bytes of a chunk, and if every row is coded as what differs from the row above. lengths: float32
    (tables, 256), bits of a byte, infinite where it cannot be. row_lengths: float32, bits of a row symbol.
    """
    rows, last, fits, at = symbols.shape[0], table_of[table_of.shape[0] - 1], True, 0
    of_symbols = np.empty((16, row_lengths.shape[0]), np.float32)
    for first in range(0, rows, 16):
        height = smaller(16, rows - first)
        for lane in range(height):
            for symbol in range(row_lengths.shape[0]):
                of_symbols[lane, symbol] = row_lengths[symbol]
        if copy >= 0 and first == 0:
            of_symbols[0, copy] = np.inf
        for group in range(group_classes.shape[0]):
            for lane in range(height):
                for symbol in range(row_lengths.shape[0]):
                    if symbol == copy:
                        length = lengths[last, copied[at]]
                    else:
                        length = lengths[table_of[symbol + np.int64(group_classes[group])], plain[at]]
                    of_symbols[lane, symbol] += length
                at += 1
        for lane in range(height):
            symbols[first + lane] = of_symbols[lane].argmin()
            fits &= of_symbols[lane].min() < np.float32(np.inf)
    return fits
