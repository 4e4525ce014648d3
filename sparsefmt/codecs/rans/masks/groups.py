"""A mask as the bytes that are coded: within each word of 64 columns, the columns sorted by their class."""

from __future__ import annotations

import numpy as np

from sparsefmt.codecs.rans.streams import read_only
from sparsefmt.positions.masks import SLICE_ROWS, in_slices, row_bytes


def mask_of(raw: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """The bytes of a mask, row by row: (rows, words) uint64, read-only."""
    return read_only(row_bytes(in_slices(raw, rows, cols), rows, multiple=8).view(np.uint64))


def in_chunk_order(of_rows: np.ndarray) -> np.ndarray:
    """What stands for each row and group, (rows, groups), in the order of a chunk: slices, groups, rows. Flat."""
    rows, groups = of_rows.shape
    whole = rows // SLICE_ROWS * SLICE_ROWS
    first = of_rows[:whole].reshape(-1, SLICE_ROWS, groups).transpose(0, 2, 1)
    return np.concatenate([first.ravel(), of_rows[whole:].T.ravel()])


def contexts_of(symbols: np.ndarray, group_classes: np.ndarray, table_of: np.ndarray, copy: int) -> np.ndarray:
    """The table of each row and group: table_of[row's class + group's class], or the last in rows whose symbol is
    `copy`. uint8 (rows, groups)."""
    contexts = np.empty((symbols.size, group_classes.size), np.uint8)
    for symbol in np.flatnonzero(np.bincount(symbols)).tolist():
        line = table_of[-1] if symbol == copy else table_of[group_classes + np.uint8(symbol)]
        contexts[symbols == symbol] = line
    return contexts


class ColumnOrder:
    """The order of columns that their classes make: within each word of 64 columns, sorted by class.

    Attributes:
        group_classes: uint8 (groups,), the mean class of each eight columns.
        columns: int64 (64 * words,), the column at each place; None if it is the place itself.
    """

    def __init__(self, column_classes: np.ndarray | None, cols: int) -> None:
        """column_classes: uint8 (cols,); None if the order is left as it is."""
        from sparsefmt.codecs.rans.jitted import masks as jitted

        self._words, self.group_classes = -(-cols // 64), np.zeros(-(-cols // 8), np.uint8)
        self._places = None
        self.columns = None
        if column_classes is not None:
            self._places = np.empty((self._words, 64), np.uint8)
            jitted.order(column_classes, self.group_classes, self._places)
            self.columns = self._columns(self._places)
        self._tables: np.ndarray | None = None

    def _columns(self, places: np.ndarray) -> np.ndarray:
        """The column of each place: int64 (64 * words,)."""
        order = np.argsort(places, axis=1) + 64 * np.arange(self._words)[:, None]
        return order.ravel()

    def groups(self, mask: np.ndarray, copies: np.ndarray | None) -> np.ndarray:
        """The bytes of a mask in the order in which they are coded: uint8 (rows, 8 * words), read-only.

        copies: bool (rows,), which rows are coded as what differs from the row above; None if no row is.
        """
        from sparsefmt.codecs.rans.jitted import masks as jitted

        if copies is not None:
            out = np.empty_like(mask)
            jitted.difference(mask, copies, out)
            mask = out
        return read_only(self._reordered(mask).view(np.uint8))

    def _reordered(self, mask: np.ndarray) -> np.ndarray:
        """A mask with its columns in this order; itself if that is their own."""
        from sparsefmt.codecs.rans.jitted import masks as jitted

        if self._places is None:
            return mask
        out = np.empty_like(mask)
        for first in range(0, self._words, _WORDS_OF_TABLES):
            jitted.reorder(read_only(mask), first, self._table(self._places, first), out)
        return out

    def _table(self, places: np.ndarray, first: int) -> np.ndarray:
        """For `jitted.reorder`: words from `first` on. Kept if these are all words."""
        from sparsefmt.codecs.rans.jitted import masks as jitted

        if self._tables is not None:
            return self._tables
        places = places[first : first + _WORDS_OF_TABLES]
        tables = np.empty((len(places), 16, 16), np.uint64)
        jitted.fill_tables(places, tables)
        if len(places) == self._words:
            self._tables = tables
        return tables


_WORDS_OF_TABLES = 1 << 10
"""Words of 64 columns for which there are tables at a time, 2 MiB of them. Those of wider matrices are made anew for
each use: kept, they would take 64 bytes for each column."""
