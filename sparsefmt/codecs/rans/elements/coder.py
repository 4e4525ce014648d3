"""A chunk of elements."""

from __future__ import annotations

import struct

import numpy as np

from sparsefmt.codecs.contract import ArrayInfo, Coder
from sparsefmt.codecs.rans.classes import CLASS_PRECISION, decode_row_symbols, encode_row_symbols
from sparsefmt.codecs.rans.elements.contexts import Contexts
from sparsefmt.codecs.rans.elements.lags import differences, undo_differences
from sparsefmt.codecs.rans.elements.model import Model
from sparsefmt.codecs.rans.elements.splitting import Splitter, elements_of
from sparsefmt.codecs.rans.streams import Tables
from sparsefmt.errors import FormatError
from sparsefmt.positions import Positions

_HEADER = struct.Struct("<Q")


class ElementCoder(Coder):
    """A model of elements made ready.

    Args:
        row_classes: those of all rows of the tensor with which the model was made, uint8; None if they are not known.
    """

    def __init__(self, model: Model, info: ArrayInfo, row_classes: np.ndarray | None = None) -> None:
        self.model, self._width, classes = model, info.width, model.classes
        self._row_classes, self._contexts = (
            row_classes,
            Contexts(classes.rows, classes.columns, info.cols, classes.table_of),
        )
        self._splitter = Splitter(self.model.keys, self.model.lows, self.model.widths)
        self._tables = Tables(self.model.tables, self.model.precision)
        self._row_tables = Tables(classes.row_frequencies, CLASS_PRECISION)
        self._has_classes = classes.rows > 1 or classes.columns is not None

    def encode(self, raw: np.ndarray, positions: Positions | None, rows: range | None = None) -> bytes:
        elements = elements_of(raw, self._width)
        if not elements.size:
            return b""
        symbols, offsets, offset_nbits = self._splitter.split(differences(elements, self.model.lag))
        coded: list[bytes | memoryview] = [_HEADER.pack(offset_nbits), offsets[: -(-offset_nbits // 64)].data]
        contexts = None
        if self._has_classes:
            assert positions is not None
            if rows is None or self._row_classes is None:
                row_classes = self._best_row_classes(symbols, positions)
            else:
                row_classes = self._row_classes[rows.start : rows.stop]
            coded.append(encode_row_symbols(self._row_tables, row_classes))
            contexts = self._contexts.of(row_classes, positions)
        return b"".join([*coded, *self._tables.encoded(symbols, contexts)])

    def decode(self, stored: np.ndarray, positions: Positions | None, out: np.ndarray) -> None:
        from sparsefmt.codecs.rans.jitted import elements as jitted

        if stored.size < _HEADER.size:
            raise FormatError("rans-stream", "a chunk ends too early")
        (offset_nbits,) = _HEADER.unpack(stored[: _HEADER.size].tobytes())
        offset_words = -(-offset_nbits // 64)
        begin = _HEADER.size + 8 * offset_words
        if begin > stored.size:
            raise FormatError("rans-stream", "a chunk ends too early")
        offsets = np.zeros(offset_words + jitted.PADDING, np.uint64)
        offsets[:offset_words].view(np.uint8)[:] = stored[_HEADER.size : begin]
        if offset_nbits % 64 and int(offsets[offset_words - 1]) >> offset_nbits % 64:
            raise FormatError("rans-stream", "unused bits of a chunk are not zero")
        elements, contexts, stream = out.view(f"u{self._width}"), None, stored[begin:]
        if self._has_classes:
            if positions is None:
                raise FormatError("rans-model", "a model has classes for an array that has no rows and columns")
            row_classes, stream = decode_row_symbols(self._row_tables, stream, positions.rows)
            contexts = self._contexts.of(row_classes, positions)
            if contexts.size != elements.size:
                raise FormatError(
                    "slice-offsets", f"a mask has {contexts.size:,} positions for {elements.size:,} values"
                )
        symbols = self._tables.decode(stream, elements.size, contexts)
        self._splitter.join(symbols, offsets, offset_nbits, elements)
        if self.model.lag:
            undo_differences(elements, self.model.lag)

    def _best_row_classes(self, symbols: np.ndarray, positions: Positions) -> np.ndarray:
        """The class of each row that makes it shortest: uint8 (rows,)."""
        from sparsefmt.codecs.rans.jitted import elements as jitted

        counts, classes = positions.counts(), self.model.classes
        by_row, columns = positions.by_row(symbols, counts)
        with np.errstate(divide="ignore"):
            lengths = (self.model.precision - np.log2(self.model.tables)).astype(np.float32)
            row_lengths = (CLASS_PRECISION - np.log2(classes.row_frequencies)).astype(np.float32)
        row_classes = np.zeros(counts.size, np.uint8)
        lengths = np.ascontiguousarray(lengths[classes.table_of])
        fits = jitted.shortest_classes(
            by_row,
            counts,
            columns,
            self._contexts.column_classes,
            lengths,
            row_lengths,
            row_classes,
        )
        if not fits:
            raise FormatError("tensor-changed", "it changed while it was saved: save a copy")
        return row_classes
