"""Dense rows out of tiles, and numpy's indexing on top of them: touch only the tiles that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from sparsefmt.container.names import matrix_view
from sparsefmt.dtypes import DType
from sparsefmt.errors import LimitError
from sparsefmt.layouts import choose
from sparsefmt.layouts.contract import Layout, Tile
from sparsefmt.threads import in_order

TileGetter = Callable[[int], Tile]


def dense_rows(
    wanted: np.ndarray,
    cols: slice,
    dtype: DType,
    shape: tuple[int, ...],
    layout: Layout,
    tile_rows: int,
    get_tile: TileGetter,
    threads: int | None = None,
) -> np.ndarray:
    """Elements (len(wanted), columns in `cols`) of the matrix view, as a new array of the tensor's numpy dtype.

    Args:
        wanted: row numbers, int64, in any order, repeated or not.
        get_tile: gives the arrays of tile t, checked; called once for each tile that has a wanted row.
    """
    all_cols = matrix_view(shape)[1]
    out = dense_array(wanted.size, len(range(*cols.indices(all_cols))), dtype)
    if not out.size:
        return out.view(dtype.numpy)
    order = None if (np.diff(wanted) >= 0).all() else np.argsort(wanted, kind="stable")
    ascending = wanted if order is None else wanted[order]
    tiles = ascending // tile_rows
    starts = np.flatnonzero(np.diff(tiles, prepend=-1))
    bounds = [*starts.tolist(), wanted.size]

    def fill(bound: tuple[int, int]) -> None:
        first, last = bound
        number = int(tiles[first])
        tile = get_tile(number)
        rows = ascending[first:last] - number * tile_rows
        # runs of consecutive rows are unpacked together
        run_starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        for run in pairwise([*run_starts.tolist(), rows.size]):
            for begin, end in runs(*run, all_cols):
                bits = layout.to_dense(tile, dtype, all_cols, int(rows[begin]), int(rows[end - 1]) + 1)
                target = slice(first + begin, first + end)
                out[target if order is None else order[target]] = bits[:, cols]

    for _ in in_order(fill, pairwise(bounds), threads):
        pass
    return out.view(dtype.numpy)


def runs(begin: int, end: int, cols: int) -> Iterator[tuple[int, int]]:
    """Rows `begin` to `end` in runs of little memory: a tile of a very sparse matrix is too large to be made dense."""
    height = 4 * choose.tile_rows(end - begin, cols) or 1
    for first in range(begin, end, height):
        yield first, min(first + height, end)


def dense_array(rows: int, cols: int, dtype: DType) -> np.ndarray:
    """Zeros (rows, cols), as unsigned integers. Raises LimitError if they do not fit in memory."""
    try:
        return np.zeros((rows, cols), dtype.bits_dtype)
    except (MemoryError, ValueError):
        raise LimitError("memory", f"{rows:,} dense rows of {cols:,} columns do not fit in memory") from None


def index(key: Any, shape: tuple[int, ...], get_rows: Callable[[np.ndarray, slice], np.ndarray]) -> np.ndarray:
    """`dense[key]` for a tensor of `shape` of which only rows can be had.

    Args:
        key: an index as numpy takes it. Its first part chooses rows: an integer, a slice, an ellipsis, or a list or
            one-dimensional array of integers or booleans.
        get_rows: gives elements (rows, columns) of the matrix view for row numbers and a slice of columns.

    Raises:
        IndexError: out of range, too many indices, or a first part of another kind.
    """
    parts = key if isinstance(key, tuple) else (key,)
    if 0 in shape:
        # there may be more rows than numbers of rows would fit in memory
        return np.empty(shape, get_rows(np.zeros(0, np.int64), slice(None)).dtype)[key]
    if not shape:
        return get_rows(np.zeros(1, np.int64), slice(None)).reshape(())[parts]
    first, rest = (parts[0], parts[1:]) if parts else (slice(None), ())
    if first is Ellipsis or first is None or _is_tuple_of_arrays(parts):
        # these may choose or shift any dimension: numpy sorts them out on the whole
        return get_rows(np.arange(shape[0]), slice(None)).reshape(shape)[key]
    if isinstance(first, slice):
        rows = np.arange(*first.indices(shape[0]), dtype=np.int64)
    else:
        chosen = np.asarray(first)
        if chosen.ndim > 1 or (chosen.size and chosen.dtype.kind not in "iub"):
            raise IndexError(
                f"rows are chosen by integers, slices, or one dimension of integers or booleans, not {first!r}"
            )
        if chosen.dtype == np.bool_ and chosen.shape != (shape[0],):
            raise IndexError(f"a boolean index of shape {chosen.shape} does not fit {shape[0]} rows")
        # numpy's own rules for negative, out-of-range and boolean indices
        rows = np.atleast_1d(np.arange(shape[0])[chosen if chosen.size else chosen.astype(np.int64)])
        if chosen.ndim == 0 and len(shape) == 2 and len(rest) == 1 and isinstance(rest[0], slice):
            return get_rows(rows, rest[0])[0]
        if chosen.ndim == 0:
            # an index error of the rest is the same for one row as for an array without the first dimension
            return get_rows(rows, slice(None)).reshape(shape[1:])[rest]
    if len(shape) == 2 and len(rest) == 1 and isinstance(rest[0], slice):
        return get_rows(rows, rest[0])
    return get_rows(rows, slice(None)).reshape(rows.size, *shape[1:])[(slice(None), *rest)]


def _is_tuple_of_arrays(parts: tuple[Any, ...]) -> bool:
    """Whether later parts are arrays, which numpy would pair with the first part instead of crossing them."""
    return any(not isinstance(part, (slice, int, np.integer, type(Ellipsis))) for part in parts[1:])
