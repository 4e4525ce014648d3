"""scipy.sparse matrices and arrays: of any format to rows, and matrices back, in CSR."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsefmt.adapters.blocks import BlocksRows, as_blocks, expanded, flat_places
from sparsefmt.adapters.elements import matrix_by_columns, matrix_by_coordinates, matrix_by_rows
from sparsefmt.adapters.rows import Rows, Survey
from sparsefmt.container.budget import Budget
from sparsefmt.dtypes import DType, as_bits, dtype_of
from sparsefmt.layouts.entries import Entries, entries_of
from sparsefmt.layouts.fillers import FillerCount
from sparsefmt.layouts.in_rows import in_rows
from sparsefmt.layouts.memory import frozen
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.threads import in_order

if TYPE_CHECKING:
    import scipy.sparse


def rows_of(matrix: Any) -> Rows:
    """A matrix, or an array of any number of dimensions, as it is to be stored.

    Entries at one place are summed in their order.

    Raises:
        UnsupportedError: the format does not have the dtype.
        FormatError: indices outside the matrix, which scipy does not look for.
    """
    dtype = dtype_of(matrix.dtype)
    shape = tuple(map(int, matrix.shape))
    if matrix.ndim == 2 and matrix.format == "dia":
        return DiagonalsRows(dtype, shape, matrix.offsets, as_bits(matrix.data, dtype))
    if matrix.ndim == 2 and matrix.format in ("csr", "csc", "bsr"):
        return _compressed(matrix, dtype, shape)
    matrix = matrix.tocoo(copy=False)
    # scipy before 1.13 has two dimensions, which have names
    coordinates = matrix.coords if hasattr(matrix, "coords") else (matrix.row, matrix.col)
    if matrix.ndim == 2:
        rows, columns = coordinates
        return matrix_by_coordinates(dtype, shape, rows, columns, as_bits(matrix.data, dtype))
    return BlocksRows(dtype, shape, flat_places(coordinates, shape), as_blocks(as_bits(matrix.data, dtype)))


_DIAGONAL_ELEMENTS = 1 << 20
"""Elements of diagonals to look at at a time."""


class DiagonalsRows(Rows):
    """A matrix by its diagonals.

    Args:
        offsets: (n,) columns by which each diagonal lies right of the main one.
        diagonals: (n, length) bits; element j of a diagonal is in column j.
    """

    is_sparse = True

    def __init__(self, dtype: DType, shape: tuple[int, ...], offsets: np.ndarray, diagonals: np.ndarray) -> None:
        super().__init__(dtype, shape)
        order = np.argsort(offsets, kind="stable")
        self._offsets = np.asarray(offsets)[order].astype(np.int64)
        self._diagonals = diagonals[order]
        self._length = min(self.cols, diagonals.shape[1])

    def bits(self, begin: int, end: int) -> np.ndarray:
        bits = np.zeros((end - begin, self.cols), self.dtype.bits_dtype)
        entries = self.entries(begin, end)
        bits[entries.rows, entries.columns] = entries.values
        return bits

    def entries(self, begin: int, end: int) -> Entries:
        columns = np.arange(begin, end)[:, None] + self._offsets
        rows, numbers = np.nonzero((columns >= 0) & (columns < self._length))
        columns = columns[rows, numbers]
        return entries_of(rows, columns, self._diagonals[numbers, columns], end - begin)

    def survey(self, threads: int | None = None) -> Survey:
        counts, negatives = np.zeros(self.rows, np.uint32), 0
        fillers = FillerCount(self.rows, self.cols)
        height = max(_DIAGONAL_ELEMENTS // max(len(self._offsets), 1), 1)
        for begin in range(0, self.rows, height):
            entries = self.entries(begin, min(begin + height, self.rows))
            kept = entries.values != 0
            if self.dtype.negative_zero:
                signs = entries.values == self.dtype.negative_zero
                negatives += int(np.count_nonzero(signs))
                kept &= ~signs
            rows = entries.rows[kept] + begin
            np.add.at(counts, rows, 1)
            fillers.add(rows, entries.columns[kept])
        return self._survey_of(counts, fillers.found, negatives)


def _compressed(matrix: Any, dtype: DType, shape: tuple[int, ...]) -> Rows:
    # there may be room for more entries behind the last
    entries = min(int(matrix.indptr[-1]), len(matrix.indices))
    inner = matrix.indices[:entries]
    values = as_bits(matrix.data[:entries], dtype)
    if matrix.format == "bsr":
        height, width = matrix.blocksize
        places = flat_places((expanded(matrix.indptr, entries), inner), (shape[0] // height, shape[1] // width))
        return BlocksRows(dtype, shape, places, as_blocks(values, (height, width)))
    matrix_of = matrix_by_rows if matrix.format == "csr" else matrix_by_columns
    return matrix_of(dtype, shape, matrix.indptr, inner, values)


def csr_array_of_dense(dense: np.ndarray) -> scipy.sparse.csr_array:
    """A dense matrix of any dtype of the format, what is equal to 0 left out; widened as by `csr_array_of`."""
    import scipy.sparse

    return scipy.sparse.csr_array(dense.astype(_dtype_for(dense.dtype)))


def csr_array_of(tiling: Tiling, tiles: Sequence[Tile], budget: Budget) -> scipy.sparse.csr_array:
    """The entries of a tensor of a dtype that can be pruned as a matrix (rows, cols), columns ascending.

    bfloat16, float16 and fp8, which scipy cannot hold, are widened to float32, exactly. Tiles are counted, then moved
    to where they belong, in parallel.

    Raises:
        LimitError: it takes more than the budget has.
    """
    import scipy.sparse

    rows, cols = tiling.rows, tiling.cols
    starts = np.zeros(rows + 1, np.int64)
    for number, counts in enumerate(in_order(_counts, tiles)):
        begin, end = tiling.tile_range(number)
        starts[begin + 1 : end + 1] = counts
    np.cumsum(starts, out=starts)
    nnz = int(starts[-1])
    index = np.dtype(np.int32 if max(cols, nnz) < 1 << 31 else np.int64)
    dtype = _dtype_for(tiling.dtype.numpy)
    budget.ask(nnz * (dtype.itemsize + index.itemsize) + index.itemsize * rows)
    values, columns = np.empty(nnz, dtype), np.empty(nnz, index)

    def move(number: int) -> None:
        begin, end = tiling.tile_range(number)
        some = slice(int(starts[begin]), int(starts[end]))
        # compiled for unsigned integers alone
        of_tile = columns[some].view(f"u{index.itemsize}")
        _move(tiles[number], starts[begin:end] - starts[begin], values[some], of_tile)

    for _ in in_order(move, range(len(tiles))):
        pass
    matrix = scipy.sparse.csr_array((values, columns, starts.astype(index, copy=False)), shape=(rows, cols))
    # nobody needs to look
    matrix.has_canonical_format = True
    return matrix


def _counts(tile: Tile) -> np.ndarray:
    """Elements of each row of a tile that are not zero: int64 (rows,)."""
    if tile.layout.sparse:
        return tile.counts_by_row()
    return in_rows(tile.to_dense(0, tile.rows), tile.dtype).counts


def _move(tile: Tile, begins: np.ndarray, values: np.ndarray, columns: np.ndarray) -> None:
    """Fill `values`, elements of scipy, and `columns` with what is not zero in a tile. begins: of its rows in them."""
    from sparsefmt.adapters.jitted import elements as jitted

    is_wider = values.dtype != tile.dtype.numpy
    bits = np.empty(values.size, tile.dtype.bits_dtype) if is_wider else values.view(tile.dtype.bits_dtype)
    if tile.layout.sparse:
        tile.to_rows(begins, bits, columns)
    else:
        dense = tile.to_dense(0, tile.rows)
        jitted.of_dense(frozen(dense), dense.dtype.type(tile.dtype.negative_zero), bits, columns)
    if is_wider:
        jitted.look_up(frozen(bits), _widened(tile.dtype), values.view(np.uint32))


@cache
def _widened(dtype: DType) -> np.ndarray:
    """The bits of all elements of a dtype of 8 or 16 bits as float32."""
    elements = np.arange(1 << dtype.nbits, dtype=dtype.bits_dtype).view(dtype.numpy)
    with np.errstate(invalid="ignore"):  # NaN
        return frozen(elements.astype(np.float32).view(np.uint32))


def _dtype_for(dtype: np.dtype) -> np.dtype:
    """The dtype in which scipy holds elements."""
    return np.dtype(np.float32) if dtype.kind not in "biufc" or dtype == np.float16 else dtype
