"""A chunk of a mask."""

from __future__ import annotations

import numpy as np

from sparsefmt.codecs.contract import ArrayInfo, Coder
from sparsefmt.codecs.rans.classes import CLASS_PRECISION, decode_row_symbols, encode_row_symbols
from sparsefmt.codecs.rans.masks.groups import ColumnOrder, contexts_of, in_chunk_order, mask_of
from sparsefmt.codecs.rans.masks.model import Model
from sparsefmt.codecs.rans.streams import Tables
from sparsefmt.errors import FormatError
from sparsefmt.lazily import computed_once
from sparsefmt.positions import Positions
from sparsefmt.positions.masks import SLICE_ROWS, put_slices, room_for_slices

_IN_PLACE = np.empty(0, np.int64)
"""Columns in their own order."""


class MaskCoder(Coder):
    """A model of masks made ready."""

    def __init__(self, model: Model, info: ArrayInfo) -> None:
        self.model, classes = model, model.classes
        self._cols, self._order = info.cols, ColumnOrder(classes.columns, info.cols)
        self._tables = Tables(self.model.tables, self.model.precision)
        self._row_tables = Tables(classes.row_frequencies, CLASS_PRECISION)
        self._copy, self._table_of = -1, classes.table_of
        if self.model.copies:
            # their table comes last
            self._copy, self._table_of = classes.rows, np.append(classes.table_of, np.uint8(classes.tables))

    def encode(self, raw: np.ndarray, positions: Positions | None) -> bytes:
        from sparsefmt.codecs.rans.jitted import masks as jitted

        assert positions is not None
        rows, group_classes = positions.rows, self._order.group_classes
        mask = mask_of(raw, rows, self._cols)
        with np.errstate(divide="ignore"):
            lengths = (self.model.precision - np.log2(self.model.tables)).astype(np.float32)
            row_lengths = (CLASS_PRECISION - np.log2(self.model.classes.row_frequencies)).astype(np.float32)
        plain = self._order.groups(mask, None)
        copied = plain if self._copy < 0 else self._order.groups(mask, np.arange(rows) > 0)
        symbols = np.zeros(rows, np.uint8)
        fits = jitted.shortest_symbols(
            plain, copied, group_classes, self._table_of, self._copy, lengths, row_lengths, symbols
        )
        if not fits:
            raise FormatError("tensor-changed", "it changed while it was saved: save a copy")
        coded = plain if self._copy < 0 else np.where((symbols == self._copy)[:, None], copied, plain)
        contexts = contexts_of(symbols, group_classes, self._table_of, self._copy)
        coded = in_chunk_order(coded[:, : group_classes.size])
        return encode_row_symbols(self._row_tables, symbols) + self._tables.encode(coded, in_chunk_order(contexts))

    def decode(self, stored: np.ndarray, positions: Positions | None, out: np.ndarray) -> None:
        from sparsefmt.codecs.rans.jitted import masks as jitted

        assert positions is not None
        rows, cols, group_classes = positions.rows, positions.cols, self._order.group_classes
        symbols, stream = decode_row_symbols(self._row_tables, stored, rows)
        if rows and symbols[0] == self._copy:
            raise FormatError("rans-stream", "the first row of a tile is to be like the one above")
        contexts = np.empty(rows * group_classes.size, np.uint8)
        jitted.contexts_in_slices(symbols, group_classes, self._tables_by_class, np.empty(16, np.uint64), contexts)
        groups = self._tables.decode(stream, contexts.size, contexts)
        if self._copy >= 0:
            jitted.restore_copies(groups, rows, symbols == self._copy)
        mask = room_for_slices(out, rows, cols)
        words = groups[: rows // SLICE_ROWS * SLICE_ROWS * group_classes.size].view(np.uint64)
        columns = _IN_PLACE if self._order.columns is None else self._order.columns
        low, high = np.empty((2, min(group_classes.size, jitted.BLOCK)), np.uint64)
        if not jitted.join(groups, words, rows, columns, (low, high, low.view(np.uint8), high.view(np.uint8)), mask):
            raise FormatError("rans-stream", "a mask has bits beyond its columns")
        put_slices(mask, rows, out)

    @computed_once
    def _tables_by_class(self) -> np.ndarray:
        """For `jitted.contexts_in_slices`: uint8 (64 * 64,)."""
        symbols, classes = self._row_tables.symbols, self.model.classes.column_count
        by_class = np.zeros((64, 64), np.uint8)
        sums = np.arange(symbols)[:, None] + np.arange(classes)
        by_class[:symbols, :classes] = self._table_of.take(sums, mode="clip")
        if self._copy >= 0:
            by_class[self._copy] = self._table_of[-1]
        return by_class.ravel()
