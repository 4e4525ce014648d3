"""A chunk of a mask."""

from __future__ import annotations

import numpy as np

from sparsefmt.codecs.contract import ArrayInfo, Coder
from sparsefmt.codecs.rans.classes import CLASS_PRECISION, decode_row_symbols, encode_row_symbols
from sparsefmt.codecs.rans.masks.groups import ColumnOrder, contexts_of, tables_by_class
from sparsefmt.codecs.rans.masks.model import Model
from sparsefmt.codecs.rans.streams import Tables
from sparsefmt.errors import FormatError
from sparsefmt.lazily import computed_once
from sparsefmt.positions import Positions
from sparsefmt.positions.masks import SLICE_ROWS, in_slices, put_slices, room_for_slices


class MaskCoder(Coder):
    """A model of masks made ready.

    Args:
        row_symbols: those of all rows of the tensor with which the model was made, uint8; None if they are not known.
    """

    def __init__(self, model: Model, info: ArrayInfo, row_symbols: np.ndarray | None = None) -> None:
        self.model, classes = model, model.classes
        self._cols, self._order = info.cols, ColumnOrder(classes.columns, info.cols)
        self._tables, self._row_symbols = Tables(self.model.tables, self.model.precision), row_symbols
        self._row_tables = Tables(classes.row_frequencies, CLASS_PRECISION)
        self._copy, self._table_of = -1, classes.table_of
        if self.model.copies:
            # their table comes last
            self._copy, self._table_of = classes.rows, np.append(classes.table_of, np.uint8(classes.tables))

    def encode(self, raw: np.ndarray, positions: Positions | None, rows: range | None = None) -> bytes:
        assert positions is not None
        mask = in_slices(raw, positions.rows, self._cols)
        if rows is None or self._row_symbols is None:
            symbols = self._best_row_symbols(mask, positions.rows)
        else:
            symbols = self._row_symbols[rows.start : rows.stop]
        groups = self._order.groups(mask, positions.rows, symbols == self._copy if self._copy >= 0 else None)
        contexts = contexts_of(symbols, self._order.group_classes, self._tables_by_class)
        return b"".join([encode_row_symbols(self._row_tables, symbols), *self._tables.encoded(groups, contexts)])

    def _best_row_symbols(self, mask: np.ndarray, rows: int) -> np.ndarray:
        """The symbol of each row that makes it shortest: uint8 (rows,)."""
        from sparsefmt.codecs.rans.jitted import masks as jitted

        with np.errstate(divide="ignore"):
            lengths = (self.model.precision - np.log2(self.model.tables)).astype(np.float32)
            row_lengths = (CLASS_PRECISION - np.log2(self.model.classes.row_frequencies)).astype(np.float32)
        plain = self._order.groups(mask, rows, None)
        copied = plain if self._copy < 0 else self._order.groups(mask, rows, np.arange(rows) > 0)
        symbols, classes = np.zeros(rows, np.uint8), self._order.group_classes
        if not jitted.shortest_symbols(
            plain, copied, classes, self._table_of, self._copy, lengths, row_lengths, symbols
        ):
            raise FormatError("tensor-changed", "it changed while it was saved: save a copy")
        return symbols

    def decode(self, stored: np.ndarray, positions: Positions | None, out: np.ndarray) -> None:
        from sparsefmt.codecs.rans.jitted import masks as jitted

        assert positions is not None
        rows, cols, group_classes = positions.rows, positions.cols, self._order.group_classes
        symbols, stream = decode_row_symbols(self._row_tables, stored, rows)
        if rows and symbols[0] == self._copy:
            raise FormatError("rans-stream", "the first row of a tile is to be like the one above")
        contexts = contexts_of(symbols, group_classes, self._tables_by_class)
        groups = self._tables.decode(stream, contexts.size, contexts)
        if self._copy >= 0:
            jitted.restore_copies(groups, rows, symbols == self._copy)
        mask = room_for_slices(out, rows, cols)
        words = groups[: rows // SLICE_ROWS * SLICE_ROWS * group_classes.size].view(np.uint64)
        low, high = np.empty((2, min(group_classes.size, jitted.BLOCK)), np.uint64)
        if not jitted.join(
            groups, words, rows, self._order.columns, (low, high, low.view(np.uint8), high.view(np.uint8)), mask
        ):
            raise FormatError("rans-stream", "a mask has bits beyond its columns")
        put_slices(mask, rows, out)

    @computed_once
    def _tables_by_class(self) -> np.ndarray:
        """As `contexts_of` wants them."""
        classes = self.model.classes.column_count
        return tables_by_class(self._table_of, self._row_tables.symbols, classes, self._copy)
