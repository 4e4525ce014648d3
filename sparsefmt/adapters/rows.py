"""What an adapter makes of a tensor: the rows of its matrix view, a run of them at a time.

Rows are given as bits: C-contiguous, little-endian unsigned integers, in memory of no more than those rows, so that a
tensor in odd memory or byte order costs a tile and not a second tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.layouts import heights
from sparsefmt.layouts.contract import Layout
from sparsefmt.layouts.entries import Entries, entries_of
from sparsefmt.layouts.in_rows import InRows, RowsChanged, in_rows
from sparsefmt.layouts.memory import Allocate, Arena, empty
from sparsefmt.layouts.sizes import Filling, Stored, stored_by_form
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.shapes import check_shape, matrix_view
from sparsefmt.threads import in_order

_WORTH_KEEPING = 64
"""Columns from which on what is found in rows is kept: eight bytes of each."""


class Survey(NamedTuple):
    """What one read of a tensor tells.

    Attributes:
        nnz: elements that are neither 0 nor -0.0.
        negative_zeros: elements that are -0.0.
        stored: elements that layout `permuted` would store in each form, fillers and padding included.
    """

    nnz: int
    negative_zeros: int
    stored: Stored


class Rows(ABC):
    """A dense tensor to be laid out.

    Attributes:
        dtype, shape: of the dense tensor.
        row_dims: how many of its leading dimensions make rows.
        rows, cols: of its matrix view.
        is_sparse: whether `entries` takes time in proportion to what it gives.
        in_rows: what `survey` found in each row, for who lays it out then; None if it did not look at them, or if these
            are so short that they would take as much memory.
        is_settled: whether `bits` gives what nobody changes any more: memory of its own, or what is read-only for all.
    """

    is_sparse = False
    is_settled = False
    in_rows: InRows | None = None

    def __init__(self, dtype: DType, shape: tuple[int, ...]) -> None:
        check_shape(shape, dtype)
        self.dtype = dtype
        self.shape = shape
        self.row_dims = heights.row_dims(shape, dtype)
        self.rows, self.cols = matrix_view(shape, self.row_dims)

    def stack(self, row_dims: int) -> None:
        """Let so many leading dimensions make rows. Nothing has been read of it yet."""
        self.row_dims = row_dims
        self.rows, self.cols = matrix_view(self.shape, row_dims)
        self.in_rows = None

    @property
    def matrix_rows(self) -> int:
        """Rows of a matrix of a stack; of any other tensor, all rows."""
        return self.shape[self.row_dims - 1] if self.shape else 1

    @property
    def dense_nbytes(self) -> int:
        """Bytes of all elements, those of sub-byte types packed."""
        return self.dtype.nbytes(self.rows * self.cols)

    @abstractmethod
    def bits(self, begin: int, end: int) -> np.ndarray:
        """Bits (end - begin, cols) of rows `begin` to `end`, one element each also for sub-byte types."""

    def entries(self, begin: int, end: int) -> Entries:
        """What may not be zero in rows `begin` to `end`. O((end - begin) * cols) unless the tensor is a sparse one."""
        nowhere = np.zeros(0, np.int64)
        found = [(nowhere, nowhere, np.empty(0, self.dtype.bits_dtype))]
        for first, last in self.runs(begin, end):
            # a copy: the caller may be writing to it meanwhile, and numpy counts before it looks
            bits = np.array(self.bits(first, last))
            rows, columns = np.nonzero(bits)
            found.append((rows + (first - begin), columns, bits[rows, columns]))
        rows, columns, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return entries_of(rows, columns, values, end - begin)

    def survey(self, threads: int | None = None) -> Survey:
        """Count nonzeros and negative zeros. One read of the tensor, in parallel."""
        if not self.dtype.prunable or not self.rows * self.cols:
            return Survey(0, 0, Stored(0, 0))
        counts, filled = np.empty(self.rows, np.uint32), np.empty(self.rows, np.uint32)

        def count(run: tuple[int, int]) -> int:
            found = in_rows(self.bits(*run), self.dtype)
            counts[slice(*run)] = found.counts
            filled[slice(*run)] = found.fillers
            return found.negative_zeros

        negative_zeros = sum(in_order(count, list(self.runs(0, self.rows)), threads))
        if self.cols >= _WORTH_KEEPING:
            self.in_rows = InRows(counts, filled, negative_zeros)
        return self._survey_of(counts, filled, negative_zeros)

    def _survey_of(self, counts: np.ndarray, filled: np.ndarray, negative_zeros: int) -> Survey:
        """The survey of a matrix whose rows have so many nonzeros, and so many fillers (`layouts/fillers.py`)."""
        nnz = int(counts.sum(dtype=np.int64))
        # padding depends on which rows are in a tile; what cannot be laid out sparse has none
        height = self.tile_rows("permuted", nnz + negative_zeros) or max(self.rows, 1)
        tiles = (slice(begin, begin + height) for begin in range(0, self.rows, height))
        return Survey(nnz, negative_zeros, stored_by_form((counts[rows], filled[rows]) for rows in tiles))

    def filling(self, survey: Survey) -> Filling:
        """What the sizes of its arrays follow from."""
        height = self.tile_rows("permuted", survey.nnz + survey.negative_zeros) or 1
        return Filling(self.dtype, self.rows, self.cols, height, survey.nnz, survey.stored)

    def runs(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Rows `begin` to `end` in runs as high as dense tiles; none without elements."""
        height = heights.tile_rows(self.rows, self.cols)
        for first in range(begin, end, height) if height else ():
            yield first, min(end, first + height)

    def tile_rows(self, layout: str, entries: int | None = None) -> int:
        """Rows per tile for `layout`. Of a stack, they divide the rows of a matrix.

        Args:
            entries: elements to store, -0.0 among them if their signs are kept; None if nobody counted them.
        """
        height = self._tile_rows(layout, entries)
        return height if self.row_dims == 1 else heights.divisor(self.matrix_rows, height, self.dtype.packed)

    def _tile_rows(self, layout: str, entries: int | None) -> int:
        if layout != "dense":
            if layout == "permuted" and entries is not None and heights.is_very_sparse(self.rows, self.cols, entries):
                return heights.very_sparse_tile_rows(self.rows, self.cols, entries)
            return heights.sparse_tile_rows(self.rows, self.cols)
        height = heights.tile_rows(self.rows, self.cols)
        # tiles of packed elements start at whole bytes
        return min(self.rows, -(-height // 8) * 8) if self.dtype.packed else height

    def tiling(self, layout: Layout, entries: int | None = None) -> Tiling:
        """How to cut it into tiles of `layout`. entries: as in `tile_rows`."""
        height = self.tile_rows(layout.name, entries)
        return Tiling(self.dtype, self.shape, layout, height, row_dims=self.row_dims)

    def tile_maker(
        self, tiling: Tiling, drop_negative_zeros: bool = False, arena: Arena | None = None
    ) -> Callable[[int], Tile]:
        """A function that lays out tile number t, in an arena if there is one."""
        layout = tiling.layout
        # a tile that is higher than usual has few entries, and would be large if it were made dense
        by_entries = layout.sparse and (self.is_sparse or tiling.tile_rows > self.tile_rows(layout.name))
        dropped = self.dtype.negative_zero if drop_negative_zeros else 0

        def make_tile(number: int) -> Tile:
            begin, end = tiling.tile_range(number)
            if not by_entries:
                return self._tile_of_bits(layout, (begin, end), dropped, empty if arena is None else arena.empty)
            tile = self._tile_of_entries(layout, begin, end, dropped)
            return tile if arena is None else arena.keep(tile)

        return make_tile

    def _tile_of_entries(self, layout: Layout, begin: int, end: int, dropped: int) -> Tile:
        entries = self.entries(begin, end)
        # a copy: the caller may be writing to it meanwhile
        values = _without(np.array(entries.values), dropped)
        return Tile.from_entries(layout, entries._replace(values=values), self.dtype, (end - begin, self.cols))

    def _tile_of_bits(self, layout: Layout, rows: tuple[int, int], dropped: int, empty: Allocate) -> Tile:
        bits = _without(self.bits(*rows), dropped)
        if layout.sparse:
            known = self.in_rows
            if known is not None:
                counts, fillers = (array[slice(*rows)].astype(np.int64) for array in known[:2])
                found = InRows(counts, fillers, 0 if dropped else known.negative_zeros)
                with suppress(RowsChanged):
                    return Tile.from_dense(layout, bits, self.dtype, empty, found)
            # counted once more, in a copy: the caller may be writing to it meanwhile
            return Tile.from_dense(layout, bits if self.is_settled else np.array(bits), self.dtype, empty)
        tile = Tile.from_dense(layout, bits, self.dtype, empty)
        # a BOOL can hold other bits than 0 and 1; sparse layouts are right by construction
        tile.check()
        return tile


def _without(bits: np.ndarray, dropped: int) -> np.ndarray:
    """Bits with 0 in place of `dropped`."""
    return np.where(bits == bits.dtype.type(dropped), bits.dtype.type(0), bits) if dropped else bits
