"""The model of a tensor's elements, and its bytes."""

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
from sparsefmt.codecs.rans.elements.bins import Keys, read_tree, write_tree
from sparsefmt.codecs.rans.elements.lags import LAGS
from sparsefmt.codecs.rans.frequencies import (
    read_precision,
    read_tables,
    write_frequencies,
    write_positive,
    write_precision,
)
from sparsefmt.errors import FormatError


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


def write_model(model: Model) -> bytes:
    """SPEC.md, "Model of elements"."""
    writer = BitWriter()
    writer.write(LAGS.index(model.lag), 2)
    writer.write(int(model.keys.folded), 1)
    writer.write(model.keys.shift, 6)
    write_precision(writer, model.precision)
    write_class_count(writer, model.classes.rows)
    write_class_count(writer, model.classes.column_count)
    write_table_steps(writer, model.classes)
    write_tree(writer, model.lows, model.widths, model.keys.key_nbits)
    if len(model.tables) == 1:
        write_positive(writer, model.tables[0], model.precision, model.widths)
    else:
        for table in model.tables:
            write_frequencies(writer, table, model.precision, model.widths)
    stream = write_class_members(writer, model.classes)
    return writer.tobytes() + stream


def read_model(data: bytes, nbits: int, cols: int) -> Model:
    """The model for elements of so many bits, of a tensor with so many columns. Raises FormatError (rans-model)."""
    reader = BitReader(data)
    lag, folded, shift = reader.read(2), bool(reader.read(1)), reader.read(6)
    if lag >= len(LAGS):
        raise FormatError("rans-model", "a model has differences that are not known to this version")
    if shift > nbits - 1:
        raise FormatError("rans-model", f"a model leaves out {shift} of {nbits} bits")
    keys, precision = Keys(nbits, shift, folded), read_precision(reader)
    rows, columns = read_class_count(reader), read_class_count(reader)
    table_of = read_table_steps(reader, rows, columns)
    lows, widths = read_tree(reader, keys.key_nbits)
    tables = read_tables(reader, int(table_of[-1]) + 1, precision, widths)
    row_frequencies, members = read_class_members(reader, rows, columns, cols)
    classes = Classes(rows, table_of, row_frequencies, members)
    return Model(keys, LAGS[lag], lows, widths, precision, classes, tables)
