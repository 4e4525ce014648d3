"""A mask as the bytes that are coded: within each word of 64 columns, the columns sorted by their class."""

from __future__ import annotations

import numpy as np

from sparsefmt.codecs.rans.streams import read_only


def mask_of(raw: np.ndarray, cols: int) -> np.ndarray:
    """The bytes of a mask as (rows, words) uint64, read-only."""
    return read_only(raw.view(np.uint64)).reshape(-1, -(-cols // 64))


class ColumnOrder:
    """The order of columns that their classes make: within each word of 64 columns, sorted by class.

    Attributes:
        group_classes: uint8 (groups,), the mean class of each eight columns.
    """

    def __init__(self, column_classes: np.ndarray | None, cols: int) -> None:
        """column_classes: uint8 (cols,); None if the order is left as it is."""
        from sparsefmt.codecs.rans.jitted import masks as jitted

        self._words, self.group_classes = -(-cols // 64), np.zeros(-(-cols // 8), np.uint8)
        self._places = None
        if column_classes is not None:
            self._places = np.empty((self._words, 64), np.uint8)
            jitted.order(column_classes, self.group_classes, self._places)
        self._tables: dict[bool, np.ndarray] = {}

    def groups(self, mask: np.ndarray, copies: np.ndarray | None) -> np.ndarray:
        """The bytes of a mask in the order in which they are coded: uint8 (rows, 8 * words), read-only.

        copies: bool (rows,), which rows are coded as what differs from the row above; None if no row is.
        """
        from sparsefmt.codecs.rans.jitted import masks as jitted

        if copies is not None:
            out = np.empty_like(mask)
            jitted.difference(mask, copies, out)
            mask = out
        return read_only(self._reordered(mask, back=False).view(np.uint8))

    def restore(self, mask: np.ndarray, groups: np.ndarray, copies: np.ndarray | None) -> None:
        """Undo `groups`: fill `mask`, (rows, words) uint64, from uint8 (rows, as many as `group_classes`)."""
        from sparsefmt.codecs.rans.jitted import masks as jitted

        out, count = mask.view(np.uint8), self.group_classes.size
        out[:, count:] = 0
        out[:, :count] = groups
        if self._places is not None:
            mask[...] = self._reordered(mask, back=True)
        if copies is not None:
            jitted.restore(mask, copies)

    def _reordered(self, mask: np.ndarray, back: bool) -> np.ndarray:
        """A mask with its columns in this order, or back in their own; itself if these are the same."""
        from sparsefmt.codecs.rans.jitted import masks as jitted

        if self._places is None:
            return mask
        out = np.empty_like(mask)
        for first in range(0, self._words, _WORDS_OF_TABLES):
            jitted.reorder(read_only(mask), first, self._table(self._places, first, back), out)
        return out

    def _table(self, places: np.ndarray, first: int, back: bool) -> np.ndarray:
        """For `jitted.reorder`: words from `first` on. Kept if these are all words."""
        from sparsefmt.codecs.rans.jitted import masks as jitted

        if back in self._tables:
            return self._tables[back]
        places = places[first : first + _WORDS_OF_TABLES]
        tables = np.empty((len(places), 16, 16), np.uint64)
        jitted.fill_tables(places, back, tables)
        if len(places) == self._words:
            self._tables[back] = tables
        return tables


_WORDS_OF_TABLES = 1 << 10
"""Words of 64 columns for which there are tables at a time, 2 MiB of them. Those of wider matrices are made anew for
each use: kept, they would take 64 bytes for each column."""
