"""Counts the fillers that rows have in layout `permuted` with gaps (`gaps.py`), before anything is laid out so.

`in_rows.py` counts those of dense rows.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.layouts.memory import frozen

MAX_GAP = 255
"""The longest distance that needs no filler. With one column more than this, the last one is no further away."""


class FillerCount:
    """Counts the fillers that rows need, given their nonzeros some at a time.

    Attributes:
        found: int64 (rows,).
    """

    def __init__(self, rows: int, cols: int) -> None:
        self.found = np.zeros(rows, np.int64)
        self._last = np.zeros(rows if cols > MAX_GAP + 1 else 0, np.int64)

    def add(self, rows: np.ndarray, columns: np.ndarray) -> None:
        """Elements at rows (int64) and columns (COLUMN). Those of a row ascend, in a call and from one to the next."""
        from sparsefmt.layouts.jitted import fillers as jitted

        if self._last.size:
            jitted.of_entries(frozen(rows), frozen(columns), self._last, self.found)


def of_mask(mask: np.ndarray, rows: int) -> np.ndarray:
    """Those of rows with this mask (slices, cols), as `in_slices` gives it: int64 (rows,)."""
    from sparsefmt.layouts.jitted import fillers as jitted

    counts = np.zeros(rows, np.int64)
    if mask.shape[1] > MAX_GAP + 1:
        jitted.of_mask(mask, counts)
    return counts


def of_columns(columns: np.ndarray, row_counts: np.ndarray, slice_offsets: np.ndarray, cols: int) -> np.ndarray:
    """Those of rows in layout `permuted` with columns (slots, 16), in sorted order: int64 (rows,). All read-only."""
    from sparsefmt.layouts.jitted import fillers as jitted

    counts = np.zeros(row_counts.size, np.int64)
    if cols > MAX_GAP + 1:
        jitted.of_columns(columns, row_counts, slice_offsets, counts)
    return counts
