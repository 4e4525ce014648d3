"""The form of layout `permuted` with `gaps`: a byte for each entry, the columns from the entry before in its row.

The first gap of a row counts from column 0, so it is a column itself. A distance over 255 is bridged by fillers:
entries of gap 255 and value 0, which are not stored elements. There is one only where the rest of the distance is over
255. So the entries of a row are its stored elements, and before each of them as many fillers as its distance needs.

`row_counts` counts entries, by which rows are sorted. Nothing but `values` tells fillers from stored elements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparsefmt.layouts.memory import frozen
from sparsefmt.layouts.permuted import Permuted, slot_arrays

if TYPE_CHECKING:
    from sparsefmt.layouts.tile import Tile

U8 = np.dtype("u1")


class Gaps(Permuted):
    """The form with `gaps`."""

    form = where = "gaps"
    has_fillers = True
    arrays = ("gaps", "row_counts", "row_permutation", "slice_offsets", "values")

    def where_dtype(self, cols: int) -> np.dtype:
        return U8

    def find_fault(self, tile: Tile) -> tuple[int, int]:
        from sparsefmt.layouts.jitted import gaps as jitted

        values, gaps, _, row_counts, slice_offsets = slot_arrays(tile)
        negative_zero = values.dtype.type(tile.dtype.negative_zero)
        words = frozen(gaps.reshape(-1).view(np.uint64))
        return jitted.check(values, gaps, words, row_counts, slice_offsets, negative_zero, tile.cols)

    def nnz(self, tile: Tile) -> int:
        # padding and fillers are the zeros
        return int(np.count_nonzero(tile["values"]))

    def counts(self, tile: Tile) -> np.ndarray:
        from sparsefmt.layouts.jitted import gaps as jitted

        values, _, _, row_counts, slice_offsets = slot_arrays(tile)
        stored = np.empty(tile.rows, np.int64)
        jitted.count(values, row_counts, slice_offsets, stored)
        return stored

    def fillers(self, tile: Tile) -> np.ndarray:
        return tile["row_counts"] - self.counts(tile)
