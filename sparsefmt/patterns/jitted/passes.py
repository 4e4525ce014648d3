"""Passes over masks row by row: uint64 (rows, words), bit c % 64 of word c // 64 for column c, what is behind is 0."""

from __future__ import annotations

import numpy as np

from sparsefmt.bits_of_words import lowest_bit, popcount
from sparsefmt.jit import jit

ZERO, ONE, ALL = np.uint64(0), np.uint64(1), np.uint64(0xFFFF_FFFF_FFFF_FFFF)
FOURS, EIGHTS = np.uint64(0x1111_1111_1111_1111), np.uint64(0x0101_0101_0101_0101)


@jit
def row_counts(words, counts):
    """Fill `counts` (rows,) int64 with how many bits each row has."""
    for row in range(words.shape[0]):
        count = np.int64(0)
        for word in range(words.shape[1]):
            count += popcount(words[row, word])
        counts[row] = count


@jit
def _transpose(block):
    """Turn 64 words in place: bit i of word j becomes bit j of word i."""
    distance, kept = 32, np.uint64(0x0000_0000_FFFF_FFFF)
    while distance:
        shift = np.uint64(distance)
        for first in range(0, 64, 2 * distance):
            for row in range(first, first + distance):
                low, high = block[row], block[row + distance]
                swapped = ((low >> shift) ^ high) & kept
                block[row] = low ^ (swapped << shift)
                block[row + distance] = high ^ swapped
        distance >>= 1
        kept ^= kept << np.uint64(distance)


@jit
def column_counts(words, height, counts):
    """Add to `counts` (matrices, cols) int64 how many bits each column of each matrix of `height` rows has."""
    block = np.empty(64, np.uint64)
    for matrix in range(counts.shape[0]):
        end = (matrix + 1) * height
        for word in range(words.shape[1]):
            first = 64 * word
            present = min(64, counts.shape[1] - first)
            for begin in range(matrix * height, end, 64):
                tall = min(64, end - begin)
                for row in range(tall):
                    block[row] = words[begin + row, word]
                block[tall:] = ZERO
                _transpose(block)
                for column in range(present):
                    counts[matrix, first + column] += popcount(block[column])


@jit
def _digits(ones, twos, fours, places):
    """How many of the sums at `places`, given by their binary digits, have 1, 2, 4, 1 and 2, 1 and 4, 2 and 4, all."""
    ones, twos, fours = ones & places, twos & places, fours & places
    both = ones & twos
    return (
        popcount(ones),
        popcount(twos),
        popcount(fours),
        popcount(both),
        popcount(ones & fours),
        popcount(twos & fours),
        popcount(both & fours),
    )


@jit
def _add_sums(digits, eights, groups, found):
    """Add to `found` how many of so many groups have each sum, from what `_digits` gives, added up, and those of 8."""
    one, two, four, one_two, one_four, two_four, every = digits
    found[1] += one - one_two - one_four + every
    found[2] += two - one_two - two_four + every
    found[3] += one_two - every
    found[4] += four - one_four - two_four + every
    more = 0
    if found.shape[0] > 8:
        found[5] += one_four - every
        found[6] += two_four - every
        found[7] += every
        found[8] += eights
        more = eights
    found[0] += groups - more - one - two - four + one_two + one_four + two_four - every


@jit
def groups_along_rows(words, found4, found8):
    """Add to found4 (5,) and found8 (9,) how many groups of 4 or 8 columns have so many bits, behind the last too."""
    none = np.int64(0)
    low, lower = np.uint64(0x3333_3333_3333_3333), np.uint64(0x0F0F_0F0F_0F0F_0F0F)
    for row in range(words.shape[0]):
        a0, a1, a2, a01 = none, none, none, none
        b0, b1, b2, b3, b01, b02, b12, b012 = none, none, none, none, none, none, none, none
        for place in range(words.shape[1]):
            word = words[row, place]
            pairs = word - ((word >> np.uint64(1)) & np.uint64(0x5555_5555_5555_5555))
            fours = (pairs & low) + ((pairs >> np.uint64(2)) & low)
            a0 += popcount(fours & FOURS)
            a1 += popcount((fours >> np.uint64(1)) & FOURS)
            a2 += popcount((fours >> np.uint64(2)) & FOURS)
            a01 += popcount(fours & (fours >> np.uint64(1)) & FOURS)
            sums = (fours + (fours >> np.uint64(4))) & lower
            c0, c1, c2, c01, c02, c12, c012 = _digits(sums, sums >> np.uint64(1), sums >> np.uint64(2), EIGHTS)
            b0 += c0
            b1 += c1
            b2 += c2
            b01 += c01
            b02 += c02
            b12 += c12
            b012 += c012
            b3 += popcount((sums >> np.uint64(3)) & EIGHTS)
        _add_sums((a0, a1, a2, a01, none, none, none), none, 16 * words.shape[1], found4)
        _add_sums((b0, b1, b2, b01, b02, b12, b012), b3, 8 * words.shape[1], found8)


@jit
def groups_along_columns(words, size, found):
    """Add to `found` (size + 1,) how many groups of `size` rows of a column have so many bits, behind the last too.

    The rows are a multiple of `size`, 4 or 8.
    """
    none = np.int64(0)
    for begin in range(0, words.shape[0], size):
        b0, b1, b2, b3, b01, b02, b12, b012 = none, none, none, none, none, none, none, none
        for place in range(words.shape[1]):
            ones, twos, fours, eights = ZERO, ZERO, ZERO, ZERO
            for row in range(begin, begin + size):
                carry = words[row, place]
                ones, carry = ones ^ carry, ones & carry
                twos, carry = twos ^ carry, twos & carry
                fours, carry = fours ^ carry, fours & carry
                eights ^= carry
            c0, c1, c2, c01, c02, c12, c012 = _digits(ones, twos, fours, ALL)
            b0 += c0
            b1 += c1
            b2 += c2
            b01 += c01
            b02 += c02
            b12 += c12
            b012 += c012
            b3 += popcount(eights)
        _add_sums((b0, b1, b2, b01, b02, b12, b012), b3, 64 * words.shape[1], found)


@jit
def blocks(words, cols, size, steps, found):
    """Look at blocks of size (r, c), divisors of 64 and of rows and cols, whose elements should be all zero or all not.

    Args:
        steps: looks at every steps[0]-th 64 rows, and there at every steps[1]-th word.
        found: int64 (4,), to which is added: elements that are not as most of their block, blocks most of which is
            zero, blocks looked at, and bits set in them.
    """
    tall, wide = size
    last = words.shape[1] - 1
    starts_of_word, field = ONE, ALL
    for place in range(wide, 64, wide):
        starts_of_word |= ONE << np.uint64(place)
    if wide < 64:
        field = (ONE << np.uint64(wide)) - ONE
    for panel in range(0, words.shape[0], 64 * steps[0]):
        for begin in range(panel, min(panel + 64, words.shape[0]), tall):
            for place in range(0, words.shape[1], steps[1]):
                some, every = ZERO, ALL
                for row in range(begin, begin + tall):
                    some |= words[row, place]
                    every &= words[row, place]
                distance = 1
                while distance < wide:
                    some |= some >> np.uint64(distance)
                    every &= every >> np.uint64(distance)
                    distance *= 2
                starts = starts_of_word
                if place == last and cols & 63:
                    starts &= (ONE << np.uint64(cols & 63)) - ONE
                mixed = starts & some & ~every
                found[1] += popcount(starts & ~some)
                found[2] += popcount(starts)
                found[3] += popcount(starts & every) * tall * wide
                while mixed != ZERO:
                    start = np.uint64(lowest_bit(mixed))
                    mixed &= mixed - ONE
                    count = np.int64(0)
                    for row in range(begin, begin + tall):
                        count += popcount((words[row, place] >> start) & field)
                    found[0] += min(count, tall * wide - count)
                    found[1] += np.int64(2 * count < tall * wide)
                    found[3] += count


@jit
def extents(words, first, last):
    """Fill first and last (rows,) int64 with the first and last column of each row that has a bit; -1 without one."""
    for row in range(words.shape[0]):
        first[row], last[row] = -1, -1
        for place in range(words.shape[1]):
            if words[row, place] != ZERO:
                first[row] = 64 * place + lowest_bit(words[row, place])
                break
        if first[row] < 0:
            continue
        place = words.shape[1] - 1
        while words[row, place] == ZERO:
            place -= 1
        word, column = words[row, place], 64 * place
        while word > ONE:
            word >>= ONE
            column += 1
        last[row] = column


@jit
def in_band(words, height, below, above):
    """How many bits stand in columns i - below to i + above of a row i of a matrix of `height` rows."""
    count = np.int64(0)
    for row in range(words.shape[0]):
        begin = max(row % height - below, 0)
        end = min(row % height + above + 1, 64 * words.shape[1])
        if begin >= end:
            continue
        for place in range(begin >> 6, (end + 63) >> 6):
            word = words[row, place]
            if 64 * place < begin:
                word &= ALL << np.uint64(begin & 63)
            if 64 * place + 64 > end:
                word &= (ONE << np.uint64(end & 63)) - ONE
            count += popcount(word)
    return count


@jit
def density(words, cols, sums):
    """Add to `sums` (boxes down, boxes across) int64 the bits of rows and columns that fall into each box.

    Row i belongs to box i * down // rows, and column j likewise.
    """
    down, across = sums.shape
    rows = words.shape[0]
    for row in range(rows):
        target = row * down // rows
        for box in range(across):
            begin, end = -(-box * cols // across), -(-(box + 1) * cols // across)
            count = np.int64(0)
            for place in range(begin >> 6, (end + 63) >> 6):
                word = words[row, place]
                if 64 * place < begin:
                    word &= ALL << np.uint64(begin & 63)
                if 64 * place + 64 > end:
                    word &= (ONE << np.uint64(end & 63)) - ONE
                count += popcount(word)
            sums[target, box] += count
