"""A mask as the bytes that are coded: within each word of 64 columns, the columns sorted by their class."""

from __future__ import annotations

import numpy as np

from sparsefmt.positions.masks import SLICE_ROWS, slices_of

CLASSES = 64
"""Row symbols, and classes of groups, of which there are fewer."""

IN_PLACE = np.empty(0, np.int64)
"""Columns in their own order."""

_NO_COPIES = np.empty(0, np.uint16)


def tables_by_class(table_of: np.ndarray, symbols: int, classes: int, copy: int) -> np.ndarray:
    """For `contexts_of`: uint8 (CLASSES * CLASSES,).

    Args:
        table_of: uint8, the table of each sum of two classes; last, that of copies, if there are some.
        symbols: how many row symbols there are.
        classes: how many classes of columns there are.
        copy: the row symbol of copies; -1 if there are none.
    """
    by_class = np.zeros((CLASSES, CLASSES), np.uint8)
    by_class[:symbols, :classes] = table_of.take(np.arange(symbols)[:, None] + np.arange(classes), mode="clip")
    if copy >= 0:
        by_class[copy] = table_of[-1]
    return by_class.ravel()


def contexts_of(symbols: np.ndarray, group_classes: np.ndarray, by_class: np.ndarray) -> np.ndarray:
    """The table of each byte of a chunk: uint8, flat. symbols: uint8, of its rows. by_class: from `tables_by_class`."""
    from sparsefmt.codecs.rans.jitted import masks as jitted

    contexts = np.empty(symbols.size * group_classes.size, np.uint8)
    jitted.contexts_in_slices(symbols, group_classes, by_class, np.empty(SLICE_ROWS, np.uint64), contexts)
    return contexts


class ColumnOrder:
    """The order of columns that their classes make: within each word of 64 columns, sorted by class.

    Attributes:
        group_classes: uint8 (groups,), the mean class of each eight columns.
        columns: int64 (64 * words,), the column at each place; empty if it is the place itself.
    """

    def __init__(self, column_classes: np.ndarray | None, cols: int) -> None:
        """column_classes: uint8 (cols,); None if the order is left as it is."""
        from sparsefmt.codecs.rans.jitted import masks as jitted

        words, self.group_classes, self.columns = -(-cols // 64), np.zeros(-(-cols // 8), np.uint8), IN_PLACE
        if column_classes is not None:
            places = np.empty((words, 64), np.uint8)
            jitted.order(column_classes, self.group_classes, places)
            self.columns = (np.argsort(places, axis=1) + 64 * np.arange(words)[:, None]).ravel()

    def groups(self, mask: np.ndarray, rows: int, copies: np.ndarray | None) -> np.ndarray:
        """The bytes of a chunk: uint8 (rows * groups,).

        Args:
            mask: (slices, cols), read-only.
            copies: bool (rows,), which rows are coded as what differs from the row above; None if no row is.
        """
        from sparsefmt.codecs.rans.jitted import masks as jitted

        groups = np.empty(rows * self.group_classes.size, np.uint8)
        words = groups[: rows // SLICE_ROWS * SLICE_ROWS * self.group_classes.size].view(np.uint64)
        of_slices = _NO_COPIES
        if copies is not None and copies.any():
            padded = np.zeros(slices_of(rows) * SLICE_ROWS, np.bool_)
            padded[:rows] = copies
            of_slices = np.packbits(padded, bitorder="little").view("<u2").astype(np.uint16)
        jitted.split(mask, rows, self.columns, of_slices, groups, words)
        return groups
