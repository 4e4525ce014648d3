"""Classes of rows and columns, whose sum says which table codes what lies where they meet.

Rows and columns of a matrix differ: in how many positions they keep, in how large their values are. Each column of a
tensor has a class, which the model holds, and each row of a tile has one, which the chunk holds; classes are steps on a
scale on which the two add up. Neighbouring sums may share a table.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from sparsefmt.codecs.rans.bitstring import BitReader, BitWriter
from sparsefmt.codecs.rans.frequencies import normalised, read_frequencies, write_frequencies
from sparsefmt.codecs.rans.streams import Tables
from sparsefmt.errors import FormatError

MAX_CLASSES = 32
"""Classes of rows, and of columns."""

CLASS_PRECISION = 12
"""Bits of the sum of the frequencies of classes."""

MAX_CLASSIFIED_COLS = 1 << 20
"""Columns up to which they get classes: the model holds those."""

_COUNT_NBITS = 5

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


def write_class_count(writer: BitWriter, count: int) -> None:
    """How many classes there are, of rows or of columns."""
    writer.write(count - 1, _COUNT_NBITS)


def read_class_count(reader: BitReader) -> int:
    return reader.read(_COUNT_NBITS) + 1


def write_table_steps(writer: BitWriter, classes: Classes) -> None:
    """Which sums have the table of the sum before."""
    for step in np.diff(classes.table_of).tolist():
        writer.write(step, 1)


def read_table_steps(reader: BitReader, rows: int, columns: int) -> np.ndarray:
    """`table_of`."""
    count = rows + columns - 2
    steps = reader.read(count)
    return np.array(list(accumulate((steps >> index & 1 for index in range(count)), initial=0)), np.uint8)


def write_class_members(writer: BitWriter, classes: Classes) -> bytes:
    """How often row symbols occur, and the class of each column: fields, and what comes behind the last of them."""
    if len(classes.row_frequencies) > 1:
        write_frequencies(writer, classes.row_frequencies, CLASS_PRECISION)
    if classes.columns is None:
        return b""
    counts = member_counts(classes.columns)
    frequencies = normalised(np.pad(counts, (0, classes.column_count - counts.size)), CLASS_PRECISION)
    write_frequencies(writer, frequencies, CLASS_PRECISION)
    return Tables(frequencies, CLASS_PRECISION).encode(classes.columns)


def read_class_members(
    reader: BitReader, row_symbols: int, column_count: int, cols: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """(row_frequencies, columns): the rest of a model of a tensor with so many columns."""
    row_frequencies = np.array([1 << CLASS_PRECISION])
    if row_symbols > 1:
        row_frequencies = read_frequencies(reader, row_symbols, CLASS_PRECISION)
    if column_count == 1:
        if reader.rest():
            raise FormatError("rans-model", "a model is longer than what it says")
        return row_frequencies, None
    if cols > MAX_CLASSIFIED_COLS:
        raise FormatError("rans-model", f"a model has classes for over {MAX_CLASSIFIED_COLS:,} columns")
    frequencies = read_frequencies(reader, column_count, CLASS_PRECISION)
    stream = np.frombuffer(reader.rest(), np.uint8)
    try:
        return row_frequencies, Tables(frequencies, CLASS_PRECISION).decode(stream, cols)
    except FormatError as error:
        raise FormatError("rans-model", f"the classes of columns: {error.message}") from None


def encode_row_symbols(tables: Tables, symbols: np.ndarray) -> bytes:
    """The row symbols of a tile: the size of their stream, and the stream; nothing if there is but one symbol."""
    if tables.symbols == 1:
        return b""
    stream = tables.encode(symbols)
    return _SIZE.pack(len(stream)) + stream


def decode_row_symbols(tables: Tables, stored: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(the symbol of each row, what follows). Raises FormatError."""
    if tables.symbols == 1:
        return np.zeros(rows, np.uint8), stored
    if stored.size < _SIZE.size:
        raise FormatError("rans-stream", "a chunk ends too early")
    end = _SIZE.size + _SIZE.unpack(stored[: _SIZE.size].tobytes())[0]
    if end > stored.size:
        raise FormatError("rans-stream", "a chunk ends too early")
    return tables.decode(stored[_SIZE.size : end], rows), stored[end:]


_AT_ONCE = 1 << 18
"""Rows (or columns) for which there are temporaries of eight bytes each at a time."""


def member_counts(classes: np.ndarray) -> np.ndarray:
    """How many rows (or columns) each class has, up to the highest: int64 (classes,), at least one. classes: uint8."""
    counts = np.zeros(256, np.int64)
    # numpy makes int64 of what it counts
    for begin in range(0, classes.size, _AT_ONCE):
        counts += np.bincount(classes[begin : begin + _AT_ONCE], minlength=256)
    return counts[: int(np.flatnonzero(counts).max(initial=0)) + 1]
