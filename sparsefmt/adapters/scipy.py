"""scipy.sparse matrices and arrays: of any format to rows, and matrices back, in CSR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsefmt.adapters.blocks import BlocksRows, as_blocks, expanded, flat_places
from sparsefmt.adapters.rows import Rows, Survey
from sparsefmt.container.budget import Budget
from sparsefmt.dtypes import DType, as_bits, dtype_of
from sparsefmt.layouts.entries import Entries
from sparsefmt.layouts.fillers import FillerCount
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling

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
        return Entries(rows, columns, self._diagonals[numbers, columns])

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


def _compressed(matrix: Any, dtype: DType, shape: tuple[int, ...]) -> BlocksRows:
    block = matrix.blocksize if matrix.format == "bsr" else (1, 1)
    # there may be room for more entries behind the last
    entries = min(int(matrix.indptr[-1]), len(matrix.indices))
    inner = matrix.indices[:entries]
    outer = expanded(matrix.indptr, entries)
    coordinates = (inner, outer) if matrix.format == "csc" else (outer, inner)
    grid = (shape[0] // block[0], shape[1] // block[1])
    values = as_blocks(as_bits(matrix.data[:entries], dtype), block)
    return BlocksRows(dtype, shape, flat_places(coordinates, grid), values)


def csr_array_of_dense(dense: np.ndarray) -> scipy.sparse.csr_array:
    """A dense matrix of any dtype of the format, its zeros pruned; widened as by `csr_array_of`."""
    import scipy.sparse

    return scipy.sparse.csr_array(dense.astype(_dtype_for(dense.dtype)))


def csr_array_of(tiling: Tiling, tiles: Sequence[Tile], budget: Budget) -> scipy.sparse.csr_array:
    """The entries of a tensor of a sparse layout as a matrix (rows, cols), columns ascending.

    bfloat16, float16 and fp8, which scipy cannot hold, are widened to float32, exactly.

    Raises:
        LimitError: it takes more than the budget has.
    """
    import scipy.sparse

    rows, cols = tiling.rows, tiling.cols
    dtype = _dtype_for(tiling.dtype.numpy)
    budget.ask(sum(tile.nnz for tile in tiles) * (dtype.itemsize + 8) + 8 * rows)
    counts: list[np.ndarray] = [np.zeros(1, np.int64)]
    columns: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for tile in tiles:
        entries = tile.entries()
        counts.append(np.bincount(entries.rows, minlength=tile.rows))
        columns.append(entries.columns.astype(np.int32) if cols < 1 << 31 else entries.columns)
        values.append(entries.values.view(tiling.dtype.numpy).astype(dtype, copy=False))
    indptr, indices = np.cumsum(np.concatenate(counts)), np.concatenate(columns)
    if max(cols, indptr[-1]) < 1 << 31:
        indptr, indices = indptr.astype(np.int32), indices.astype(np.int32, copy=False)
    return scipy.sparse.csr_array((np.concatenate(values), indices, indptr), shape=(rows, cols))


def _dtype_for(dtype: np.dtype) -> np.dtype:
    """The dtype in which scipy holds elements."""
    return np.dtype(np.float32) if dtype.kind not in "biufc" or dtype == np.float16 else dtype
