"""Elements, and the bins and places in bins that they are made of."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.bits_of_words import four_of, lowest_bit
from sparsefmt.jit import jit
from sparsefmt.jit_helpers import larger, on_stack, smaller
from sparsefmt.positions.jitted.masks import last_columns

OK, EARLY_END, LEFT_OVER, NO_BIN = 0, 1, 3, 4
"""What a pass returns: all well; bits are missing; bits are left over; an element is in no bin."""

PADDING = 2
"""Elements behind `offsets` that may be read in vain."""

SEARCH, BIN_MASK = np.uint32(1 << 31), np.uint32(0xFFFF)
"""In what `split` knows of a prefix."""

ZERO, ONE, TWO, THREE, FOUR, SIX, LANE, SIXTEEN, INDEX_MASK = (
    np.uint64(number) for number in (0, 1, 2, 3, 4, 6, 15, 16, 63)
)


@jit
def _window(offsets, position):
    """64 bits from bit `position` on."""
    first, shift = position >> SIX, position & INDEX_MASK
    # two shifts, since one by 64 is none
    return (offsets[first] >> shift) | ((offsets[first + ONE] << ONE) << (INDEX_MASK - shift))


@jit
def _from_window(symbol, lows, widths, window):
    """The key of a bin and the lowest bits of `window`; the other bits."""
    width = np.uint64(widths[symbol])
    return lows[symbol] + (window & ((ONE << width) - ONE)), window >> width


@jit
def join(symbols, lows, widths, offsets, offset_nbits, sign, shift, out):
    """Fill `out` with elements: in bin symbols[i], at the place that the next offset says. A status.

    lows: uint64, the first key of each bin. widths: uint8, its bits, 63 at most. offsets: uint64, PADDING elements more
    than `offset_nbits` need. sign: where the lowest bit of a key goes, or -1 if it is like the others. shift: of keys.
    """
    low_sign, sign_shift, left = np.uint64(sign >= 0), np.uint64(larger(sign, 0)), np.uint64(shift)
    position, bit_count, done, count, widest = ZERO, np.uint64(offset_nbits), 0, symbols.shape[0], 0
    for width in widths:
        widest = larger(widest, np.int64(width))
    if widest <= 14:
        # four offsets, and the bits before them, fit into a word
        while done + 4 <= count and position <= bit_count:
            window = _window(offsets, position)
            s0, s1, s2, s3 = symbols[done], symbols[done + 1], symbols[done + 2], symbols[done + 3]
            key0, window = _from_window(s0, lows, widths, window)
            key1, window = _from_window(s1, lows, widths, window)
            key2, window = _from_window(s2, lows, widths, window)
            key3, window = _from_window(s3, lows, widths, window)
            position += np.uint64(widths[s0]) + np.uint64(widths[s1]) + np.uint64(widths[s2]) + np.uint64(widths[s3])
            out[done] = ((key0 >> low_sign) << left) | ((key0 & low_sign) << sign_shift)
            out[done + 1] = ((key1 >> low_sign) << left) | ((key1 & low_sign) << sign_shift)
            out[done + 2] = ((key2 >> low_sign) << left) | ((key2 & low_sign) << sign_shift)
            out[done + 3] = ((key3 >> low_sign) << left) | ((key3 & low_sign) << sign_shift)
            done += 4
    for index in range(done, count):
        if position > bit_count:
            return EARLY_END
        width = np.uint64(widths[symbols[index]])
        key = lows[symbols[index]] + (_window(offsets, position) & ((ONE << width) - ONE))
        position += width
        out[index] = ((key >> low_sign) << left) | ((key & low_sign) << sign_shift)
    if position != bit_count:
        return EARLY_END if position > bit_count else LEFT_OVER
    return OK


@jit
def contexts_of(mask, row_classes, column_classes, tables, contexts):
    """Fill `contexts` with the table of each position that a mask in slices keeps.

    mask: (slices, cols). tables: uint8 (classes of columns, 32), the table by class of the column, and by that
    of the row. contexts: 16 elements behind those of all positions may change too.
    """
    at, lines = ZERO, on_stack(16, np.uint64)
    whole = mask.shape[1] & -4
    many = contexts.shape[0] * 10 > 3 * row_classes.shape[0] * mask.shape[1]
    for slice_ in range(mask.shape[0]):
        columns = mask[slice_]
        last = last_columns(columns)
        for lane in range(smaller(16, row_classes.shape[0] - 16 * slice_)):
            lines[lane] = row_classes[16 * slice_ + lane]
        for column in range(0, mask.shape[1], 4):
            bits = four_of(columns, column) if column < whole else last
            if many and column < whole:
                # every table is stored, and overwritten by the next if its position is pruned: where three of ten
                # are kept, that is faster than branches that are mispredicted
                for next_ in range(np.uint64(column), np.uint64(column + 4)):
                    column_class = np.uint64(column_classes[next_])
                    for lane in range(np.uint64(16)):
                        contexts[at] = tables[column_class, lines[lane]]
                        at += bits & ONE
                        bits >>= ONE
            while bits != ZERO:
                bit = np.uint64(lowest_bit(bits))
                column_class = np.uint64(column_classes[np.uint64(column) + (bit >> FOUR)])
                contexts[at] = tables[column_class, lines[bit & LANE]]
                bits &= bits - ONE
                at += ONE


def _make_shuffles() -> np.ndarray:
    """For each byte of a mask, which of eight bytes it keeps, side by side: uint64 (256,)."""
    found = np.zeros((256, 8), np.uint8)
    for byte in range(256):
        kept = [bit for bit in range(8) if byte >> bit & 1]
        found[byte, : len(kept)] = kept
    return found.view(np.uint64).ravel()


SHUFFLES = _make_shuffles()


@intrinsic
def _keep(typingctx, table, classes, shuffles, bits, out):
    """Store table[class] of those of 16 rows whose bit is set, side by side, at `out`; how many. x86.

    table: address of 16 bytes. classes: address of 16 bytes below 16. shuffles: address of SHUFFLES. bits: 16 of them.
    out: address where 16 bytes may change.
    """

    def codegen(context, builder, signature, args):
        table, classes, shuffles, bits, out = args
        sixteen, eight, word = ir.VectorType(ir.IntType(8), 16), ir.VectorType(ir.IntType(8), 8), ir.IntType(64)

        def load(address, kind):
            return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)

        def shuffled(vector, order):
            kind = ir.FunctionType(sixteen, [sixteen, sixteen])
            shuffle = builder.module.declare_intrinsic("llvm.x86.ssse3.pshuf.b.128", (), kind)
            return builder.call(shuffle, [vector, order])

        def part(vector, first):
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), 8), list(range(first, first + 8)))
            return builder.shuffle_vector(vector, vector, lanes)

        both = shuffled(load(table, sixteen), load(classes, sixteen))
        low = builder.and_(bits, ir.Constant(word, 255))
        high = builder.lshr(bits, ir.Constant(word, 8))
        orders = [load(builder.add(shuffles, builder.shl(byte, ir.Constant(word, 3))), eight) for byte in (low, high)]
        later = builder.add(orders[1], ir.Constant(eight, [8] * 8))
        order = builder.shuffle_vector(
            orders[0], later, ir.Constant(ir.VectorType(ir.IntType(32), 16), list(range(16)))
        )
        kept = shuffled(both, order)
        of_low = builder.ctpop(low)
        builder.store(part(kept, 0), builder.inttoptr(out, eight.as_pointer()), align=1)
        builder.store(part(kept, 8), builder.inttoptr(builder.add(out, of_low), eight.as_pointer()), align=1)
        return builder.add(of_low, builder.ctpop(high))

    return types.int64(types.int64, types.int64, types.int64, types.uint64, types.int64), codegen


@jit
def contexts_of_few_classes(mask, row_classes, column_classes, tables, shuffles, contexts):
    """`contexts_of` for at most 16 classes of rows, with the instructions of x86. shuffles: SHUFFLES."""
    classes = on_stack(16, np.uint8)
    at, tables_at, width = np.int64(contexts.ctypes.data), np.int64(tables.ctypes.data), np.int64(tables.shape[1])
    classes_at, shuffles_at = np.int64(classes.ctypes.data), np.int64(shuffles.ctypes.data)
    for slice_ in range(mask.shape[0]):
        for lane in range(smaller(16, row_classes.shape[0] - 16 * slice_)):
            classes[lane] = row_classes[16 * slice_ + lane]
        columns = mask[slice_]
        for column in range(np.uint64(mask.shape[1])):
            table = tables_at + width * np.int64(column_classes[column])
            at += _keep(table, classes_at, shuffles_at, np.uint64(columns[column]), at)


@jit
def histogram(symbols, contexts, found):
    """Add to found[context, symbol]."""
    for index in range(np.uint64(symbols.shape[0])):
        found[np.uint64(contexts[index]), np.uint64(symbols[index])] += 1


@jit
def shortest_classes(symbols, counts, columns, column_classes, lengths, row_lengths, row_classes):
    """Fill `row_classes` with those that make rows shortest; False if a row has none that can code it.

    counts: elements of each row. columns: of each element. lengths: float32 (sums of classes, symbols), bits of a
    symbol, infinite where it cannot be. row_lengths: float32, bits of a class.
    """
    begin, fits, classes = 0, True, row_lengths.shape[0]
    of_classes = np.empty(classes, np.float32)
    for row in range(counts.shape[0]):
        for row_class in range(classes):
            of_classes[row_class] = row_lengths[row_class]
        for index in range(begin, begin + counts[row]):
            symbol = np.uint64(symbols[np.uint64(index)])
            column_class = np.uint64(column_classes[np.uint64(columns[np.uint64(index)])])
            for row_class in range(classes):
                of_classes[np.uint64(row_class)] += lengths[np.uint64(row_class) + column_class, symbol]
        begin += counts[row]
        best = of_classes.argmin()
        row_classes[row] = best
        fits &= of_classes[best] < np.float32(np.inf)
    return fits


@jit
def _key_of(element, sign_mask, sign_shift, low_sign, right):
    return (((element & ~sign_mask) >> right) << low_sign) | ((element & sign_mask) >> sign_shift)


@jit
def _put(offsets, position, bits):
    """Write bits from bit `position` on, behind which all are 0."""
    first, bit = position >> SIX, position & INDEX_MASK
    offsets[first] |= bits << bit
    # two shifts, since one by 64 is none
    offsets[first + ONE] = (bits >> ONE) >> (INDEX_MASK - bit)


@jit
def _search(key, bin_, lows, widths):
    """(the bin of a key, which is not before `bin_`, its width, whether there is one)."""
    last = np.uint64(lows.shape[0] - 1)
    while bin_ < last and lows[bin_ + ONE] <= key:
        bin_ += ONE
    width = np.uint64(widths[bin_])
    return bin_, width, key >= lows[bin_] and (key - lows[bin_]) >> width == ZERO


@jit
def split(elements, lows, widths, of_prefixes, key_nbits, sign, shift, symbols, offsets):
    """Fill `symbols` with the bin of each element, and zeroed `offsets` with the places in them, behind each other.

    Returns a status and the bits of all offsets.

    of_prefixes[p]: uint32, the bin of keys whose highest bits are p: the highest 16, or all `key_nbits` if they are
    fewer; and its width << 16. Or, where keys with that prefix are in several bins, or some in none, the first bin that
    may hold one, and SEARCH. sign, shift, lows, widths, offsets: as in `join`. No offsets are written if there are no
    `offsets`.
    """
    prefix_shift, right = np.uint64(larger(key_nbits - 16, 0)), np.uint64(shift)
    low_sign, sign_shift = np.uint64(sign >= 0), np.uint64(larger(sign, 0))
    sign_mask, position, widest = low_sign << sign_shift, ZERO, 0
    for width in widths:
        widest = larger(widest, np.int64(width))
    done, count, keep = ZERO, np.uint64(elements.shape[0]), offsets.shape[0] > 0
    while done < count:
        if done + FOUR <= count:
            # four at a time, whose offsets fit into a word or two
            key0 = _key_of(np.uint64(elements[done]), sign_mask, sign_shift, low_sign, right)
            key1 = _key_of(np.uint64(elements[done + ONE]), sign_mask, sign_shift, low_sign, right)
            key2 = _key_of(np.uint64(elements[done + TWO]), sign_mask, sign_shift, low_sign, right)
            key3 = _key_of(np.uint64(elements[done + THREE]), sign_mask, sign_shift, low_sign, right)
            bin0, bin1 = of_prefixes[key0 >> prefix_shift], of_prefixes[key1 >> prefix_shift]
            bin2, bin3 = of_prefixes[key2 >> prefix_shift], of_prefixes[key3 >> prefix_shift]
            if (bin0 | bin1 | bin2 | bin3) < SEARCH:
                symbols[done], symbols[done + ONE] = bin0 & BIN_MASK, bin1 & BIN_MASK
                symbols[done + TWO], symbols[done + THREE] = bin2 & BIN_MASK, bin3 & BIN_MASK
                done += FOUR
                if not keep:
                    continue
                width0, width1 = np.uint64(bin0) >> SIXTEEN, np.uint64(bin1) >> SIXTEEN
                width2, width3 = np.uint64(bin2) >> SIXTEEN, np.uint64(bin3) >> SIXTEEN
                key0, key1 = key0 & ((ONE << width0) - ONE), key1 & ((ONE << width1) - ONE)
                key2, key3 = key2 & ((ONE << width2) - ONE), key3 & ((ONE << width3) - ONE)
                if widest <= 32:
                    key0, width0 = key0 | key1 << width0, width0 + width1
                    key2, width2 = key2 | key3 << width2, width2 + width3
                    if widest <= 16:
                        _put(offsets, position, key0 | key2 << width0)
                    else:
                        _put(offsets, position, key0)
                        _put(offsets, position + width0, key2)
                    position += width0 + width2
                else:
                    _put(offsets, position, key0)
                    _put(offsets, position + width0, key1)
                    position += width0 + width1
                    _put(offsets, position, key2)
                    _put(offsets, position + width2, key3)
                    position += width2 + width3
                continue
        key = _key_of(np.uint64(elements[done]), sign_mask, sign_shift, low_sign, right)
        bin_, width, fits = _search(key, np.uint64(of_prefixes[key >> prefix_shift] & BIN_MASK), lows, widths)
        if not fits:
            return NO_BIN, 0
        symbols[done] = bin_
        if keep:
            _put(offsets, position, key - lows[bin_])
        position += width
        done += ONE
    return OK, np.int64(position)
