"""Elements of any type as rANS codes them: a bin (`bins.py`) by rANS, the place in the bin as it is.

Where the elements are those of a matrix, rows and columns differ in how large their elements are: then the class of the
row and that of the column (`classes.py`) together say which frequencies bins have.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from sparsefmt.codecs.rans import bins as bins_
from sparsefmt.codecs.rans import classes as cls
from sparsefmt.codecs.rans import frequencies as freq
from sparsefmt.codecs.rans.bins import Bins, Keys
from sparsefmt.codecs.rans.bitstring import BitReader, BitWriter
from sparsefmt.codecs.rans.classes import Classes
from sparsefmt.codecs.rans.streams import Tables, refuse
from sparsefmt.errors import FormatError

MAX_DISTINCT = 1 << 12
"""Distinct keys up to which all bits of them are counted."""

LAGS = (0, 1, 8)
"""How far back an element may refer: 8 for what lies in slices of eight rows."""

WORTH_CLASSES = 2000
"""Elements of a tensor below which no classes are tried: they would take more than they save."""

_SAMPLE = 4096

_HEADER = struct.Struct("<Q")

Before = Mapping[str, np.ndarray]
"""The arrays of the tile that come before, by name."""

Each = Callable[[Callable[[np.ndarray, Before, range], object]], Iterator]
"""each(work): work(elements, arrays before, rows) for every tile of a tensor, in order, in parallel."""


class Places(NamedTuple):
    """Where the elements of a tile stand in its matrix, row by row.

    Attributes:
        counts: int64 (rows,): elements in each row.
        columns: int32 (elements,): column of each.
    """

    counts: np.ndarray
    columns: np.ndarray


def places(before: Before, rows: int, cols: int, count: int) -> Places | None:
    """Where `count` elements stand: those of a mask, or all; None for others."""
    from sparsefmt.codecs.rans.jitted import elements as jitted

    if "mask" in before:
        mask = before["mask"].view(np.uint64).reshape(rows, -1)
        counts = np.bitwise_count(mask).sum(1, dtype=np.int64)
        if int(counts.sum()) != count:
            return None
        columns = np.empty(count, np.int32)
        mask.flags.writeable = False
        jitted.columns_of(mask, columns)
        return Places(counts, columns)
    if before or count != rows * cols:
        return None
    return Places(np.full(rows, cols, np.int64), np.tile(np.arange(cols, dtype=np.int32), rows))


@dataclass(frozen=True)
class Model:
    """How the elements of a tensor are coded.

    Attributes:
        lows, widths: of the bins, uint64 and int64.
        precision: of the tables.
        tables: (tables, bins) frequencies.
    """

    keys: Keys
    lag: int
    lows: np.ndarray
    widths: np.ndarray
    precision: int
    classes: Classes
    tables: np.ndarray


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


_AT_ONCE = 1 << 18
"""Elements for which there are temporaries of eight bytes each at a time."""


def _parts(elements: np.ndarray) -> Iterator[np.ndarray]:
    """Runs of elements, _AT_ONCE at most."""
    return (elements[begin : begin + _AT_ONCE] for begin in range(0, elements.size, _AT_ONCE))


_FEW = 1 << 13
"""Numbers of 16 bits below which it is faster to sort them than to count into a table of all that there could be."""


def _counted(numbers: Iterator[np.ndarray], size: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct numbers, ascending, and how often each occurs. numbers: parts of `size` numbers below `bins`."""
    if size < _FEW:
        return np.unique(np.concatenate([np.empty(0, np.uint16), *numbers]), return_counts=True)
    counts = np.zeros(bins, np.int64)
    for part in numbers:
        counts += np.bincount(part, minlength=bins)
    used = np.flatnonzero(counts)
    return used, counts[used]


class _Counts:
    """How often numbers below `bins` occur, from those of each tile."""

    def __init__(self, bins: int) -> None:
        self._bins = bins
        self._one: tuple[np.ndarray, np.ndarray] | None = None
        self._all: np.ndarray | None = None

    def add(self, used: np.ndarray, counts: np.ndarray) -> None:
        if self._one is None and self._all is None:
            self._one = used, counts
            return
        if self._all is None:
            assert self._one is not None
            self._all = np.zeros(self._bins, np.int64)
            self._all[self._one[0]] = self._one[1]
            self._one = None
        self._all[used] += counts

    def used(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct numbers, ascending, and how often each occurs, int64."""
        if self._all is not None:
            used = np.flatnonzero(self._all)
            return used, self._all[used]
        return self._one or (np.empty(0, np.int64), np.empty(0, np.int64))


def fit(each: Each, bits: int, rows: int, cols: int) -> bytes:
    """The model for all elements of a tensor of so many rows and columns: b"" if there are none.

    Beside the tiles, it takes up to 16 bytes for each row, and for each column if they get classes.
    """
    lags = each(lambda elements, before, rows: 0 if "mask" in before else _best_lag(elements))
    lag = next((found for found in lags if found is not None), 0)

    def lagged(work: Callable[[np.ndarray], object]) -> Iterator:
        return each(lambda elements, before, rows: work(differences(elements, lag)))

    found = list(_binned(lagged, bits))
    if not found:
        return b""
    bins, keys = min(found, key=lambda candidate: candidate[0].bits)
    precision = 11 if len(bins.lows) <= 64 else 12 if len(bins.lows) <= 256 else 14
    one = Classes(1, np.zeros(1, np.uint8), np.array([1 << cls.PRECISION]), None)
    table = freq.normalised(bins.counts, precision)
    model = Model(keys, lag, bins.lows, bins.widths, precision, one, table[None])
    if int(bins.counts.sum()) >= WORTH_CLASSES and not lag and 1 < len(bins.lows) <= 256:
        model = _with_classes(each, model, bins, rows, cols) or model
    return _write(model)


def _best_lag(elements: np.ndarray) -> int | None:
    """The lag that makes the first elements of a tile shortest, by far; None if there are none."""
    if not elements.size:
        return None
    sample, costs = elements[:_SAMPLE], {}
    for lag in LAGS:
        keys, counts = np.unique(differences(sample, lag), return_counts=True)
        costs[lag] = bins_.best_bins(keys, counts, 0, 8 * elements.itemsize).bits
    best = min(costs, key=lambda lag: costs[lag])
    return best if costs[best] < 0.9 * costs[0] else 0


EachOf = Callable[[Callable[[np.ndarray], object]], Iterator]
"""each(work): work(what is coded) for every tile of a tensor, likewise."""


def _binned(each: EachOf, bits: int) -> Iterator[tuple[Bins, Keys]]:
    """The best bins for each way of making keys; nothing if there are no elements."""
    if bits <= bins_.PREFIX_BITS:
        total = _Counts(1 << bits)
        for tile in each(lambda elements: _counted(_parts(elements), elements.size, 1 << bits)):
            total.add(*tile)
        used, counts = total.used()
        elements = used.astype(f"u{max(bits // 8, 1)}")
        for keys in _ways(int(np.bitwise_or.reduce(used)), bits) if used.size else ():
            of_elements = keys.of(elements)
            order = np.argsort(of_elements)
            yield bins_.best_bins(of_elements[order].astype(np.uint64), counts[order], 0, keys.key_bits), keys
        return
    every, count = 0, 0
    for tile_or, tile_count in each(lambda elements: (int(np.bitwise_or.reduce(elements)), elements.size)):
        every, count = every | tile_or, count + tile_count
    if not count:
        return
    ways = _ways(every, bits)

    def count_prefixes(elements: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        numbers = (map(keys.prefixes, _parts(elements)) for keys in ways)
        return [_counted(of, elements.size, 1 << keys.prefix_bits) for of, keys in zip(numbers, ways, strict=True)]

    totals = [_Counts(1 << keys.prefix_bits) for keys in ways]
    for tile in each(count_prefixes):
        for total, found in zip(totals, tile, strict=True):
            total.add(*found)
    for keys, total in zip(ways, totals, strict=True):
        left_out = keys.key_bits - keys.prefix_bits
        if left_out and (distinct := _distinct(each, keys)) is not None:
            yield bins_.best_bins(*distinct, 0, keys.key_bits), keys
        else:
            used, counts = total.used()
            yield bins_.best_bins(used.astype(np.uint64), counts, left_out, keys.key_bits), keys


def _ways(every: int, bits: int) -> list[Keys]:
    """How keys can be made of elements, `every` being all of them or'ed together."""
    ways = []
    for folded in (False, True):
        low = every & ~(int(folded) << (bits - 1))
        ways.append(Keys(bits, (low & -low).bit_length() - 1 if low else bits - 1, folded))
    return ways


def _distinct(each: EachOf, keys: Keys) -> tuple[np.ndarray, np.ndarray] | None:
    """All keys and their counts, if they are few."""

    def few(elements: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        if np.unique(keys.of(elements[: 4 * MAX_DISTINCT])).size > MAX_DISTINCT:
            return None
        return _united(np.unique(keys.of(part), return_counts=True) for part in _parts(elements))

    return _united(each(few))


def _united(
    parts: Iterable[tuple[np.ndarray, np.ndarray] | None],
) -> tuple[np.ndarray, np.ndarray] | None:
    """Distinct keys and their counts from those of parts; None if there are over MAX_DISTINCT, or a part is None."""
    found, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    for part in parts:
        if part is None:
            return None
        found, inverse = np.unique(np.concatenate([found, part[0].astype(np.uint64)]), return_inverse=True)
        if found.size > MAX_DISTINCT:
            return None
        counts = np.bincount(inverse, np.concatenate([counts, part[1]]), found.size).astype(np.int64)
    return found, counts


class _Scale:
    """How large the elements of rows (or columns) are.

    Attributes:
        sums: of `Keys.sizes`, int64.
        counts: elements but zeros, uint32.
    """

    def __init__(self, count: int) -> None:
        self.sums, self.counts = np.zeros(count, np.int64), np.zeros(count, np.uint32)

    def _means(self, some: slice, mean: float) -> np.ndarray:
        return np.where(self.counts[some] > 0, self.sums[some] / np.maximum(self.counts[some], 1), mean)

    def classes(self, mean: float, deviation: float, step: float) -> np.ndarray:
        """A class for each, uint8, from 0 on, `step` apart."""
        if not step:
            return np.zeros(self.sums.size, np.uint8)
        least, most = mean, mean
        for begin in range(0, self.sums.size, _AT_ONCE):
            means = self._means(slice(begin, begin + _AT_ONCE), mean)
            least, most = min(least, float(means.min())), max(most, float(means.max()))
        candidates = cls.candidates((least - mean) / step, (most - mean) / step)

        def costs(some: slice) -> np.ndarray:
            apart = (self._means(some, mean)[:, None] - mean - step * candidates) / deviation
            # what elements of a normal distribution lose if it is taken to be elsewhere
            return self.counts[some, None] * np.log2(np.e) / 2 * apart**2

        return cls.assign(costs, self.sums.size, candidates.size)


_STEPS = ((0.5, 0), (0, 0.5), (0.5, 0.5), (0.25, 0.25))
"""How far classes of rows and of columns are apart, of what is tried, in standard deviations of what they measure."""


class _Candidate(NamedTuple):
    """Classes of all rows and columns."""

    rows: np.ndarray
    columns: np.ndarray

    @property
    def sums(self) -> int:
        """How many sums of two classes there can be."""
        return int(self.rows.max(initial=0)) + int(self.columns.max(initial=0)) + 1

    def merged(self, counts: np.ndarray) -> tuple[float, np.ndarray]:
        """(bits of elements counted as (sums, symbols), and of the model; the table of each sum)."""
        bits, table_of = cls.merged(counts, _table_bits(2, counts.shape[1]), 0.0)
        return bits + sum(freq.entropy_bits(cls.member_counts(part)) for part in (self.rows, self.columns)), table_of


def _with_classes(each: Each, plain: Model, bins: Bins, rows: int, cols: int) -> Model | None:
    """The model with classes of rows and columns, if that makes the elements shorter."""
    from sparsefmt.codecs.rans.jitted import elements as jitted

    if cols > cls.MAX_COLS:
        return None
    keys, of_rows, of_columns = plain.keys, _Scale(rows), _Scale(cols)

    def measure(elements: np.ndarray, before: Before, some: range) -> tuple[_Scale, float] | None:
        where = places(before, len(some), cols, elements.size)
        if where is None:
            return None
        sizes = keys.sizes(elements)
        tile_rows, tile_columns = _Scale(len(some)), _Scale(cols)
        jitted.measure(
            sizes,
            where.counts,
            where.columns,
            tile_rows.sums,
            tile_rows.counts,
            tile_columns.sums,
            tile_columns.counts,
        )
        of_rows.sums[some.start : some.stop] = tile_rows.sums
        of_rows.counts[some.start : some.stop] = tile_rows.counts
        squares = sum(float(np.square(part, dtype=np.float32).sum(dtype=np.float64)) for part in _parts(sizes))
        return tile_columns, squares

    squares = 0.0
    for tile in each(measure):
        if tile is None:
            return None
        of_columns.sums += tile[0].sums
        of_columns.counts += tile[0].counts
        squares += tile[1]
    count = max(int(of_rows.counts.sum(dtype=np.int64)), 1)
    mean = float(of_rows.sums.sum() / count)
    deviation = float(np.sqrt(max(squares / count - mean**2, 1e-9)))
    candidates = []
    by_row_step, by_column_step = (
        {step: scale.classes(mean, deviation, step * deviation) for step in set(steps)}
        for scale, steps in zip((of_rows, of_columns), zip(*_STEPS, strict=True), strict=True)
    )
    for row_step, column_step in _STEPS:
        row_classes, column_classes = by_row_step[row_step], by_column_step[column_step]
        if row_classes.any() or column_classes.any():
            candidates.append(_Candidate(row_classes, column_classes))
    if not candidates:
        return None
    coder, number = Coder(_write(plain), keys.bits, cols), len(plain.lows)

    def counting(some: list[_Candidate]) -> Callable[[np.ndarray, Before, range], list[np.ndarray]]:
        def count_symbols(elements: np.ndarray, before: Before, rows: range) -> list[np.ndarray]:
            where = places(before, len(rows), cols, elements.size)
            assert where is not None
            symbols, found = coder.split(elements)[0], []
            for candidate in some:
                found.append(np.zeros((candidate.sums, number), np.int64))
                part = candidate.rows[rows.start : rows.stop]
                jitted.histogram(symbols, where.counts, where.columns, part, candidate.columns, found[-1])
            return found

        return count_symbols

    # the first tile says which of them it will be
    first = each(counting(list(candidates)))
    sample = next(first)
    del first  # the other tiles need not be counted
    share = int(bins.counts.sum()) / max(int(sample[0].sum()), 1)
    scaled = [np.rint(counts * share).astype(np.int64) for counts in sample]
    best = min(range(len(candidates)), key=lambda index: candidates[index].merged(scaled[index])[0])
    candidate = candidates[best]
    counts = sample[best] if share == 1 else sum(found[0] for found in each(counting([candidate])))
    bits, table_of = candidate.merged(counts)
    if bits >= freq.entropy_bits(bins.counts) + _table_bits(1, number) or not table_of[-1]:
        return None
    precision = min(plain.precision + 1, 12)
    tables = [freq.normalised(line, precision) for line in cls.lines(counts, table_of)]
    classes = Classes(
        int(candidate.rows.max()) + 1,
        table_of,
        freq.normalised(cls.member_counts(candidate.rows), cls.PRECISION),
        candidate.columns if candidate.columns.any() else None,
    )
    return Model(keys, 0, plain.lows, plain.widths, precision, classes, np.array(tables))


def _table_bits(kind: int, bins: int) -> float:
    """Bits of a table: of the only one, and of one of several, where bins may not occur."""
    return (6.0 + kind) * bins


def _write(model: Model) -> bytes:
    writer = BitWriter()
    writer.write(LAGS.index(model.lag), 2)
    writer.write(int(model.keys.folded), 1)
    writer.write(model.keys.shift, 6)
    freq.write_precision(writer, model.precision)
    cls.write_count(writer, model.classes.rows)
    cls.write_count(writer, model.classes.column_count)
    cls.write_steps(writer, model.classes)
    bins_.write_tree(writer, model.lows, model.widths, model.keys.key_bits)
    if len(model.tables) == 1:
        freq.write_positive(writer, model.tables[0], model.precision, model.widths)
    else:
        for table in model.tables:
            freq.write_frequencies(writer, table, model.precision, model.widths)
    stream = cls.write_members(writer, model.classes)
    return writer.tobytes() + stream


def _read(model: bytes, bits: int, cols: int) -> Model:
    reader = BitReader(model)
    lag, folded, shift = reader.read(2), bool(reader.read(1)), reader.read(6)
    if lag >= len(LAGS):
        raise FormatError("rans-model", "a model has differences of a kind that is not known")
    if shift > bits - 1:
        raise FormatError("rans-model", f"a model leaves out {shift} of {bits} bits")
    keys, precision = Keys(bits, shift, folded), freq.read_precision(reader)
    rows, columns = cls.read_count(reader), cls.read_count(reader)
    table_of = cls.read_steps(reader, rows, columns)
    lows, widths = bins_.read_tree(reader, keys.key_bits)
    tables = freq.read_tables(reader, int(table_of[-1]) + 1, precision, widths)
    row_frequencies, members = cls.read_members(reader, rows, columns, cols)
    classes = Classes(rows, table_of, row_frequencies, members)
    return Model(keys, LAGS[lag], lows, widths, precision, classes, tables)


class Coder:
    """A model made ready."""

    def __init__(self, model: bytes, bits: int, cols: int) -> None:
        self.model = _read(model, bits, cols)
        self.keys = self.model.keys
        self.lows, self.widths = self.model.lows, self.model.widths.astype(np.uint8)
        self.tables = Tables(self.model.tables, self.model.precision)
        classes = self.model.classes
        self.row_tables = Tables(classes.row_frequencies, cls.PRECISION)
        self.has_classes = classes.rows > 1 or classes.columns is not None
        # masks have whole words of columns
        self.column_classes = np.zeros(-(-cols // 64) * 64 if self.has_classes else 0, np.uint8)
        if classes.columns is not None:
            self.column_classes[:cols] = classes.columns
        # for each class of rows, the table of each column
        self._tables_by_class = np.empty((classes.rows if self.has_classes else 0, self.column_classes.size), np.uint8)
        for class_, tables in enumerate(self._tables_by_class):
            np.take(classes.table_of[class_:], self.column_classes, out=tables, mode="clip")
        self.cols = cols

    @cached_property
    def _first_bins(self) -> np.ndarray:
        """For every prefix, the first bin that may hold a key with it."""
        left_out = max(self.keys.key_bits - bins_.PREFIX_BITS, 0)
        prefixes = self.lows >> np.uint64(left_out)
        # a prefix with which several bins begin has the first of them
        prefixes, bins = np.unique(prefixes, return_index=True)
        bounds = np.concatenate([prefixes[1:], [np.uint64(1 << min(self.keys.key_bits, bins_.PREFIX_BITS))]])
        sizes = np.diff(np.concatenate([[np.uint64(0)], bounds])).astype(np.int64)
        return np.repeat(bins.astype(np.int32), sizes)

    def split(self, elements: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """(number of the bin of each element, places in the bins as bits of uint64, how many bits).

        Raises FormatError if an element was not there when the model was made.
        """
        from sparsefmt.codecs.rans.jitted import elements as jitted

        symbols = np.empty(elements.size, self.tables.dtype)
        offsets = np.zeros(elements.size * int(self.widths.max()) // 64 + 2, np.uint64)
        key_bits, sign, shift = self.keys.key_bits, self.keys.sign, self.keys.shift
        status, offset_bits = jitted.split(
            elements, self.lows, self.widths, self._first_bins, key_bits, sign, shift, symbols, offsets
        )
        if status != jitted.OK:
            raise FormatError("tensor-changed", "it changed while it was saved: save a copy")
        return symbols, offsets, offset_bits

    def encode(self, elements: np.ndarray, before: Before, rows: int) -> bytes:
        """elements: unsigned integers, read-only. Raises FormatError if one was not there when the model was made."""
        symbols, offsets, offset_bits = self.split(differences(elements, self.model.lag))
        coded = _HEADER.pack(offset_bits) + offsets[: -(-offset_bits // 64)].tobytes()
        if not self.has_classes:
            return coded + self.tables.pack(symbols)
        where = places(before, rows, self.cols, elements.size)
        assert where is not None
        row_classes = self._best_row_classes(symbols, where)
        coded += cls.pack_rows(self.row_tables, row_classes)
        contexts = self._contexts(row_classes, before)
        return coded + self.tables.pack(symbols, contexts)

    def _best_row_classes(self, symbols: np.ndarray, where: Places) -> np.ndarray:
        from sparsefmt.codecs.rans.jitted import elements as jitted

        classes = self.model.classes
        with np.errstate(divide="ignore"):
            lengths = (self.model.precision - np.log2(self.model.tables)).astype(np.float32)
            row_lengths = (cls.PRECISION - np.log2(classes.row_frequencies)).astype(np.float32)
        row_classes = np.zeros(where.counts.size, np.uint8)
        lengths = np.ascontiguousarray(lengths[classes.table_of])
        fits = jitted.choose(
            symbols, where.counts, where.columns, self.column_classes, lengths, row_lengths, row_classes
        )
        if not fits:
            raise FormatError("tensor-changed", "it changed while it was saved: save a copy")
        return row_classes

    def _contexts(self, row_classes: np.ndarray, before: Before) -> np.ndarray:
        """The table of each element of a tile."""
        from sparsefmt.codecs.rans.jitted import elements as jitted
        from sparsefmt.isa import ISA

        rows = row_classes.size
        if "mask" not in before:
            return self._tables_by_class[row_classes, : self.cols].ravel()
        mask = before["mask"].view(np.uint64).reshape(rows, -1)
        mask.flags.writeable = False
        # a word's contexts are written with 64 bytes, and the next ones over the rest
        contexts = np.empty(int(np.bitwise_count(mask).sum(dtype=np.int64)) + 64, np.uint8)
        fill = jitted.contexts_of_wide if ISA == "avx512" else jitted.contexts_of
        fill(mask, row_classes, self._tables_by_class, contexts)
        return contexts[:-64]

    def decode(self, stored: np.ndarray, before: Before, rows: int, out: np.ndarray) -> None:
        """Fill `out`, unsigned integers. Raises FormatError."""
        from sparsefmt.codecs.rans.jitted import elements as jitted

        if stored.size < _HEADER.size:
            raise FormatError("rans-stream", "a chunk ends too early")
        (offset_bits,) = _HEADER.unpack(stored[: _HEADER.size].tobytes())
        offset_words = -(-offset_bits // 64)
        begin = _HEADER.size + 8 * offset_words
        if begin > stored.size:
            raise FormatError("rans-stream", "a chunk ends too early")
        offsets = np.zeros(offset_words + jitted.PADDING, np.uint64)
        offsets[:offset_words].view(np.uint8)[:] = stored[_HEADER.size : begin]
        if offset_bits % 64 and int(offsets[offset_words - 1]) >> offset_bits % 64:
            raise FormatError("rans-stream", "unused bits of a chunk are not zero")
        contexts, stream = None, stored[begin:]
        if self.has_classes:
            row_classes, stream = cls.unpack_rows(self.row_tables, stream, rows)
            if "mask" not in before and (before or out.size != rows * self.cols):
                raise FormatError("rans-model", "a model has classes for an array that has no rows and columns")
            contexts = self._contexts(row_classes, before)
            if contexts.size != out.size:
                raise FormatError("row-offsets", f"a mask has {contexts.size:,} positions for {out.size:,} values")
        symbols = self.tables.unpack(stream, out.size, contexts)
        sign, shift = self.keys.sign, self.keys.shift
        refuse(jitted.join(symbols, self.lows, self.widths, offsets, offset_bits, sign, shift, out))
        if self.model.lag:
            _undo_differences(out, self.model.lag)


@lru_cache(maxsize=16)
def coder(model: bytes, bits: int, cols: int) -> Coder:
    """The coder of a model; remembered, since a tensor has one for all its tiles."""
    return Coder(model, bits, cols)
