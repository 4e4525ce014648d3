"""Masks as rANS codes them: eight positions as one symbol, by tables for how dense their row and their columns are.

Rows and columns of a pruned matrix differ in density, and that is what makes its mask shorter than independent bits
would be. Each column of a tensor has a class, which the model holds, and each row of a tile has one, which the chunk
holds. Within each word of 64 columns, the columns are sorted by class, so that the eight of a group are about equally
dense; the class of the row and that of the group together say which table the group's byte is coded with. A row may
instead be coded as what differs from the row above: in block-pruned matrices, most of its bytes are then zero.

A table has a frequency for each byte, or only for each number of set bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sparsefmt.codecs.rans import classes as cls
from sparsefmt.codecs.rans import frequencies as freq
from sparsefmt.codecs.rans.bitstring import BitReader, BitWriter
from sparsefmt.codecs.rans.classes import Classes
from sparsefmt.codecs.rans.streams import Tables, read_only
from sparsefmt.errors import FormatError

Each = Callable[[Callable[[np.ndarray, range], object]], Iterator]
"""each(work): work(mask, rows) for every tile of a tensor, mask (rows, words) uint64, in order, in parallel."""


@dataclass(frozen=True)
class Model:
    """How the masks of a tensor are coded.

    Attributes:
        precision: of the tables.
        classes: of rows and columns; row symbols have one more if there are copies.
        copies: whether rows may be coded as what differs from the row above.
        tables: (tables, 256) frequencies; for copies, one more than for the sums of classes, the last.
        by_popcount: for each table, whether it is one of popcounts.
    """

    precision: int
    classes: Classes
    copies: bool
    tables: np.ndarray
    by_popcount: list[bool]


class _ColumnOrder:
    """The order of columns that their classes make: within each word of 64 columns, sorted by class.

    Attributes:
        group_classes: uint8 (groups,), the mean class of each eight columns.
    """

    def __init__(self, column_classes: np.ndarray | None, cols: int) -> None:
        """column_classes: uint8 (cols,); None if the order is left as it is."""
        from sparsefmt.codecs.rans.jitted import masks

        self._words, self.group_classes = -(-cols // 64), np.zeros(-(-cols // 8), np.uint8)
        self._places = None
        if column_classes is not None:
            self._places = np.empty((self._words, 64), np.uint8)
            masks.order(column_classes, self.group_classes, self._places)
        self._tables: dict[bool, np.ndarray] = {}

    @property
    def differs(self) -> bool:
        """Whether it may be another order than that of the columns."""
        return self._places is not None

    def there(self, mask: np.ndarray) -> np.ndarray:
        """A mask with its columns in this order, (rows, words) uint64; itself if that is how they are."""
        return self._reordered(mask, back=False) if self.differs else mask

    def back(self, mask: np.ndarray) -> np.ndarray:
        """Undo `there`."""
        return self._reordered(mask, back=True) if self.differs else mask

    def _reordered(self, mask: np.ndarray, back: bool) -> np.ndarray:
        from sparsefmt.codecs.rans.jitted import masks

        out = np.empty_like(mask)
        for first in range(0, self._words, _WORDS_OF_TABLES):
            masks.reorder(read_only(mask), first, self._table(first, back), out)
        return out

    def _table(self, first: int, back: bool) -> np.ndarray:
        """For `masks.reorder`: words from `first` on. Kept if these are all words."""
        from sparsefmt.codecs.rans.jitted import masks

        assert self._places is not None
        if back in self._tables:
            return self._tables[back]
        places = self._places[first : first + _WORDS_OF_TABLES]
        tables = np.empty((len(places), 16, 16), np.uint64)
        masks.fill_tables(places, back, tables)
        if len(places) == self._words:
            self._tables[back] = tables
        return tables


_WORDS_OF_TABLES = 1 << 10
"""Words of 64 columns for which there are tables at a time, 2 MiB of them. Those of wider matrices are made anew for
each use: kept, they would take 64 bytes for each column."""


def _copied_rows(mask: np.ndarray) -> np.ndarray:
    """Which rows differ from the row above in so few places that this is shorter to write down. bool (rows,)."""
    rows = np.bitwise_count(mask).sum(1, dtype=np.int64)
    differing = np.zeros(rows.size, np.int64)
    differing[1:] = np.bitwise_count(mask[1:] ^ mask[:-1]).sum(1, dtype=np.int64)
    positions = 64 * mask.shape[1]
    return (np.arange(rows.size) > 0) & (4 * differing < np.minimum(rows, positions - rows))


def _odds(kept: float, total: float) -> float:
    """log2 of the odds that a position is kept."""
    share = (kept + 0.5) / (total + 1)
    return float(np.log2(share / (1 - share)))


def _classes(counts: np.ndarray, total: int, step: float) -> np.ndarray:
    """A class for each row (or column) of which `counts` of `total` positions are kept: uint8 (rows,), from 0 on.

    Classes are `step` apart, in log2 of the odds that a position is kept.
    """
    if not step or not counts.size or not total:
        return np.zeros(counts.size, np.uint8)
    base = _odds(float(counts.sum(dtype=np.int64)), float(total) * counts.size)
    least, most = ((_odds(float(kept), total) - base) / step for kept in (counts.min(), counts.max()))
    candidates = cls.candidates(least, most)
    share = 1 / (1 + np.exp2(-(base + step * candidates)))
    kept_bits, left_bits = np.log2(share), np.log2(1 - share)

    def costs(some: slice) -> np.ndarray:
        kept = counts[some, None].astype(np.int64)
        return -kept * kept_bits - (total - kept) * left_bits

    return cls.assign(costs, counts.size, candidates.size)


@dataclass
class _Candidate:
    """Classes of all rows and columns, and what bytes they make.

    Attributes:
        row_classes: uint8 (rows,).
        column_classes: uint8 (cols,), or None if all have the same.
        cols: how many columns there are.
        copies: which rows are coded as what differs from the row above. bool (rows,).
    """

    row_classes: np.ndarray
    column_classes: np.ndarray | None
    cols: int
    copies: np.ndarray

    def __post_init__(self) -> None:
        self.order = _ColumnOrder(self.column_classes, self.cols)
        self.copy = int(self.row_classes.max(initial=0)) + 1 if self.copies.any() else -1
        highest = 0 if self.column_classes is None else int(self.column_classes.max(initial=0))
        self.sums = int(self.row_classes.max(initial=0)) + highest + 1
        self.counts = np.zeros((self.sums + (self.copy >= 0), freq.BYTES), np.int64)
        self.table_of = np.zeros(self.sums, np.uint8)

    def histogram(self, mask: np.ndarray, rows: range) -> np.ndarray:
        """How often each byte occurs in a tile, by sum of classes; last, in copies."""
        from sparsefmt.codecs.rans.jitted import masks

        symbols = self._symbols(slice(rows.start, rows.stop))
        groups = _groups(mask, self.order, symbols == self.copy if self.copy >= 0 else None)
        contexts = np.empty((mask.shape[0], self.order.group_classes.size), np.uint8)
        masks.contexts(
            symbols, self.order.group_classes, np.arange(len(self.counts), dtype=np.uint8), self.copy, contexts
        )
        counts = np.zeros_like(self.counts)
        masks.histogram(groups, contexts, counts)
        return counts

    def _symbols(self, rows: slice) -> np.ndarray:
        """Their symbols: the class of each, or the one for copies. uint8 (rows,)."""
        symbols = self.row_classes[rows]
        return np.where(self.copies[rows], np.uint8(self.copy), symbols) if self.copy >= 0 else symbols

    def _symbol_counts(self) -> np.ndarray:
        """How many rows have each symbol. int64 (symbols,)."""
        counts = cls.member_counts(self.row_classes if self.copy < 0 else self.row_classes[~self.copies])
        if self.copy < 0:
            return counts
        return np.concatenate([counts, np.zeros(self.copy - counts.size, np.int64), [np.count_nonzero(self.copies)]])

    def bits(self) -> float:
        """Bits of all masks and of the model, about."""
        bits, self.table_of = cls.merged(self.counts[: self.sums], *_TABLE_BITS)
        if self.copy >= 0:
            bits += cls.merged(self.counts[-1:], *_TABLE_BITS)[0]
        bits += freq.entropy_bits(self._symbol_counts())
        return bits + (
            0.0 if self.column_classes is None else freq.entropy_bits(cls.member_counts(self.column_classes))
        )

    def model(self) -> Model:
        """The model, once `bits` was called."""
        from sparsefmt.codecs.rans.jitted import classes as jitted

        tables = [*cls.lines(self.counts[: self.sums], self.table_of)]
        if self.copy >= 0:
            tables.append(self.counts[-1])
        by_popcount = [jitted.table_bits(table, *_TABLE_BITS)[1] for table in tables]
        precision, frequencies = _frequencies(tables, by_popcount)
        classes = Classes(
            int(self.row_classes.max(initial=0)) + 1,
            self.table_of,
            freq.normalised(self._symbol_counts(), cls.PRECISION),
            self.column_classes,
        )
        return Model(precision, classes, self.copy >= 0, frequencies, by_popcount)


_TABLE_BITS = (256.0, 7.0, 55.0)
"""What a table costs in the model, about: one of bytes, and for each byte that occurs; one of popcounts."""


_WASTE = 0.001
"""Part of the bits that may be lost to frequencies that cannot be less than 1."""


def _frequencies(tables: list[np.ndarray], by_popcount: list[bool]) -> tuple[int, np.ndarray]:
    """(precision, frequencies of all tables): the least precision that loses little."""
    # a table for what never occurs can be any
    tables = [table if table.any() else np.ones(freq.BYTES, np.int64) for table in tables]
    shared = [
        (np.bincount(freq.POPCOUNTS, table, 9) / freq.BYTES_OF_POPCOUNT)[freq.POPCOUNTS] if popcounts else table
        for table, popcounts in zip(tables, by_popcount, strict=True)
    ]
    ideal = sum(freq.entropy_bits(table) for table in shared)
    for precision in range(11, freq.MAX_PRECISION + 1):
        wasted = sum(_wasted_bits(table, precision) for table in shared)
        if wasted > _WASTE * ideal and precision < freq.MAX_PRECISION:
            continue
        found = [
            freq.normalised_popcounts(np.bincount(freq.POPCOUNTS, table, 9).astype(np.int64), precision)
            if popcounts
            else freq.normalised(table, precision)
            for table, popcounts in zip(tables, by_popcount, strict=True)
        ]
        fitting = [table for table in found if table is not None]
        if len(fitting) == len(found):
            pairs = zip(fitting, by_popcount, strict=True)
            return precision, np.array([table[freq.POPCOUNTS] if popcounts else table for table, popcounts in pairs])
    raise AssertionError("every table fits the highest precision")


def _wasted_bits(counts: np.ndarray, precision: int) -> float:
    """Bits that bytes counted as `counts` lose since no frequency is below 1."""
    used = counts[counts > 0]
    total = float(used.sum())
    excess = float(np.maximum(2.0**-precision - used / total, 0).sum())
    return -total * float(np.log2(max(1 - excess, 0.01)))


def fit(each: Each, rows: int, cols: int) -> bytes:
    """The model for the masks of all tiles of a tensor with so many rows and columns.

    Beside the tiles, it takes up to 16 bytes for each row, and for each column if they get classes.
    """
    from sparsefmt.codecs.rans.jitted import masks

    with_columns = cols <= cls.MAX_COLS
    # a row has less than 2^32 columns
    row_counts, copies = np.empty(rows, np.uint32), np.empty(rows, np.bool_)
    column_counts = np.zeros(cols if with_columns else 0, np.int64)

    def look(mask: np.ndarray, some: range) -> np.ndarray:
        copied = _copied_rows(mask)
        copies[some.start : some.stop] = copied
        row_counts[some.start : some.stop] = np.bitwise_count(mask).sum(1, dtype=np.int64)
        counts = np.zeros(column_counts.size, np.uint32)
        if with_columns:
            masks.column_counts(read_only(np.ascontiguousarray(mask[~copied])), counts)
        return counts

    for counts in each(look):
        column_counts += counts
    plain_rows = rows - int(np.count_nonzero(copies))
    row_steps, column_steps = map(set, zip(*_STEPS, strict=True))
    by_row_step: dict[float, np.ndarray] = {}
    for step in sorted(row_steps):
        row_classes = np.zeros(rows, np.uint8)
        row_classes[~copies] = _classes(row_counts[~copies], cols, step)
        _unless_known(by_row_step, step, row_classes)
    by_column_step: dict[float, np.ndarray] = {}
    for step in sorted(column_steps) if with_columns else [0]:
        _unless_known(by_column_step, step, _classes(column_counts, plain_rows, step))
    candidates: dict[tuple[int, int], _Candidate] = {}
    for row_step, column_step in _STEPS:
        if column_step in by_column_step:
            row_classes, column_classes = by_row_step[row_step], by_column_step[column_step]
            several = column_classes if column_classes.any() else None
            both = id(row_classes), id(column_classes)
            if both not in candidates:
                candidates[both] = _Candidate(row_classes, several, cols, copies)

    def count(mask: np.ndarray, some: range) -> list[np.ndarray]:
        return [candidate.histogram(mask, some) for candidate in candidates.values()]

    for histograms in each(count):
        for candidate, histogram in zip(candidates.values(), histograms, strict=True):
            candidate.counts += histogram
    return _write(min(candidates.values(), key=lambda candidate: candidate.bits()).model())


def _unless_known(by_step: dict[float, np.ndarray], step: float, classes: np.ndarray) -> None:
    """Add the classes of a step: the array of another step if that has the same."""
    by_step[step] = next((known for known in by_step.values() if np.array_equal(known, classes)), classes)


_STEPS = ((0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5))
"""How far classes of rows and of columns are apart, of what is tried: in log2 of the odds that a position is kept. 0
for no classes."""


def _groups(mask: np.ndarray, order: _ColumnOrder, copies: np.ndarray | None) -> np.ndarray:
    """The bytes of a mask in the order in which they are coded: uint8 (rows, 8 * words), read-only."""
    from sparsefmt.codecs.rans.jitted import masks

    if copies is not None:
        out = np.empty_like(mask)
        masks.difference(mask, copies, out)
        mask = out
    return read_only(order.there(mask).view(np.uint8))


def _write(model: Model) -> bytes:
    writer = BitWriter()
    freq.write_precision(writer, model.precision)
    cls.write_count(writer, model.classes.rows)
    writer.write(int(model.copies), 1)
    cls.write_count(writer, model.classes.column_count)
    cls.write_steps(writer, model.classes)
    for table, by_popcount in zip(model.tables, model.by_popcount, strict=True):
        writer.write(int(by_popcount), 1)
        if by_popcount:
            freq.write_popcounts(writer, table[_ONE_OF_EACH_POPCOUNT])
        else:
            freq.write_frequencies(writer, table, model.precision)
    stream = cls.write_members(writer, model.classes)
    return writer.tobytes() + stream


_ONE_OF_EACH_POPCOUNT = [(1 << popcount) - 1 for popcount in range(9)]


def _read(model: bytes, cols: int) -> Model:
    reader = BitReader(model)
    precision = freq.read_precision(reader)
    rows, copies, columns = cls.read_count(reader), bool(reader.read(1)), cls.read_count(reader)
    table_of = cls.read_steps(reader, rows, columns)
    tables, by_popcount = freq.read_byte_tables(reader, int(table_of[-1]) + 1 + copies, precision)
    row_frequencies, members = cls.read_members(reader, rows + copies, columns, cols)
    return Model(precision, Classes(rows, table_of, row_frequencies, members), copies, tables, by_popcount.tolist())


class Coder:
    """A model made ready."""

    def __init__(self, model: bytes, cols: int) -> None:
        self.model = _read(model, cols)
        classes = self.model.classes
        self.order = _ColumnOrder(classes.columns, cols)
        self.tables = Tables(self.model.tables, self.model.precision)
        self.row_tables = Tables(classes.row_frequencies, cls.PRECISION)
        self.copy = classes.rows if self.model.copies else -1
        # the table of copies comes last
        self.table_of = np.append(classes.table_of, np.uint8(classes.tables)) if self.model.copies else classes.table_of

    def encode(self, mask: np.ndarray) -> bytes:
        """mask: (rows, words) uint64, read-only. Raises FormatError if it was not there when the model was made."""
        from sparsefmt.codecs.rans.jitted import masks

        rows, groups = mask.shape[0], self.order.group_classes.size
        with np.errstate(divide="ignore"):
            lengths = (self.model.precision - np.log2(self.model.tables)).astype(np.float32)
            row_lengths = (cls.PRECISION - np.log2(self.model.classes.row_frequencies)).astype(np.float32)
        plain = _groups(mask, self.order, None)
        copied = plain
        if self.copy >= 0:
            copied = _groups(mask, self.order, np.arange(rows) > 0)
        symbols = np.zeros(rows, np.uint8)
        fits = masks.choose(
            plain, copied, self.order.group_classes, self.table_of, self.copy, lengths, row_lengths, symbols
        )
        if not fits:
            raise FormatError("tensor-changed", "it changed while it was saved: save a copy")
        contexts = np.empty((rows, groups), np.uint8)
        masks.contexts(symbols, self.order.group_classes, self.table_of, self.copy, contexts)
        coded = plain if self.copy < 0 else np.where((symbols == self.copy)[:, None], copied, plain)
        stream = self.tables.pack(np.ascontiguousarray(coded[:, :groups]).ravel(), contexts.ravel())
        return cls.pack_rows(self.row_tables, symbols) + stream

    def decode(self, stored: np.ndarray, mask: np.ndarray) -> None:
        """Fill `mask`, (rows, words) uint64. Raises FormatError. Bits beyond the columns are not yet checked."""
        from sparsefmt.codecs.rans.jitted import masks

        rows, groups = mask.shape[0], self.order.group_classes.size
        symbols, stored = cls.unpack_rows(self.row_tables, stored, rows)
        if rows and symbols[0] == self.copy:
            raise FormatError("rans-stream", "the first row of a tile is to be like the one above")
        contexts = np.empty((rows, groups), np.uint8)
        masks.contexts(symbols, self.order.group_classes, self.table_of, self.copy, contexts)
        coded = self.tables.unpack(stored, rows * groups, contexts.ravel())
        out = mask.view(np.uint8)
        out[:, groups:] = 0
        out[:, :groups] = coded.reshape(rows, groups)
        if self.order.differs:
            mask[...] = self.order.back(mask)
        if self.copy >= 0:
            masks.restore(mask, symbols == self.copy)


@lru_cache(maxsize=16)
def coder(model: bytes, cols: int) -> Coder:
    """The coder of a model; remembered, since a tensor has one for all its tiles."""
    return Coder(model, cols)
