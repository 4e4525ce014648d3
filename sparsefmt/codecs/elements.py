"""Elements of any type as rANS codes them: a bin by rANS, the place in the bin as it is.

The bits of an element are made a key: for floats, the sign goes to the lowest bit, so that a bin holds numbers of both
signs; low bits that are zero in all elements are left out; where elements ascend, as column numbers do, differences are
coded instead. Bins are dyadic: the keys of a bin are those with the same
highest bits. The bins of a tensor are the leaves of a binary tree that makes elements and tree together shortest, which
is found exactly, from the bottom up. So exponent and highest bits of the mantissa are modelled together, and gaps, few
distinct values and values of another type's precision come out short by themselves.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sparsefmt.codecs import frequencies as freq
from sparsefmt.codecs.bitstring import BitReader, BitWriter
from sparsefmt.codecs.streams import Tables, refuse
from sparsefmt.errors import FormatError

PREFIX_BITS = 16
"""Highest bits of keys that are counted. Bins are narrower only where there are few distinct keys."""

MAX_DISTINCT = 1 << 12
"""Distinct keys up to which all bits of them are counted."""

MAX_BINS = 1 << 12

MAX_WIDTH = 63
"""Bits of the place in a bin."""

BITS_PER_BIN = 10.0
"""What a bin costs in the model, about: two bits of the tree, its frequency."""

LAGS = (0, 1, 8)
"""How far back an element may refer: 8 for what lies in slices of eight rows."""

_SAMPLE = 4096

_HEADER = struct.Struct("<Q")

Each = Callable[[Callable[[np.ndarray], object]], Iterator]
"""each(work): work(elements) for every tile of a tensor, in order, in parallel."""


@dataclass(frozen=True)
class Keys:
    """How the bits of an element make a key.

    Attributes:
        bits: of an element.
        shift: low bits, the sign apart, that are zero in every element.
        folded: whether the sign is the lowest bit of the key.
        lag: elements are the difference, modulo 2^bits, to the one that is so many before; 0 if they are themselves.
    """

    bits: int
    shift: int
    folded: bool
    lag: int

    @property
    def key_bits(self) -> int:
        return self.bits - self.shift

    @property
    def sign(self) -> int:
        return self.bits - 1 if self.folded else -1

    def prefixes(self, elements: np.ndarray) -> np.ndarray:
        """The highest bits of the keys, PREFIX_BITS at most."""
        return self.of(elements) >> elements.dtype.type(max(self.key_bits - PREFIX_BITS, 0))

    def of(self, elements: np.ndarray) -> np.ndarray:
        dtype = elements.dtype.type
        if not self.folded:
            return elements >> dtype(self.shift)
        sign = elements >> dtype(self.bits - 1)
        return ((elements & dtype((1 << (self.bits - 1)) - 1)) >> dtype(self.shift)) << dtype(1) | sign


@dataclass(frozen=True)
class Bins:
    """Disjoint dyadic intervals of keys, ascending.

    Attributes:
        lows: first key of each.
        widths: log2 of the number of its keys.
        frequencies: sum to 2^precision.
    """

    lows: list[int]
    widths: list[int]
    frequencies: np.ndarray
    precision: int


def fit(each: Each, bits: int) -> bytes:
    """The model for all elements of a tensor: b"" if there are none."""
    lag = next((tile_lag for tile_lag in each(_best_lag) if tile_lag is not None), 0)

    def lagged(work: Callable[[np.ndarray], object]) -> Iterator:
        return each(lambda elements: work(differences(elements, lag)))

    every, count = 0, 0
    for tile_or, tile_count in lagged(lambda elements: (int(np.bitwise_or.reduce(elements)), elements.size)):
        every, count = every | tile_or, count + tile_count
    if not count:
        return b""
    found = []
    for folded in (False, True) if bits > 1 else (False,):
        low = every & ~(int(folded) << (bits - 1))
        shift = (low & -low).bit_length() - 1 if low else bits - 1
        keys = Keys(bits, shift, folded, lag)
        found.append((*_best_bins(*_counted(lagged, keys), keys.key_bits), keys))
    _, lows, widths, counts, keys = min(found, key=lambda candidate: candidate[0])
    precision = 11 if len(lows) <= 64 else 12 if len(lows) <= 256 else 14
    return _write(keys, Bins(lows, widths, freq.normalised(np.array(counts), precision), precision))


def differences(elements: np.ndarray, lag: int) -> np.ndarray:
    """What is coded instead of the elements, read-only."""
    if not lag:
        return elements
    out = elements.copy()
    out[lag:] -= elements[:-lag]
    out.flags.writeable = False
    return out


def _undo_differences(elements: np.ndarray, lag: int) -> None:
    """Undo `differences` in place."""
    whole = elements.size // lag * lag
    by_lag = elements[:whole].reshape(-1, lag)
    np.cumsum(by_lag, axis=0, dtype=elements.dtype, out=by_lag)
    if whole:
        elements[whole:] += by_lag[-1, : elements.size - whole]


def _best_lag(elements: np.ndarray) -> int | None:
    """The lag that makes the first elements of a tile shortest, by far; None if there are none."""
    if not elements.size:
        return None
    sample, costs = elements[:_SAMPLE], {}
    for lag in LAGS:
        keys, counts = np.unique(differences(sample, lag), return_counts=True)
        costs[lag] = _best_leaves(keys, counts, 0, 8 * elements.itemsize, BITS_PER_BIN)[0]
    best = min(costs, key=lambda lag: costs[lag])
    return best if costs[best] < 0.9 * costs[0] else 0


def _counted(each: Each, keys: Keys) -> tuple[np.ndarray, np.ndarray, int]:
    """(prefixes, how often they occur, low bits of a key that they leave out)."""
    counts = np.zeros(1 << min(PREFIX_BITS, keys.key_bits), np.int64)
    size = counts.size
    for tile_counts in each(lambda elements: np.bincount(keys.prefixes(elements), minlength=size)):
        counts += tile_counts
    left_out = max(keys.key_bits - PREFIX_BITS, 0)
    if left_out and (distinct := _distinct(each, keys)) is not None:
        return *distinct, 0
    used = np.flatnonzero(counts)
    return used.astype(np.uint64), counts[used], left_out


def _distinct(each: Each, keys: Keys) -> tuple[np.ndarray, np.ndarray] | None:
    """All keys and their counts, if they are few."""

    def few(elements: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        if np.unique(keys.of(elements[: 4 * MAX_DISTINCT])).size > MAX_DISTINCT:
            return None
        return np.unique(keys.of(elements), return_counts=True)

    found, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    for tile in each(few):
        if tile is None:
            return None
        found, inverse = np.unique(np.concatenate([found, tile[0].astype(np.uint64)]), return_inverse=True)
        if found.size > MAX_DISTINCT:
            return None
        counts = np.bincount(inverse, np.concatenate([counts, tile[1]]), found.size).astype(np.int64)
    return found, counts


def _best_bins(
    prefixes: np.ndarray, counts: np.ndarray, left_out: int, key_bits: int
) -> tuple[float, list[int], list[int], list[int]]:
    """(bits of elements and model, lows, widths, counts) of the best leaves of the tree over all keys."""
    bits_per_bin = BITS_PER_BIN
    while True:
        found = _best_leaves(prefixes, counts, left_out, key_bits, bits_per_bin)
        if len(found[1]) <= MAX_BINS:
            return found
        bits_per_bin *= 2


def _best_leaves(
    prefixes: np.ndarray, counts: np.ndarray, left_out: int, key_bits: int, bits_per_bin: float
) -> tuple[float, list[int], list[int], list[int]]:
    total = float(counts.sum())
    levels: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    nodes, sums = prefixes.astype(np.uint64), counts.astype(np.float64)
    best = np.zeros(nodes.size)
    for width in range(left_out, key_bits + 1):
        leaf = sums * (width + np.log2(total / sums)) + bits_per_bin
        is_leaf = leaf <= best if width > left_out else np.ones(nodes.size, bool)
        is_leaf &= width <= MAX_WIDTH
        best = np.where(is_leaf, leaf, best)
        levels.append((nodes, is_leaf, sums))
        if width == key_bits:
            break
        parents = nodes >> np.uint64(1)
        first = np.flatnonzero(np.concatenate([[True], parents[1:] != parents[:-1]]))
        children = np.diff(np.concatenate([first, [nodes.size]]))
        # a split is a bit, an empty half is two more
        best = np.add.reduceat(best, first) + np.where(children == 2, 1.0, 3.0)
        sums, nodes = np.add.reduceat(sums, first), parents[first]
    bins: list[tuple[int, int, int]] = []
    active = levels[-1][0]
    for width in range(key_bits, left_out - 1, -1):
        nodes, is_leaf, sums = levels[width - left_out]
        here = np.isin(nodes, active) if width < key_bits else np.ones(nodes.size, bool)
        leaves = here & is_leaf
        bins += [
            (node << width, width, int(count)) for node, count in zip(nodes[leaves].tolist(), sums[leaves], strict=True)
        ]
        if width > left_out:
            split = nodes[here & ~is_leaf] << np.uint64(1)
            active = np.concatenate([split, split | np.uint64(1)])
    bins.sort()
    lows, widths, sizes = (list(part) for part in zip(*bins, strict=True))
    return float(best[0]), lows, widths, sizes


def _write(keys: Keys, bins: Bins) -> bytes:
    writer = BitWriter()
    writer.write(LAGS.index(keys.lag), 2)
    writer.write(int(keys.folded), 1)
    writer.write(keys.shift, 6)
    freq.write_precision(writer, bins.precision)
    _write_tree(writer, bins, 0, len(bins.lows), 0, keys.key_bits)
    freq.write_positive(writer, bins.frequencies, bins.precision, bins.widths)
    return writer.tobytes()


def _write_tree(writer: BitWriter, bins: Bins, begin: int, end: int, low: int, width: int) -> None:
    """The node of keys [low, low + 2^width), which holds bins begin to end."""
    if begin == end or (end == begin + 1 and bins.widths[begin] == width):
        if width:
            writer.write(0, 1)
        writer.write(int(begin < end), 1)
        return
    writer.write(1, 1)
    middle = low + (1 << (width - 1))
    at = next((number for number in range(begin, end) if bins.lows[number] >= middle), end)
    _write_tree(writer, bins, begin, at, low, width - 1)
    _write_tree(writer, bins, at, end, middle, width - 1)


def _read(model: bytes, bits: int) -> tuple[Keys, Bins]:
    reader = BitReader(model)
    lag, folded, shift = reader.read(2), bool(reader.read(1)), reader.read(6)
    if lag >= len(LAGS):
        raise FormatError("rans-model", "a model has differences of a kind that is not known")
    if shift > bits - 1:
        raise FormatError("rans-model", f"a model leaves out {shift} of {bits} bits")
    keys = Keys(bits, shift, folded, LAGS[lag])
    precision = freq.read_precision(reader)
    lows: list[int] = []
    widths: list[int] = []
    pending = [(0, keys.key_bits)]
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
    frequencies = freq.read_positive(reader, len(lows), precision, widths)
    if reader.rest():
        raise FormatError("rans-model", "a model is longer than what it says")
    return keys, Bins(lows, widths, frequencies, precision)


class Coder:
    """A model made ready."""

    def __init__(self, model: bytes, bits: int) -> None:
        self.keys, bins = _read(model, bits)
        self.lows = np.array(bins.lows, np.uint64)
        self.widths = np.array(bins.widths, np.uint8)
        self.tables = Tables(bins.frequencies, bins.precision)

    def _first_bins(self) -> np.ndarray:
        """For every prefix, the first bin that may hold a key with it."""
        left_out = max(self.keys.key_bits - PREFIX_BITS, 0)
        prefixes = self.lows >> np.uint64(left_out)
        first = np.searchsorted(prefixes, np.arange(1 << min(self.keys.key_bits, PREFIX_BITS)), "left")
        # a bin that begins before a prefix may hold it
        begins_here = (first < prefixes.size) & (
            prefixes[np.minimum(first, prefixes.size - 1)] == np.arange(first.size, dtype=np.uint64)
        )
        return np.where(begins_here, first, np.maximum(first - 1, 0)).astype(np.int32)

    def encode(self, elements: np.ndarray) -> bytes:
        """elements: unsigned integers, read-only. Raises FormatError if one was not there when the model was made."""
        from sparsefmt.codecs.passes import elements as passes

        elements = differences(elements, self.keys.lag)
        symbols = np.empty(elements.size, np.uint16)
        offsets = np.zeros(elements.size * int(self.widths.max()) // 64 + 2, np.uint64)
        key_bits, sign, shift = self.keys.key_bits, self.keys.sign, self.keys.shift
        status, offset_bits = passes.split(
            elements, self.lows, self.widths, self._first_bins(), key_bits, sign, shift, symbols, offsets
        )
        if status != passes.OK:
            raise FormatError("tensor-changed", "it changed while it was saved: save a copy")
        return _HEADER.pack(offset_bits) + offsets[: -(-offset_bits // 64)].tobytes() + self.tables.pack(symbols)

    def decode(self, stored: np.ndarray, out: np.ndarray) -> None:
        """Fill `out`, unsigned integers. Raises FormatError."""
        from sparsefmt.codecs.passes import elements as passes

        if stored.size < _HEADER.size:
            raise FormatError("rans-stream", "a chunk ends too early")
        (offset_bits,) = _HEADER.unpack(stored[: _HEADER.size].tobytes())
        offset_words = -(-offset_bits // 64)
        begin = _HEADER.size + 8 * offset_words
        if begin > stored.size:
            raise FormatError("rans-stream", "a chunk ends too early")
        offsets = np.zeros(offset_words + passes.PADDING, np.uint64)
        offsets[:offset_words].view(np.uint8)[:] = stored[_HEADER.size : begin]
        if offset_bits % 64 and int(offsets[offset_words - 1]) >> offset_bits % 64:
            raise FormatError("rans-stream", "unused bits of a chunk are not zero")
        symbols = self.tables.unpack(stored[begin:], out.size)
        sign, shift = self.keys.sign, self.keys.shift
        refuse(passes.join(symbols, self.lows, self.widths, offsets, offset_bits, sign, shift, out))
        if self.keys.lag:
            _undo_differences(out, self.keys.lag)


@lru_cache(maxsize=256)
def coder(model: bytes, bits: int) -> Coder:
    """The coder of a model; remembered, since a tensor has one for all its tiles."""
    return Coder(model, bits)
