"""Classes of rows and columns, whose sum says which table codes what lies where they meet.

Rows and columns of a matrix differ: in how many positions they keep, in how large their values are. Each column of a
tensor has a class, which the model holds, and each row of a tile has one, which the chunk holds; classes are steps on a
scale on which the two add up. Neighbouring sums may share a table.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from sparsefmt.codecs.rans import frequencies as freq
from sparsefmt.codecs.rans.bitstring import BitReader, BitWriter
from sparsefmt.codecs.rans.streams import Tables
from sparsefmt.errors import FormatError

MAX_CLASSES = 32
"""Classes of rows, and of columns."""

PRECISION = 12
"""Bits of the sum of the frequencies of classes."""

MAX_COLS = 1 << 20
"""Columns up to which they get classes: the model holds those."""

_COUNT_BITS = 5

_SIZE = struct.Struct("<I")


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    Attributes:
        rows: how many classes of rows there are.
        table_of: uint8 (classes of rows + classes of columns - 1,): the table for each sum of two classes.
        row_frequencies: of the row symbols: the classes, and perhaps others behind them.
        columns: (cols,), or None if there is but one class.
    """

    rows: int
    table_of: np.ndarray
    row_frequencies: np.ndarray
    columns: np.ndarray | None

    @property
    def tables(self) -> int:
        """How many tables there are for sums."""
        return int(self.table_of[-1]) + 1

    @property
    def column_count(self) -> int:
        """How many classes of columns there are."""
        return len(self.table_of) - self.rows + 1


def write_count(writer: BitWriter, count: int) -> None:
    """How many classes there are, of rows or of columns."""
    writer.write(count - 1, _COUNT_BITS)


def read_count(reader: BitReader) -> int:
    return reader.read(_COUNT_BITS) + 1


def write_steps(writer: BitWriter, classes: Classes) -> None:
    """Which sums have the table of the sum before."""
    for step in np.diff(classes.table_of).tolist():
        writer.write(step, 1)


def read_steps(reader: BitReader, rows: int, columns: int) -> np.ndarray:
    """`table_of`."""
    count = rows + columns - 2
    steps = reader.read(count)
    return np.array(list(accumulate((steps >> index & 1 for index in range(count)), initial=0)), np.uint8)


def write_members(writer: BitWriter, classes: Classes) -> bytes:
    """How often row symbols occur, and the class of each column: fields, and what comes behind the last of them."""
    if len(classes.row_frequencies) > 1:
        freq.write_frequencies(writer, classes.row_frequencies, PRECISION)
    if classes.columns is None:
        return b""
    counts = member_counts(classes.columns)
    frequencies = freq.normalised(np.pad(counts, (0, classes.column_count - counts.size)), PRECISION)
    freq.write_frequencies(writer, frequencies, PRECISION)
    return Tables(frequencies, PRECISION).pack(classes.columns)


def read_members(
    reader: BitReader, row_symbols: int, column_count: int, cols: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """(row_frequencies, columns): the rest of a model of a tensor with so many columns."""
    row_frequencies = np.array([1 << PRECISION])
    if row_symbols > 1:
        row_frequencies = freq.read_frequencies(reader, row_symbols, PRECISION)
    if column_count == 1:
        if reader.rest():
            raise FormatError("rans-model", "a model is longer than what it says")
        return row_frequencies, None
    if cols > MAX_COLS:
        raise FormatError("rans-model", f"a model has classes for over {MAX_COLS:,} columns")
    frequencies = freq.read_frequencies(reader, column_count, PRECISION)
    stream = np.frombuffer(reader.rest(), np.uint8)
    try:
        return row_frequencies, Tables(frequencies, PRECISION).unpack(stream, cols)
    except FormatError as error:
        raise FormatError("rans-model", f"the classes of columns: {error.message}") from None


def pack_rows(tables: Tables, symbols: np.ndarray) -> bytes:
    """The row symbols of a tile: the size of their stream, and the stream; nothing if there is but one symbol."""
    if tables.symbols == 1:
        return b""
    stream = tables.pack(symbols)
    return _SIZE.pack(len(stream)) + stream


def unpack_rows(tables: Tables, stored: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(the symbol of each row, what follows). Raises FormatError."""
    if tables.symbols == 1:
        return np.zeros(rows, np.uint8), stored
    if stored.size < _SIZE.size:
        raise FormatError("rans-stream", "a chunk ends too early")
    end = _SIZE.size + _SIZE.unpack(stored[: _SIZE.size].tobytes())[0]
    if end > stored.size:
        raise FormatError("rans-stream", "a chunk ends too early")
    return tables.unpack(stored[_SIZE.size : end], rows), stored[end:]


_ROUNDS = 4
"""How often rows choose anew, given what the others have."""

_AT_ONCE = 1 << 18
"""Rows (or columns) for which there are temporaries of eight bytes each at a time."""

_COSTS = 1 << 19
"""Costs of rows (or columns) that are computed at a time: 4 MiB. More of them are computed anew for every round."""


def member_counts(classes: np.ndarray) -> np.ndarray:
    """How many rows (or columns) each class has, up to the highest: int64 (classes,), at least one. classes: uint8."""
    counts = np.zeros(256, np.int64)
    # numpy makes int64 of what it counts
    for begin in range(0, classes.size, _AT_ONCE):
        counts += np.bincount(classes[begin : begin + _AT_ONCE], minlength=256)
    return counts[: int(np.flatnonzero(counts).max(initial=0)) + 1]


def candidates(least: float, most: float) -> np.ndarray:
    """Classes for rows (or columns) that would lie between these if any number were a class: not too many integers."""
    low, high = (int(np.clip(np.rint(place), -MAX_CLASSES // 2, MAX_CLASSES // 2 - 1)) for place in (least, most))
    return np.arange(min(low, 0), max(high, 0) + 1)


def assign(costs: Callable[[slice], np.ndarray], count: int, classes: int) -> np.ndarray:
    """The class of each of `count` rows (or columns), uint8 (count,), from 0 on.

    The classes have to be written down too: those that many rows have are cheap. So rows that differ by no more than
    chance have all the same. Beside the result, it takes memory for the costs of _COSTS at a time.

    Args:
        costs: costs(rows) gives the bits that some of the rows take with each class, float64 (rows, classes).
    """
    from sparsefmt.codecs.rans.jitted import classes as jitted

    chosen, names = np.empty(count, np.uint8), np.zeros(classes)
    height = max(_COSTS // classes, 1)
    parts = [slice(begin, min(begin + height, count)) for begin in range(0, count, height)]
    only = costs(parts[0]) if len(parts) == 1 else None
    for _ in range(1 + _ROUNDS):
        # a class that nobody has may come back, but is dear
        often = np.full(classes, 0.1)
        for part in parts:
            jitted.assign(costs(part) if only is None else only, names, chosen[part], often)
        names = np.log2(often.sum() / often)
    chosen -= chosen.min(initial=255)
    return chosen


def merged(
    counts: np.ndarray, of_table: float, of_symbol: float, of_popcounts: float = np.inf
) -> tuple[float, np.ndarray]:
    """Which neighbours of the sums to give one table, at best: (bits of all, uint8 (sums,) the table of each).

    Args:
        counts: int64 (sums, symbols), how often each symbol occurs.
        of_table, of_symbol: bits that a table costs, and each symbol in it.
        of_popcounts: bits of a table of popcounts; infinite if tables cannot be such.
    """
    from sparsefmt.codecs.rans.jitted import classes as jitted

    table_of = np.empty(len(counts), np.uint8)
    return jitted.merge(counts, of_table, of_symbol, of_popcounts, table_of), table_of


def lines(counts: np.ndarray, table_of: np.ndarray) -> np.ndarray:
    """The sums' counts added up for each table: (tables, symbols)."""
    return np.add.reduceat(counts, np.searchsorted(table_of, np.arange(table_of[-1] + 1)), axis=0)
