"""The model of a tensor's masks, and its bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsefmt.codecs.rans.bitstring import BitReader, BitWriter
from sparsefmt.codecs.rans.classes import (
    Classes,
    read_class_count,
    read_class_members,
    read_table_steps,
    write_class_count,
    write_class_members,
    write_table_steps,
)
from sparsefmt.codecs.rans.frequencies import (
    read_byte_tables,
    read_precision,
    write_frequencies,
    write_popcounts,
    write_precision,
)


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


_ONE_OF_EACH_POPCOUNT = [(1 << popcount) - 1 for popcount in range(9)]


def write_model(model: Model) -> bytes:
    """SPEC.md, "Positions"."""
    writer = BitWriter()
    write_precision(writer, model.precision)
    write_class_count(writer, model.classes.rows)
    writer.write(int(model.copies), 1)
    write_class_count(writer, model.classes.column_count)
    write_table_steps(writer, model.classes)
    for table, by_popcount in zip(model.tables, model.by_popcount, strict=True):
        writer.write(int(by_popcount), 1)
        if by_popcount:
            write_popcounts(writer, table[_ONE_OF_EACH_POPCOUNT])
        else:
            write_frequencies(writer, table, model.precision)
    stream = write_class_members(writer, model.classes)
    return writer.tobytes() + stream


def read_model(data: bytes, cols: int) -> Model:
    """The model for the masks of a tensor with so many columns. Raises FormatError (rans-model)."""
    reader = BitReader(data)
    precision = read_precision(reader)
    rows, copies, columns = read_class_count(reader), bool(reader.read(1)), read_class_count(reader)
    table_of = read_table_steps(reader, rows, columns)
    tables, by_popcount = read_byte_tables(reader, int(table_of[-1]) + 1 + copies, precision)
    row_frequencies, members = read_class_members(reader, rows + copies, columns, cols)
    return Model(precision, Classes(rows, table_of, row_frequencies, members), copies, tables, by_popcount.tolist())
