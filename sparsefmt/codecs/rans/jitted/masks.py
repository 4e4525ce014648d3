"""Masks as rANS codes them: words of 64 columns of a row, their bits in another order, and contexts for eight of them.

To encode, a mask is seen row by row, uint64 (rows, words): column c is bit c % 64 of word c // 64. What is decoded goes
to a mask in slices, (slices, cols), at once.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.jit import jit
from sparsefmt.positions.jitted.masks import transposed

NIBBLE, NIBBLE_BITS = np.uint64(15), np.uint64(4)

BLOCK = 1 << 12
"""Groups of columns that `join` turns over at once, in two scratches of 32 KiB: some runs of 64 columns, within which
columns are sorted."""


@jit
def order(column_classes, group_classes, places):
    """Sort the columns of each word by class, the highest first.

    group_classes: uint8 (groups,), filled with the mean class of each eight columns. places: uint8 (words, 64), filled
    with the bit to which each bit of a word goes.
    """
    counts, ordered = np.empty(256, np.int64), np.empty(64, np.int64)
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
            members = min(8, classes.shape[0] - begin)
            total = members
            for place in range(begin, begin + members):
                total += 2 * np.int64(classes[ordered[place]])
            group_classes[8 * word + begin // 8] = total // (2 * members)


@jit
def fill_tables(places, tables):
    """Fill `tables` (words, 16, 16) for `reorder`: to where `places` sends the bits of each word."""
    for word in range(places.shape[0]):
        for nibble in range(16):
            table = tables[word, nibble]
            table[0] = 0
            for bit in range(4):
                moved, first = np.uint64(1) << np.uint64(places[word, 4 * nibble + bit]), 1 << bit
                for lower in range(first):
                    table[first + lower] = table[lower] | moved


@jit
def reorder(mask, first, tables, out):
    """out[row, first + word] = the bits of mask[row, first + word], each where tables[word] sends it.

    tables: uint64 (words, 16, 16): where the bits of nibble n with value v go, for each word from the first on.
    """
    for word in range(tables.shape[0]):
        table = tables[word]
        for row in range(mask.shape[0]):
            bits, moved = mask[row, first + word], np.uint64(0)
            for nibble in range(16):
                moved |= table[nibble, np.int64(bits & NIBBLE)]
                bits >>= NIBBLE_BITS
            out[row, first + word] = moved


@jit
def difference(mask, copies, out):
    """out = mask, and in rows that are copies only what differs from the row above."""
    for row in range(mask.shape[0]):
        for word in range(mask.shape[1]):
            out[row, word] = mask[row, word] ^ (mask[row - 1, word] if copies[row] else np.uint64(0))


@jit
def contexts_in_slices(row_symbols, group_classes, tables, lines, out):
    """Fill `out` with the table of each row and group, in the order of a chunk: slice by slice, group by group, row by
    row. tables: uint8, that of a row's symbol and a group's class, at symbol << 6 | class. lines: uint64 (16,).
    """
    rows, at = row_symbols.shape[0], np.uint64(0)
    for first in range(0, rows, 16):
        height = np.uint64(min(16, rows - first))
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
    count = groups.shape[0] // max(rows, 1)
    above = np.zeros(count, np.uint8)  # the last row of the slice before
    for first in range(0, rows, 16):
        height, begin = min(16, rows - first), first * count
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
        height, line = min(16, rows - 16 * slice_), mask[slice_]
        for begin in range(0, count, BLOCK):
            some = min(BLOCK, count - begin)
            if height == 16:
                at = np.uint64(2 * (count * slice_ + begin))
                for group in range(np.uint64(some)):
                    low_words[group] = transposed(words[at + group + group])
                    high_words[group] = transposed(words[at + group + group + np.uint64(1)])
            else:
                at = 16 * count * slice_ + height * begin
                for group in range(some):
                    word = np.uint64(0)
                    for lane in range(min(height, 8)):
                        word |= np.uint64(groups[at + lane]) << np.uint64(8 * lane)
                    low_words[group], word = transposed(word), np.uint64(0)
                    for lane in range(8, height):
                        word |= np.uint64(groups[at + lane]) << np.uint64(8 * lane - 64)
                    high_words[group] = transposed(word)
                    at += height
            first, present = np.uint64(8 * begin), np.uint64(min(8 * some, cols - 8 * begin))
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

    plain, copied: bytes of each row, and of what differs from the row above. lengths: float32 (tables, 256), bits of a
    byte, infinite where it cannot be. row_lengths: float32, bits of a row symbol.
    """
    groups, last = group_classes.shape[0], table_of[table_of.shape[0] - 1]
    fits = True
    for row in range(plain.shape[0]):
        best = np.float32(np.inf)
        for symbol in range(row_lengths.shape[0]):
            length = row_lengths[symbol]
            if symbol == copy:
                if row == 0:
                    continue
                for group in range(groups):
                    length += lengths[last, copied[row, group]]
            else:
                for group in range(groups):
                    length += lengths[table_of[symbol + np.int64(group_classes[group])], plain[row, group]]
            if length < best:
                best, symbols[row] = length, symbol
        fits &= best < np.float32(np.inf)
    return fits


@jit
def histogram(groups, contexts, counts):
    """Add to counts[context, byte]. groups: (rows, at least as many bytes as there are contexts)."""
    for row in range(contexts.shape[0]):
        for group in range(contexts.shape[1]):
            counts[contexts[row, group], groups[row, group]] += 1
