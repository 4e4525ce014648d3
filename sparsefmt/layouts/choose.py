"""`layout="auto"` and the height of tiles: what to write, and what to compute with.

The rule, documented in README ("Choosing a layout"):

1. 0-d and 1-d tensors, types that cannot be pruned, and whatever a sparse layout would not make at least 10 % smaller
   are `dense`. Few columns or few zeros end here: every row costs some bytes of its own.
2. Arrays that will be computed on are `permuted` from PERMUTED_FROM zeros on, below that `bitmask`.
3. Arrays that are entropy coded are `bitmask`: a coded mask is smaller than coded columns at every sparsity, and
   turning it into `permuted` while loading costs little beside decoding.
"""

from __future__ import annotations

from sparsefmt.dtypes import DType
from sparsefmt.layouts.bitmask import mask_stride
from sparsefmt.layouts.permuted import MAX_U16_COLS
from sparsefmt.limits import MAX_SPARSE_COLS, MAX_SPARSE_TILE_POSITIONS, MAX_SPARSE_TILE_ROWS

PERMUTED_FROM = 0.7
"""Sparsity from which `permuted` is the better layout to compute with (docs/speed.md).

The two take equally long at 68 to 79 % zeros for one token, and at 58 to 72 % for eight, where 16-bit types are at the
lower end. For 32 tokens and more, `permuted` takes about two thirds of the time at 50 %, and less than half from 70 %
on. Below, it takes up to 40 % more memory in float32, and in 16-bit types as much as a dense tensor at 50 %."""

WORTHWHILE = 0.9
"""A sparse layout must be smaller than this part of the dense bytes."""

TILE_POSITIONS = 1 << 20
"""Target for rows times columns of a tile: a few MiB dense, enough for a core to be busy with, little enough to load
for a few rows, and for a writer to hold."""


def can_be_sparse(dtype: DType, shape: tuple[int, ...], cols: int) -> bool:
    """Whether format and limits let this tensor have a sparse layout."""
    return (
        dtype.prunable
        and len(shape) >= 2
        and 0 not in shape
        and cols <= min(MAX_SPARSE_COLS, MAX_SPARSE_TILE_POSITIONS)
    )


def for_computing(dtype: DType, rows: int, cols: int, nnz: int) -> str:
    """The layout to compute with, for a tensor that can be sparse."""
    width = dtype.bits_dtype.itemsize
    bitmask, permuted = (expected_bytes(layout, dtype, rows, cols, nnz) for layout in ("bitmask", "permuted"))
    if min(bitmask, permuted) > WORTHWHILE * rows * cols * width:
        return "dense"
    if bitmask > WORTHWHILE * rows * cols * width:
        return "permuted"
    # half an element: a share of the elements was pruned, and there is no half of one
    return "permuted" if nnz <= (1 - PERMUTED_FROM) * rows * cols + 0.5 else "bitmask"


def expected_bytes(layout: str, dtype: DType, rows: int, cols: int, nnz: int) -> int:
    """Bytes of a tensor's arrays, about: without what pads the slices of `permuted`, and without `negative_zeros`."""
    width = dtype.bits_dtype.itemsize
    if layout == "bitmask":
        return rows * (mask_stride(cols) + 4) + nnz * width
    if layout == "permuted":
        return rows * 13 // 2 + nnz * (width + (2 if cols <= MAX_U16_COLS else 4))
    return dtype.nbytes(rows * cols)


def for_storing(dtype: DType, rows: int, cols: int, nnz: int) -> str:
    """The layout to entropy code, for a tensor that can be sparse."""
    return "dense" if for_computing(dtype, rows, cols, nnz) == "dense" else "bitmask"


def tile_rows(rows: int, cols: int) -> int:
    """Rows per tile: near TILE_POSITIONS, a multiple of 64 where possible, else of 8. 0 without elements."""
    if not rows or not cols:
        return 0
    height = max(TILE_POSITIONS // cols, 1)
    for multiple in (64, 8):
        if height >= multiple:
            height -= height % multiple
            break
    return min(rows, height)


def sparse_tile_rows(rows: int, cols: int) -> int:
    """Like `tile_rows`, within the limits of sparse layouts, and whole slices of eight rows where the limits allow."""
    most = min(MAX_SPARSE_TILE_ROWS, MAX_SPARSE_TILE_POSITIONS // cols)
    return min(rows, most, max(tile_rows(rows, cols), 8))
