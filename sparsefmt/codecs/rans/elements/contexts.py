"""Which table codes each element of a tile: that of the sum of the classes of its row and its column."""

from __future__ import annotations

import numpy as np

from sparsefmt.codecs.rans.classes import MAX_CLASSES
from sparsefmt.lazily import computed_once
from sparsefmt.positions import Positions


class Contexts:
    """Tables for the elements of any tile of a tensor.

    Args:
        rows: how many classes of rows there are.
        columns: the class of each column, uint8 (cols,); None if they have but one class.
        cols: how many columns there are.
        table_of: uint8, the table for each sum of two classes.
    """

    def __init__(self, rows: int, columns: np.ndarray | None, cols: int, table_of: np.ndarray) -> None:
        self._rows, self._columns, self._cols, self._table_of = rows, columns, cols, table_of

    def of(self, row_classes: np.ndarray, positions: Positions) -> np.ndarray:
        """The table of each element: uint8. row_classes: uint8 (rows of the tile,)."""
        from sparsefmt.codecs.rans.jitted import elements as jitted
        from sparsefmt.isa import ISA

        if positions.mask is None:
            if self._columns is None:
                # there may be any number of columns then: no table of them
                return np.repeat(self._table_of[row_classes], self._cols)
            return self._tables_by_column[row_classes].ravel()
        # the contexts of eight rows are written at once, and the next ones over the rest
        contexts = np.empty(positions.elements() + 16, np.uint8)
        known = positions.mask, row_classes, self.column_classes, self._tables_by_class
        if ISA == "portable" or self._rows > 16:
            jitted.contexts_of(*known, contexts)
        else:
            jitted.contexts_of_few_classes(*known, jitted.SHUFFLES, contexts)
        return contexts[:-16]

    @computed_once
    def column_classes(self) -> np.ndarray:
        """The class of each column: uint8 (cols,)."""
        return np.zeros(self._cols, np.uint8) if self._columns is None else self._columns.astype(np.uint8, copy=False)

    @computed_once
    def _tables_by_class(self) -> np.ndarray:
        """The table of each class of columns and of rows: uint8 (classes of columns, MAX_CLASSES)."""
        classes = len(self._table_of) - self._rows + 1
        return np.take(self._table_of, np.arange(classes)[:, None] + np.arange(MAX_CLASSES), mode="clip")

    @computed_once
    def _tables_by_column(self) -> np.ndarray:
        """For each class of rows, the table of each column: uint8 (MAX_CLASSES, cols)."""
        return np.ascontiguousarray(self._tables_by_class[self.column_classes].T)
