"""Sparse tensors of any library: elements, or blocks of them, at their places, and one fill everywhere else.

All that libraries call CSR, CSC, COO, BSR or GCXS comes to this. Stored elements keep their bits, -0.0 and the payloads
of NaN among them; a stored 0.0 is as good as none.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from sparsefmt.adapters.rows import Rows, Survey
from sparsefmt.dtypes import DType
from sparsefmt.errors import FormatError
from sparsefmt.layouts.entries import COLUMN, Entries, entries_of
from sparsefmt.layouts.fillers import FillerCount

_BLOCKS_AT_ONCE = 1 << 18
"""Blocks that are counted at a time."""


class BlocksRows(Rows):
    """A sparse tensor: by its entries where the fill is zero, else made dense a run of rows at a time.

    Args:
        places: (n,) where the blocks lie, as positions in the grid of blocks that the matrix view is made of, counted
            along its rows. In any order.
        values: (n, height, width) bits of the blocks, whose height and width divide the matrix view.
        fill: bits of every other element.

    Blocks at one place are summed in their order, in the dtype.

    Raises:
        FormatError: a place outside the tensor, or not a block for each place.

    Cost: none beside `places` if they ascend, else a sorted copy.
    """

    def __init__(
        self, dtype: DType, shape: tuple[int, ...], places: np.ndarray, values: np.ndarray, fill: int = 0
    ) -> None:
        super().__init__(dtype, shape)
        _, self._height, self._width = values.shape
        if self._width and self.cols % self._width:  # matrices that are not made of such blocks
            super().stack(1)
        if self.rows % self._height or (self._width and self.cols % self._width):
            raise invalid(f"{self.rows} rows of {self.cols} are not made of blocks of {self._height} x {self._width}")
        if not self.rows * self.cols:
            places, values = places[:0], values[:0]
        self._grid_cols = self.cols // self._width if self._width else 0
        expect_within(places, self.rows // self._height * self._grid_cols, "an element's position")
        if len(places) != len(values):
            raise invalid(f"there are {len(values):,} values for {len(places):,} places")
        if not np.all(places[1:] > places[:-1]):
            places, values = _sorted_and_summed(places, values, dtype)
        self._places = places
        self._values = values
        self._fill = fill
        self.is_sparse = not fill

    def stack(self, row_dims: int) -> None:
        super().stack(row_dims)
        if self._width and self.cols % self._width:
            raise invalid(f"row_dims {row_dims} makes {self.cols} columns, which blocks of {self._width} do not")
        # places count blocks in row-major order, which are single rows wherever there are more than two dimensions
        self._grid_cols = self.cols // self._width if self._width else 0

    def survey(self, threads: int | None = None) -> Survey:
        if not self.is_sparse:
            return super().survey(threads)
        counts, negatives = np.zeros((self.rows // self._height, self._height), np.uint32), 0
        fillers = FillerCount(self.rows, self.cols)
        for begin in range(0, len(self._places), _BLOCKS_AT_ONCE):
            values = self._values[begin : begin + _BLOCKS_AT_ONCE]
            signs = values == self.dtype.negative_zero if self.dtype.negative_zero else np.zeros(values.shape, np.bool_)
            negatives += int(np.count_nonzero(signs))
            kept = (values != 0) & ~signs
            block_rows, block_columns = np.divmod(self._places[begin : begin + _BLOCKS_AT_ONCE], self._grid_cols)
            np.add.at(counts, block_rows, np.count_nonzero(kept, axis=2).astype(np.uint32))
            blocks, rows, columns = np.nonzero(kept)
            places = block_columns[blocks] * self._width + columns
            fillers.add(block_rows[blocks] * self._height + rows, places.astype(COLUMN))
        return self._survey_of(counts.reshape(-1), fillers.found, negatives)

    def entries(self, begin: int, end: int) -> Entries:
        if not self.is_sparse:
            return super().entries(begin, end)
        height, width = self._height, self._width
        if not self.rows * self.cols:
            return Entries(np.zeros(end - begin, np.int64), np.empty(0, COLUMN), np.empty(0, self.dtype.bits_dtype))
        first, low, high = self._within(begin, end)
        rows, columns = np.divmod(self._places[low:high] - first * self._grid_cols, self._grid_cols)
        values = self._values[low:high]
        if height == width == 1:
            return entries_of(rows, columns, values.reshape(-1), end - begin)
        # the elements of each block, then all by row: columns of a row ascend, as blocks do
        block_rows, block_columns = (part.reshape(-1) for part in np.mgrid[:height, :width])
        rows = (rows[:, None] * height + block_rows).reshape(-1) + (first * height - begin)
        columns = (columns[:, None] * width + block_columns).reshape(-1)
        order = np.argsort(rows, kind="stable")
        order = order[np.searchsorted(rows, 0, sorter=order) : np.searchsorted(rows, end - begin, sorter=order)]
        return entries_of(rows[order], columns[order], values.reshape(-1)[order], end - begin)

    def _within(self, begin: int, end: int) -> tuple[int, int, int]:
        """(first row of blocks, first block, end of the blocks) of rows `begin` to `end`."""
        first, last = begin // self._height, -(-end // self._height)
        low, high = np.searchsorted(self._places, (first * self._grid_cols, last * self._grid_cols))
        return first, int(low), int(high)

    def bits(self, begin: int, end: int) -> np.ndarray:
        if not self.cols:
            return np.empty((end - begin, 0), self.dtype.bits_dtype)
        height, width, grid_cols = self._height, self._width, self._grid_cols
        first, low, high = self._within(begin, end)
        last = -(-end // height)
        places = self._places[low:high] - first * grid_cols
        rows = np.full((last - first, height, grid_cols, width), self._fill, self.dtype.bits_dtype)
        if height == width == 1:
            rows.reshape(-1)[places] = self._values[low:high].reshape(-1)
        else:
            rows.transpose(0, 2, 1, 3)[places // grid_cols, places % grid_cols] = self._values[low:high]
        return rows.reshape(-1, self.cols)[begin - first * height : end - first * height]


def flat_places(coordinates: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Positions in row-major order of elements at `coordinates`, an array for each dimension.

    Raises:
        FormatError: a coordinate is outside its dimension, or not every element has all of them.
    """
    if len({len(indices) for indices in coordinates}) > 1:
        raise invalid("there are not as many indices in each dimension")
    places = np.zeros(len(coordinates[0]), np.int64)
    for dimension, (indices, size) in enumerate(zip(coordinates, sizes, strict=True)):
        expect_within(indices, size, f"an index in dimension {dimension}")
        places = places * size + indices
    return places


def expanded(starts: np.ndarray, entries: int) -> np.ndarray:
    """The number of the row of each entry, where `starts` has the first entry of each row, and after them their end.

    Raises:
        FormatError: `starts` does not go from 0 to `entries` without a step back.
    """
    counts = np.diff(starts)
    if not len(starts) or starts[0] != 0 or starts[-1] != entries or (counts < 0).any():
        raise invalid(f"the pointers to rows (or columns) do not go from 0 to {entries:,}, ascending")
    return np.repeat(np.arange(len(counts)), counts)


def expect_within(indices: np.ndarray, size: int, what: str) -> None:
    """Raise FormatError unless every index is in range(size)."""
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        wrong = indices[(indices < 0) | (indices >= size)][0]
        raise invalid(f"{what}, {wrong}, is not within 0 to {size - 1}")


def invalid(message: str) -> FormatError:
    return FormatError("indices-invalid", f"a sparse tensor that is not well formed: {message}")


def as_blocks(values: np.ndarray, block: tuple[int, ...] = ()) -> np.ndarray:
    """Bits (n, …) as blocks: of shape `block`, else each entry's elements in one row."""
    height, width = block or (1, prod(values.shape[1:]))
    return values.reshape(len(values), height, width)


def _sorted_and_summed(places: np.ndarray, values: np.ndarray, dtype: DType) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(places, kind="stable")
    places, values = places[order], values[order]
    is_first = np.ones(len(places), np.bool_)
    np.not_equal(places[1:], places[:-1], out=is_first[1:])
    if is_first.all():
        return places, values
    sums = values[is_first].view(dtype.numpy)
    with np.errstate(all="ignore"):
        np.add.at(sums, np.cumsum(is_first)[~is_first] - 1, values[~is_first].view(dtype.numpy))
    return places[is_first], sums.view(dtype.bits_dtype)
