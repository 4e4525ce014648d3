"""The form of layout `permuted` with `gaps`: a byte for each entry, the columns from the entry before in its row.

The first gap of a row counts from column 0, so it is a column itself. A distance over 255 is bridged by fillers:
entries of gap 255 and value 0, which are no stored elements. There is one only where the rest of the distance is over
255. So the entries of a row are its stored elements, and before each of them as many fillers as its distance needs.

`row_counts` counts entries, by which rows are sorted. Nothing but `values` tells fillers from stored elements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.layouts.contract import Arrays
from sparsefmt.layouts.entries import Entries
from sparsefmt.layouts.memory import Allocate, frozen, zeros
from sparsefmt.layouts.permuted import MAX_GAP, Permuted, counts_by_row, slot_arrays

if TYPE_CHECKING:
    from sparsefmt.layouts.tile import Tile

U8 = np.dtype("u1")


class Gaps(Permuted):
    """The form with `gaps`."""

    form = where = "gaps"
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

    def from_dense(self, bits: np.ndarray, dtype: DType, counts: np.ndarray) -> Arrays:
        from sparsefmt.layouts.jitted import gaps as jitted

        negative_zero = bits.dtype.type(dtype.negative_zero)
        arrays = self.allocate(counts + fillers_of_bits(bits, dtype), dtype, bits.shape[1])
        jitted.from_dense(
            frozen(bits),
            negative_zero,
            frozen(arrays["row_permutation"]),
            frozen(arrays["slice_offsets"]),
            *self.slots(arrays),
        )
        return arrays

    def to_dense(self, tile: Tile, begin: int, end: int) -> np.ndarray:
        from sparsefmt.layouts.jitted import gaps as jitted

        bits = np.zeros((end - begin, tile.cols), tile.dtype.bits_dtype)
        jitted.to_dense(*slot_arrays(tile), begin, end, bits)
        return bits

    def from_entries(self, entries: Entries, dtype: DType, shape: tuple[int, int], zeros: Allocate = zeros) -> Arrays:
        from sparsefmt.layouts.jitted import gaps as jitted

        rows, cols = shape
        counts = np.bincount(entries.rows, minlength=rows).astype(np.int64)
        fillers = FillerCount(rows, cols)
        fillers.add(entries.rows, entries.columns)
        arrays = self.allocate(counts + fillers.found, dtype, cols, zeros)
        jitted.of_entries(
            entries.columns,
            entries.values,
            frozen(np.cumsum(counts) - counts),
            frozen(counts),
            frozen(arrays["row_permutation"]),
            frozen(arrays["slice_offsets"]),
            *self.slots(arrays),
        )
        return arrays

    def to_entries(self, tile: Tile) -> Entries:
        from sparsefmt.layouts.jitted import gaps as jitted

        counts = counts_by_row(tile)
        nnz = int(counts.sum())
        columns, values = np.empty(nnz, np.int64), np.empty(nnz, tile["values"].dtype)
        jitted.to_entries(*slot_arrays(tile), frozen(np.cumsum(counts) - counts), columns, values)
        return Entries(np.repeat(np.arange(tile.rows), counts), columns, values)


class FillerCount:
    """Counts the fillers that rows need, given their nonzeros some at a time.

    Attributes:
        found: int64 (rows,).
    """

    def __init__(self, rows: int, cols: int) -> None:
        self.found = np.zeros(rows, np.int64)
        self._last = np.zeros(rows if cols > MAX_GAP + 1 else 0, np.int64)

    def add(self, rows: np.ndarray, columns: np.ndarray) -> None:
        """Elements at int64 rows and columns. Columns of a row ascend, within a call and from one to the next."""
        from sparsefmt.layouts.jitted import gaps as jitted

        if self._last.size:
            jitted.fillers_of_entries(frozen(rows), frozen(columns), self._last, self.found)


def fillers_of_bits(bits: np.ndarray, dtype: DType) -> np.ndarray:
    """Fillers that rows of dense bits (rows, cols) need: int64 (rows,). One read of the bits, at about memory speed."""
    from sparsefmt.layouts.jitted import gaps as jitted

    fillers = np.zeros(bits.shape[0], np.int64)
    if bits.shape[1] > MAX_GAP + 1:
        jitted.fillers_of_bits(frozen(bits), ~bits.dtype.type(dtype.negative_zero), fillers)
    return fillers
