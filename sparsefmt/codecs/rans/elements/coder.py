"""A chunk of elements."""

from __future__ import annotations

import struct

import numpy as np

from sparsefmt.codecs.contract import ArrayInfo, Coder
from sparsefmt.codecs.rans.classes import CLASS_PRECISION, MAX_CLASSES, decode_row_symbols, encode_row_symbols
from sparsefmt.codecs.rans.elements.coordinates import placed
from sparsefmt.codecs.rans.elements.lags import differences, undo_differences
from sparsefmt.codecs.rans.elements.model import Model
from sparsefmt.codecs.rans.elements.splitting import Splitter, elements_of
from sparsefmt.codecs.rans.streams import Tables
from sparsefmt.errors import FormatError
from sparsefmt.lazily import computed_once
from sparsefmt.positions import Positions

_HEADER = struct.Struct("<Q")


class ElementCoder(Coder):
    """A model of elements made ready."""

    def __init__(self, model: Model, info: ArrayInfo) -> None:
        self.model, classes = model, model.classes
        self._width, self._cols = info.width, info.cols
        self._splitter = Splitter(self.model.keys, self.model.lows, self.model.widths)
        self._tables = Tables(self.model.tables, self.model.precision)
        self._row_tables = Tables(classes.row_frequencies, CLASS_PRECISION)
        self._has_classes = classes.rows > 1 or classes.columns is not None

    def encode(self, raw: np.ndarray, positions: Positions | None) -> bytes:
        elements = elements_of(raw, self._width)
        if not elements.size:
            return b""
        symbols, offsets, offset_bits = self._splitter.split(differences(elements, self.model.lag))
        coded = _HEADER.pack(offset_bits) + offsets[: -(-offset_bits // 64)].tobytes()
        if not self._has_classes:
            return coded + self._tables.encode(symbols)
        assert positions is not None
        row_classes = self._best_row_classes(symbols, positions)
        coded += encode_row_symbols(self._row_tables, row_classes)
        return coded + self._tables.encode(symbols, self._contexts(row_classes, positions))

    def decode(self, stored: np.ndarray, positions: Positions | None, out: np.ndarray) -> None:
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
        elements, contexts, stream = out.view(f"u{self._width}"), None, stored[begin:]
        if self._has_classes:
            if positions is None:
                raise FormatError("rans-model", "a model has classes for an array that has no rows and columns")
            row_classes, stream = decode_row_symbols(self._row_tables, stream, positions.rows)
            contexts = self._contexts(row_classes, positions)
            if contexts.size != elements.size:
                raise FormatError(
                    "slice-offsets", f"a mask has {contexts.size:,} positions for {elements.size:,} values"
                )
        symbols = self._tables.decode(stream, elements.size, contexts)
        self._splitter.join(symbols, offsets, offset_bits, elements)
        if self.model.lag:
            undo_differences(elements, self.model.lag)

    def _best_row_classes(self, symbols: np.ndarray, positions: Positions) -> np.ndarray:
        """The class of each row that makes it shortest: uint8 (rows,)."""
        from sparsefmt.codecs.rans.jitted import elements as jitted

        where, classes = placed(symbols, positions), self.model.classes
        assert where is not None
        with np.errstate(divide="ignore"):
            lengths = (self.model.precision - np.log2(self.model.tables)).astype(np.float32)
            row_lengths = (CLASS_PRECISION - np.log2(classes.row_frequencies)).astype(np.float32)
        row_classes = np.zeros(where.counts.size, np.uint8)
        lengths = np.ascontiguousarray(lengths[classes.table_of])
        fits = jitted.shortest_classes(
            where.elements, where.counts, where.columns, self._column_classes, lengths, row_lengths, row_classes
        )
        if not fits:
            raise FormatError("tensor-changed", "it changed while it was saved: save a copy")
        return row_classes

    @computed_once
    def _column_classes(self) -> np.ndarray:
        """The class of each column: uint8 (cols,)."""
        columns = self.model.classes.columns
        return np.zeros(self._cols, np.uint8) if columns is None else columns.astype(np.uint8, copy=False)

    @computed_once
    def _tables_by_class(self) -> np.ndarray:
        """The table of each class of columns and of rows: uint8 (classes of columns, MAX_CLASSES)."""
        classes = self.model.classes
        sums = np.arange(classes.column_count)[:, None] + np.arange(MAX_CLASSES)
        return np.take(classes.table_of, sums, mode="clip")

    @computed_once
    def _tables_by_column(self) -> np.ndarray:
        """For each class of rows, the table of each column: uint8 (MAX_CLASSES, cols)."""
        return np.ascontiguousarray(self._tables_by_class[self._column_classes].T)

    def _contexts(self, row_classes: np.ndarray, positions: Positions) -> np.ndarray:
        """The table of each element of a tile."""
        from sparsefmt.codecs.rans.jitted import elements as jitted
        from sparsefmt.isa import ISA

        classes = self.model.classes
        if positions.mask is None:
            if classes.columns is None:
                # there may be any number of columns then: no table of them
                return np.repeat(classes.table_of[row_classes], self._cols)
            return self._tables_by_column[row_classes].ravel()
        # the contexts of eight rows are written at once, and the next ones over the rest
        contexts = np.empty(positions.elements() + 16, np.uint8)
        known = positions.mask, row_classes, self._column_classes, self._tables_by_class
        if ISA == "portable" or classes.rows > 16:
            jitted.contexts_of(*known, contexts)
        else:
            jitted.contexts_of_few_classes(*known, jitted.SHUFFLES, contexts)
        return contexts[:-16]
