"""Bins: how rANS sees elements of any type.

The bits of an element are made a key: for floats, the sign goes to the lowest bit, so that a bin holds numbers of both
signs; low bits that are zero in all elements are left out; where elements ascend, as column numbers do, differences are
coded instead. Bins are dyadic: the keys of a bin are those with the same highest bits. The bins of a tensor are the
leaves of a binary tree that makes elements and tree together shortest, which is found exactly, from the bottom up. So
exponent and highest bits of the mantissa are modelled together, and gaps, few distinct values and values of another
type's precision come out short by themselves.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sparsefmt.codecs.bitstring import BitReader, BitWriter
from sparsefmt.errors import FormatError

PREFIX_BITS = 16
"""Highest bits of keys that are counted. Bins are narrower only where there are few distinct keys."""

MAX_BINS = 1 << 12

BYTE_BINS = 1 << 8
"""Bins whose numbers fit a byte are decoded faster."""

MAX_WIDTH = 63
"""Bits of the place in a bin."""

BITS_PER_BIN = 10.0
"""What a bin costs in the model, about: two bits of the tree, its frequency."""


@dataclass(frozen=True)
class Keys:
    """How the bits of an element make a key.

    Attributes:
        bits: of an element.
        shift: low bits, the sign apart, that are zero in every element.
        folded: whether the sign is the lowest bit of the key.
    """

    bits: int
    shift: int
    folded: bool

    @property
    def key_bits(self) -> int:
        return self.bits - self.shift

    @property
    def prefix_bits(self) -> int:
        """Bits of the prefixes of keys."""
        return min(self.key_bits, PREFIX_BITS)

    @property
    def sign(self) -> int:
        return self.bits - 1 if self.folded else -1

    def prefixes(self, elements: np.ndarray) -> np.ndarray:
        """The highest bits of the keys, PREFIX_BITS at most."""
        return self.of(elements) >> elements.dtype.type(self.key_bits - self.prefix_bits)

    def sizes(self, elements: np.ndarray) -> np.ndarray:
        """How large elements are, on a scale on which floats are about their logarithms; 0 for zeros."""
        prefixes = self.prefixes(elements)
        if self.folded:
            return prefixes >> prefixes.dtype.type(1)
        # as integers below zero are
        negative = prefixes.dtype.type((1 << self.prefix_bits) - 1) - prefixes
        return np.minimum(prefixes, negative)

    def of(self, elements: np.ndarray) -> np.ndarray:
        dtype = elements.dtype.type
        if not self.folded:
            return elements >> dtype(self.shift)
        sign = elements >> dtype(self.bits - 1)
        return ((elements & dtype((1 << (self.bits - 1)) - 1)) >> dtype(self.shift)) << dtype(1) | sign


class Bins(NamedTuple):
    """Disjoint dyadic intervals of keys, ascending.

    Attributes:
        bits: that the elements they were made for and the model take, about.
        lows: first key of each.
        widths: log2 of the number of its keys.
        counts: elements in it.
    """

    bits: float
    lows: list[int]
    widths: list[int]
    counts: list[int]


def best_bins(prefixes: np.ndarray, counts: np.ndarray, left_out: int, key_bits: int) -> Bins:
    """The leaves of the tree over all keys that make elements and model shortest.

    Args:
        prefixes: the highest bits of keys, ascending, all of which occur.
        counts: how often.
        left_out: lower bits of a key that the prefixes have not.
    """

    def at_most(bins: int) -> Bins:
        bits_per_bin = BITS_PER_BIN
        while True:
            found = _best_leaves(prefixes, counts, left_out, key_bits, bits_per_bin)
            if len(found.lows) <= bins:
                return found
            bits_per_bin *= 2

    best = at_most(MAX_BINS)
    if len(best.lows) > BYTE_BINS:
        fewer = at_most(BYTE_BINS)
        if fewer.bits <= 1.001 * best.bits:
            return fewer
    return best


def _best_leaves(prefixes: np.ndarray, counts: np.ndarray, left_out: int, key_bits: int, bits_per_bin: float) -> Bins:
    total = float(counts.sum())
    nodes, sums, best = prefixes.astype(np.uint64), counts.astype(np.float64), np.zeros(prefixes.size)
    levels: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for width in range(left_out, key_bits + 1):
        leaf = sums * (width + np.log2(total / sums)) + bits_per_bin
        is_leaf = leaf <= best if width > left_out else np.ones(nodes.size, bool)
        is_leaf &= width <= MAX_WIDTH
        best = np.where(is_leaf, leaf, best)
        parents = nodes >> np.uint64(1)
        first = np.flatnonzero(np.concatenate([[True], parents[1:] != parents[:-1]]))
        children = np.diff(np.concatenate([first, [nodes.size]]))
        levels.append((nodes, sums, is_leaf, children))
        if width == key_bits:
            break
        # a split is a bit, an empty half is two more
        best = np.add.reduceat(best, first) + np.where(children == 2, 1.0, 3.0)
        sums, nodes = np.add.reduceat(sums, first), parents[first]
    bins: list[tuple[int, int, int]] = []
    reached = np.ones(1, bool)
    for width in range(key_bits, left_out - 1, -1):
        nodes, sums, is_leaf, _ = levels[width - left_out]
        here = reached & is_leaf
        bins += [
            (node << width, width, int(count)) for node, count in zip(nodes[here].tolist(), sums[here], strict=True)
        ]
        if width > left_out:
            reached = np.repeat(reached & ~is_leaf, levels[width - 1 - left_out][3])
    bins.sort()
    lows, widths, sizes = (list(part) for part in zip(*bins, strict=True))
    return Bins(float(best[0]), lows, widths, sizes)


def write_tree(writer: BitWriter, lows: list[int], widths: list[int], key_bits: int) -> None:
    """The tree whose used leaves are the bins, in preorder."""

    def write(begin: int, end: int, low: int, width: int) -> None:
        """The node of keys [low, low + 2^width), which holds bins begin to end."""
        if begin == end or (end == begin + 1 and widths[begin] == width):
            if width:
                writer.write(0, 1)
            writer.write(int(begin < end), 1)
            return
        writer.write(1, 1)
        middle = low + (1 << (width - 1))
        at = bisect_left(lows, middle, begin, end)
        write(begin, at, low, width - 1)
        write(at, end, middle, width - 1)

    write(0, len(lows), 0, key_bits)


def read_tree(reader: BitReader, key_bits: int) -> tuple[list[int], list[int]]:
    """(lows, widths) of the bins."""
    lows: list[int] = []
    widths: list[int] = []
    pending = [(0, key_bits)]
    while pending:
        low, width = pending.pop()
        if width and reader.read(1):
            pending += [(low + (1 << (width - 1)), width - 1), (low, width - 1)]
        elif reader.read(1):
            if width > MAX_WIDTH:
                raise FormatError("rans-model", f"a bin of a model is {width} bits wide")
            lows.append(low)
            widths.append(width)
            if len(lows) > MAX_BINS:
                raise FormatError("rans-model", f"a model has over {MAX_BINS:,} bins")
    if not lows:
        raise FormatError("rans-model", "a model has no bin")
    return lows, widths
