"""How many rows a tile has, and which tensors are stacks of matrices, where tiles end with a matrix."""

from __future__ import annotations

from sparsefmt.dtypes import DType
from sparsefmt.errors import FormatError
from sparsefmt.limits import MAX_SPARSE_TILE_POSITIONS, MAX_SPARSE_TILE_ROWS
from sparsefmt.positions.masks import SLICE_ROWS

TILE_POSITIONS = 1 << 20
"""Target for rows times columns of a tile: a few MiB dense, enough for a core to be busy with, little enough to load
for a few rows, and for a writer to hold."""


VERY_SPARSE = 512
"""Positions to a nonzero from which a large matrix is stored by its columns: coding its mask would take longer than
coding all that is in it."""

STACK_COLS = 32
"""Columns from which on a tensor of three dimensions is taken for a stack of matrices, and not for a convolution."""

STACK_ELEMENTS = 1 << 14
"""Elements of a tile from which on it is: an entry and its checksums should be little beside them."""

TILE_ENTRIES = 1 << 18
"""Target for the entries of a tile of a very sparse matrix."""


def is_very_sparse(rows: int, cols: int, entries: int) -> bool:
    """Whether this is a large matrix in which hardly a position has an entry."""
    return rows * cols >= max(TILE_POSITIONS, VERY_SPARSE * entries)


def tile_rows(rows: int, cols: int) -> int:
    """Rows per tile: near TILE_POSITIONS, a multiple of 64 where possible, else of 16 or 8. 0 without elements."""
    if not rows or not cols:
        return 0
    height = max(TILE_POSITIONS // cols, 1)
    for multiple in (64, SLICE_ROWS, 8):
        if height >= multiple:
            height -= height % multiple
            break
    return min(rows, height)


def divisor(rows: int, height: int, packed: bool) -> int:
    """The largest divisor of `rows`, the rows of a matrix, up to `height`; of a packed dtype, a multiple of 8.

    Heights that are whole slices are preferred, unless they are less than half as high.
    """
    fitting = [number for number in range(1, min(rows, height) + 1) if rows % number == 0]
    if packed:
        return max([number for number in fitting if number % 8 == 0], default=0)
    best = max(fitting, default=0)
    return max([number for number in fitting if number % SLICE_ROWS == 0 and 2 * number >= best], default=best)


def row_dims(shape: tuple[int, ...], dtype: DType) -> int:
    """How many leading dimensions make rows if nobody says: 2 for a stack of matrices such as the weights of experts.

    Convolutions of one dimension, whose kernels are short, are not stacks, and neither are matrices so small that their
    tiles would be, too.
    """
    if len(shape) != 3 or 0 in shape or shape[2] < STACK_COLS or shape[1] * shape[2] < STACK_ELEMENTS:
        return 1
    height = divisor(shape[1], sparse_tile_rows(shape[1], shape[2]), dtype.packed)
    return 2 if height * shape[2] >= STACK_ELEMENTS else 1


def can_be_stack(row_dims: int, shape: tuple[int, ...], dtype: DType) -> bool:
    """Whether a tensor can be a stack whose first so many dimensions make rows."""
    return 2 <= row_dims < len(shape) and 0 not in shape and not (dtype.packed and shape[row_dims - 1] % 8)


def expect_row_dims(row_dims: int, shape: tuple[int, ...], dtype: DType) -> None:
    """Raise FormatError if a tensor cannot be a stack whose first so many dimensions make rows."""
    if row_dims == 1:
        return
    if dtype.packed and 2 <= row_dims < len(shape) and shape[row_dims - 1] % 8:
        raise FormatError("tile-rows", f"matrices of a {dtype.name} stack must have a multiple of 8 rows")
    if not can_be_stack(row_dims, shape, dtype):
        raise FormatError("row-dims", f"shape {list(shape)} is not a stack with row_dims {row_dims}")


def sparse_tile_rows(rows: int, cols: int) -> int:
    """Like `tile_rows`, within the limits of sparse layouts, and whole slices where the limits allow."""
    if not rows or not cols:
        return 0
    height = tile_rows(rows, cols)
    if height < rows:
        height = max(height // SLICE_ROWS, 1) * SLICE_ROWS
    return min(rows, _most_rows(cols), height)


def very_sparse_tile_rows(rows: int, cols: int, entries: int) -> int:
    """The height of tiles of a very sparse matrix: near TILE_ENTRIES if all rows have about as many entries."""
    height = max(rows * TILE_ENTRIES // max(entries, 1), sparse_tile_rows(rows, cols))
    height = min(rows, _most_rows(cols), height)
    return height if height in (rows, 1 << 16) or height < 64 else height - height % 64


def _most_rows(cols: int) -> int:
    """The highest tile of a sparse layout."""
    return min(MAX_SPARSE_TILE_ROWS, MAX_SPARSE_TILE_POSITIONS // cols)
