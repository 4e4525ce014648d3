"""Bins: how rANS sees elements of any type.

The bits of an element are made a key: for floats, the sign goes to the lowest bit, so that a bin holds numbers of both
signs; low bits that are zero in all elements are left out; where elements ascend, as column numbers do, differences are
coded instead. Bins are dyadic: the keys of a bin are those with the same highest bits. The bins of a tensor are the
leaves of a binary tree that makes elements and tree together shortest, which is found exactly, from the bottom up. So
exponent and highest bits of the mantissa are modelled together, and gaps, few distinct values and values of another
type's precision need no special case to become short.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sparsefmt.codecs.rans.bitstring import BitReader, BitWriter

PREFIX_NBITS = 16
"""Highest bits of keys that are counted. Bins are narrower only where there are few distinct keys."""

TOP_NBITS = PREFIX_NBITS + 1
"""Highest bits of elements that tell the prefixes of their keys, wherever the sign goes."""

MAX_BINS = 1 << 12

BYTE_BINS = 1 << 8
"""Bins whose numbers fit a byte are decoded faster."""

MAX_WIDTH = 63
"""Bits of the place in a bin."""

COST_OF_BIN = 10.0
"""Bits that a bin costs in the model, about: two bits of the tree, its frequency."""


@dataclass(frozen=True)
class Keys:
    """How the bits of an element make a key.

    Attributes:
        nbits: of an element.
        shift: low bits, the sign apart, that are zero in every element.
        folded: whether the sign is the lowest bit of the key.
    """

    nbits: int
    shift: int
    folded: bool

    @property
    def key_nbits(self) -> int:
        return self.nbits - self.shift

    @property
    def prefix_nbits(self) -> int:
        """Bits of the prefixes of keys."""
        return min(self.key_nbits, PREFIX_NBITS)

    @property
    def sign(self) -> int:
        return self.nbits - 1 if self.folded else -1

    def prefixes_of_tops(self, tops: np.ndarray) -> np.ndarray:
        """The highest bits of the keys, PREFIX_NBITS at most, of elements of which these are the highest bits:
        TOP_NBITS, or all if they have no more. int64 (n,) both."""
        top_nbits = min(self.nbits, TOP_NBITS)
        if not self.folded:
            return tops >> (top_nbits - self.prefix_nbits)
        magnitudes = tops & ((1 << top_nbits - 1) - 1)
        if self.key_nbits > PREFIX_NBITS:
            return magnitudes >> (top_nbits - 1 - PREFIX_NBITS)
        # all bits of a key are in its prefix, and no others are set
        return magnitudes >> (top_nbits - self.key_nbits) << 1 | tops >> top_nbits - 1

    @property
    def sizes(self) -> tuple[np.unsignedinteger, np.unsignedinteger, np.uint32]:
        """How large elements are, below 2^15, as passes compute it: (bits kept, bits left out of these, most).

        With p the bits of an element that are kept, without the lowest ones, its size is p, or most - p if that is
        less. On that scale, floats are about their logarithms; zeros, and integers a little below 0, are 0.
        """
        of = np.dtype(f"u{self.nbits // 8}").type
        if self.folded:
            return of((1 << self.nbits - 1) - 1), of(self.nbits - self.prefix_nbits), np.uint32((1 << 16) - 1)
        return of((1 << self.nbits) - 1), of(self.nbits - self.prefix_nbits), np.uint32((1 << self.prefix_nbits) - 1)

    def of(self, elements: np.ndarray) -> np.ndarray:
        dtype = elements.dtype.type
        if not self.folded:
            return elements >> dtype(self.shift)
        sign = elements >> dtype(self.nbits - 1)
        return ((elements & dtype((1 << (self.nbits - 1)) - 1)) >> dtype(self.shift)) << dtype(1) | sign


class Bins(NamedTuple):
    """Disjoint dyadic intervals of keys, ascending.

    Attributes:
        cost: bits that the elements they were made for and the model take, about.
        lows: uint64, first key of each.
        widths: int64, log2 of the number of its keys.
        counts: int64, elements in it.
    """

    cost: float
    lows: np.ndarray
    widths: np.ndarray
    counts: np.ndarray


def best_bins(prefixes: np.ndarray, counts: np.ndarray, left_out: int, key_nbits: int) -> Bins:
    """The leaves of the tree over all keys that make elements and model shortest.

    Args:
        prefixes: the highest bits of keys, ascending, all of which occur.
        counts: how often.
        left_out: lower bits of a key that the prefixes have not.
    """

    def at_most(bins: int) -> Bins:
        cost_of_bin = COST_OF_BIN
        while True:
            found = _best_leaves(prefixes, counts, left_out, key_nbits, cost_of_bin)
            if len(found.lows) <= bins:
                return found
            cost_of_bin *= 2

    best = at_most(MAX_BINS)
    if len(best.lows) > BYTE_BINS:
        fewer = at_most(BYTE_BINS)
        if fewer.cost <= 1.001 * best.cost:
            return fewer
    return best


def _best_leaves(prefixes: np.ndarray, counts: np.ndarray, left_out: int, key_nbits: int, cost_of_bin: float) -> Bins:
    from sparsefmt.codecs.rans.jitted import bins as jitted

    lows, nodes = np.empty((2, prefixes.size), np.uint64)
    widths, sizes, firsts, leaf_levels = np.empty((4, prefixes.size), np.int64)
    sums, best = np.empty((2, prefixes.size))
    cost, count = jitted.best_leaves(
        prefixes.astype(np.uint64),
        counts.astype(np.int64),
        left_out,
        key_nbits,
        cost_of_bin,
        MAX_WIDTH,
        (nodes, sums, best, firsts, leaf_levels),
        lows,
        widths,
        sizes,
    )
    return Bins(cost, *(part[:count].copy() for part in (lows, widths, sizes)))


def write_tree(writer: BitWriter, lows: np.ndarray, widths: np.ndarray, key_nbits: int) -> None:
    """The tree whose used leaves are the bins, in preorder."""
    begin_of, width_of, bits = lows.tolist(), widths.tolist(), []
    # nodes that wait: the bins in each, its first key and its width
    waiting = [(0, len(begin_of), 0, key_nbits)]
    while waiting:
        begin, end, low, width = waiting.pop()
        if begin == end or (end == begin + 1 and width_of[begin] == width):
            bits += [False, begin < end] if width else [begin < end]
            continue
        bits.append(True)
        middle = low + (1 << (width - 1))
        split = bisect_left(begin_of, middle, begin, end)
        waiting += (split, end, middle, width - 1), (begin, split, low, width - 1)
    writer.write_bits(np.array(bits))


def read_tree(reader: BitReader, key_nbits: int) -> tuple[np.ndarray, np.ndarray]:
    """(lows, widths) of the bins, uint64 and int64."""
    from sparsefmt.codecs.rans.jitted import models

    lows, widths = np.empty(MAX_BINS, np.uint64), np.empty(MAX_BINS, np.int64)
    count = reader.run(models.get_tree, key_nbits, MAX_WIDTH, lows, widths)
    return lows[:count].copy(), widths[:count].copy()
