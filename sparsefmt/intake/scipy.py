"""scipy.sparse matrices and arrays, of any format."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsefmt.dtypes import DType, as_bits, dtype_of
from sparsefmt.intake.blocks import BlocksIntake, as_blocks, expanded, flat_places
from sparsefmt.intake.contract import Intake


def intake_of(matrix: Any) -> Intake:
    """A matrix, or an array of any number of dimensions. Entries at one place are summed in their order.

    Raises:
        UnsupportedError: the format does not have the dtype.
        FormatError: indices outside the matrix, which scipy does not look for.
    """
    dtype = dtype_of(matrix.dtype)
    shape = tuple(map(int, matrix.shape))
    if matrix.ndim == 2 and matrix.format == "dia":
        return DiagonalsIntake(dtype, shape, matrix.offsets, as_bits(matrix.data, dtype))
    if matrix.ndim == 2 and matrix.format in ("csr", "csc", "bsr"):
        return _compressed(matrix, dtype, shape)
    matrix = matrix.tocoo(copy=False)
    # scipy before 1.13 has two dimensions, which have names
    coordinates = matrix.coords if hasattr(matrix, "coords") else (matrix.row, matrix.col)
    return BlocksIntake(dtype, shape, flat_places(coordinates, shape), as_blocks(as_bits(matrix.data, dtype)))


class DiagonalsIntake(Intake):
    """A matrix by its diagonals.

    Args:
        offsets: (n,) columns by which each diagonal lies right of the main one.
        diagonals: (n, length) bits; element j of a diagonal is in column j.
    """

    def __init__(self, dtype: DType, shape: tuple[int, ...], offsets: np.ndarray, diagonals: np.ndarray) -> None:
        super().__init__(dtype, shape)
        self._offsets = offsets.tolist()
        self._diagonals = diagonals

    def bits(self, begin: int, end: int) -> np.ndarray:
        rows = np.zeros((end - begin, self.cols), self.dtype.bits_dtype)
        length = min(self.cols, self._diagonals.shape[1])
        for offset, diagonal in zip(self._offsets, self._diagonals, strict=True):
            columns = np.arange(max(begin + offset, 0), min(end + offset, length))
            rows[columns - offset - begin, columns] = diagonal[columns]
        return rows


def _compressed(matrix: Any, dtype: DType, shape: tuple[int, ...]) -> BlocksIntake:
    block = matrix.blocksize if matrix.format == "bsr" else (1, 1)
    # there may be room for more entries behind the last
    entries = min(int(matrix.indptr[-1]), len(matrix.indices))
    inner = matrix.indices[:entries]
    outer = expanded(matrix.indptr, entries)
    coordinates = (inner, outer) if matrix.format == "csc" else (outer, inner)
    grid = (shape[0] // block[0], shape[1] // block[1])
    values = as_blocks(as_bits(matrix.data[:entries], dtype), block)
    return BlocksIntake(dtype, shape, flat_places(coordinates, grid), values)
