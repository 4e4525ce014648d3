"""The entries of a run of rows: what is not zero, and where it is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

COLUMN = np.dtype(np.uint32)
"""The type of columns: those of a sparse layout fit 31 bits."""


class Entries(NamedTuple):
    """Elements of a run of rows, ordered by row and then by column, each at most once.

    Attributes:
        counts: int64 (rows,), how many each row of the run has.
        columns: COLUMN (n,).
        values: bits (n,). May be zeros, of either sign.
    """

    counts: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    @property
    def begins(self) -> np.ndarray:
        """int64 (rows,), the number of the first entry of each row."""
        return np.cumsum(self.counts) - self.counts

    @property
    def rows(self) -> np.ndarray:
        """int64 (n,), the row of each entry, counted from the first of the run."""
        return np.repeat(np.arange(self.counts.size), self.counts)

    def where(self, kept: np.ndarray) -> Entries:
        """Those that a bool (n,) keeps."""
        before = np.zeros(kept.size + 1, np.int64)
        np.cumsum(kept, out=before[1:])
        ends = before[np.cumsum(self.counts)]
        return Entries(np.diff(ends, prepend=0), self.columns[kept], self.values[kept])


def entries_of(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, height: int) -> Entries:
    """The entries of `height` rows, given the row and the column of each as integers."""
    return Entries(np.bincount(rows, minlength=height), columns.astype(COLUMN), values)
