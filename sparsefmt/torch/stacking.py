"""Compressed matrices put together, and taken apart: stacks such as the weights of experts.

Where tiles fit together, nothing is copied. Elsewhere, the elements are laid out anew, dense a few rows at a time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from sparsefmt.adapters import Rows
from sparsefmt.container.stored_signs import HeldSigns, Signs, SignsOfMatrix
from sparsefmt.dtypes import as_bits
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.tensor import SparseTensor


def stacked(matrices: Sequence[SparseTensor], layout: str = "auto") -> SparseTensor:
    """Matrices of one shape as a stack (count, rows, cols).

    Args:
        layout: for those that are laid out anew: as in `SparseTensor.from_dense`.

    Raises:
        ValueError: there are none, or they have several shapes or dtypes.
    """
    shapes = sorted({matrix.shape for matrix in matrices})
    if len(shapes) != 1:
        raise ValueError(f"the matrices of a stack have one shape; these have {', '.join(map(str, shapes)) or 'none'}")
    return _together(matrices, (len(matrices), *shapes[0]), layout)


def above_each_other(matrices: Sequence[SparseTensor], layout: str = "auto") -> SparseTensor:
    """Matrices one above the other, as numpy.concatenate puts them. layout: as in `stacked`.

    Raises:
        ValueError: there are none, or they have not as many columns, or several dtypes.
    """
    columns = sorted({matrix.shape[1] for matrix in matrices})
    if len(columns) != 1:
        raise ValueError(f"matrices above each other have as many columns; these have {columns or 'none'}")
    if len(matrices) == 1:
        return matrices[0]
    return _together(matrices, (sum(matrix.shape[0] for matrix in matrices), columns[0]), layout)


def matrices_of(tensor: SparseTensor, count: int, layout: str = "auto") -> list[SparseTensor]:
    """The matrices of a stack, `count` parts of as many rows.

    Args:
        tensor: (count, rows, cols), or (count * rows, cols).
        layout: as in `stacked`.

    Raises:
        ValueError: it is neither.
    """
    if tensor.ndim == 3 and tensor.shape[0] == count:
        if tensor.tiling.row_dims == 2:
            return [tensor[number] for number in range(count)]
        # a whole matrix is a row of it
        return [SparseTensor.from_dense(tensor[number], layout) for number in range(count)]
    if tensor.ndim != 2 or count < 1 or tensor.shape[0] % count:
        raise ValueError(f"a tensor of shape {tensor.shape} is not a stack of {count:,} matrices")
    height = tensor.shape[0] // count
    return [rows_between(tensor, begin, begin + height, layout) for begin in range(0, tensor.shape[0], height)]


def rows_between(matrix: SparseTensor, begin: int, end: int, layout: str = "auto") -> SparseTensor:
    """Rows `begin` to `end` of a matrix, compressed. layout: as in `stacked`."""
    tiling = matrix.tiling
    if (begin, end) == (0, tiling.rows):
        return matrix
    height = tiling.tile_rows
    if not height or begin % height or (end % height and end != tiling.rows):
        rows = _Parts([(matrix, begin, end)], (end - begin, tiling.cols))
        return SparseTensor._from_rows(rows, layout, budget=matrix.budget)
    numbers = range(begin // height, -(-end // height))
    made = Tiling(tiling.dtype, (end - begin, tiling.cols), tiling.layout, min(height, end - begin))
    signs = None if matrix.signs is None else SignsOfMatrix(matrix.signs, numbers)
    return SparseTensor(made, _tiles(matrix, numbers), matrix.budget, signs)


def _tiles(matrix: SparseTensor, numbers: range) -> list[Tile]:
    """Tiles as they are in memory, without signs that are elsewhere."""
    bare = matrix.with_signs(None)
    return [bare.tile(number) for number in numbers]


def _together(matrices: Sequence[SparseTensor], shape: tuple[int, ...], layout: str) -> SparseTensor:
    """Matrices one above the other, as a tensor of that shape: a matrix, or a stack."""
    tilings, first, row_dims = [matrix.tiling for matrix in matrices], matrices[0].tiling, len(shape) - 1
    dtypes = sorted({tiling.dtype.name for tiling in tilings})
    if len(dtypes) > 1:
        raise ValueError(f"matrices of several dtypes cannot be put together: {', '.join(dtypes)}")
    height, budget = first.tile_rows, matrices[0].budget
    left_in_file = [matrix.signs is not None for matrix in matrices]
    if (
        height
        and all(tiling.layout is first.layout and tiling.tile_rows == height for tiling in tilings)
        and all(tiling.rows % height == 0 for tiling in (tilings if row_dims > 1 else tilings[:-1]))
        and any(left_in_file) == all(left_in_file)
    ):
        tiling = Tiling(first.dtype, shape, first.layout, height, row_dims=row_dims)
        tiles = [tile for matrix in matrices for tile in _tiles(matrix, range(matrix.tiling.tiles))]
        return SparseTensor(tiling, tiles, budget, _SignsOfAll(matrices) if all(left_in_file) else None)
    whole = [(matrix, 0, matrix.shape[0]) for matrix in matrices]
    return SparseTensor._from_rows(_Parts(whole, shape), layout, budget=budget)


class _SignsOfAll(Signs):
    """The signs of matrices that were put together, each of which has left its own in a file."""

    def __init__(self, matrices: Sequence[SparseTensor]) -> None:
        self._tiles = [(matrix.signs, number) for matrix in matrices for number in range(matrix.tiling.tiles)]

    def tile(self, number: int) -> np.ndarray:
        signs, its_own = self._tiles[number]
        assert signs is not None
        return signs.tile(its_own)

    def __reduce__(self) -> tuple[Any, ...]:
        return HeldSigns, ([np.array(self.tile(number)) for number in range(len(self._tiles))],)


class _Parts(Rows):
    """Some rows of matrices, one above the other.

    Args:
        parts: matrices, each with its first row that is meant, and the row behind the last.
        shape: of the whole; all dimensions but the last make rows.
    """

    def __init__(self, parts: Sequence[tuple[SparseTensor, int, int]], shape: tuple[int, ...]) -> None:
        super().__init__(parts[0][0].tiling.dtype, shape)
        self.stack(len(shape) - 1)
        self._parts = parts
        self._ends = list(accumulate(end - begin for _, begin, end in parts))

    def bits(self, begin: int, end: int) -> np.ndarray:
        found, number = [], bisect_right(self._ends, begin)
        while begin < end:
            matrix, _, last = self._parts[number]
            at = last - (self._ends[number] - begin)
            taken = min(end - begin, last - at)
            found.append(as_bits(matrix[at : at + taken], self.dtype))
            begin, number = begin + taken, number + 1
        return (
            found[0] if len(found) == 1 else np.concatenate([np.empty((0, self.cols), self.dtype.bits_dtype), *found])
        )
