"""numpy's indexing, on top of whatever gives the rows of a matrix. Rows that an index does not ask for are not made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sparsefmt.layouts.tiling import Tiling
from sparsefmt.slicing import RowNumbers


def index(key: Any, tiling: Tiling, get_rows: Callable[[RowNumbers, slice], np.ndarray]) -> np.ndarray:
    """`dense[key]` for a tensor that can only be read by rows.

    Args:
        key: an index of numpy. Its first part selects rows: it is an integer, a slice, an ellipsis, or a list or
            one-dimensional array of integers or booleans.
        get_rows: gives elements (rows, columns) of the matrix view for numbers of rows and a slice of columns.

    Raises:
        IndexError: it is out of range, has too many parts, or its first part is of another kind.
    """
    if tiling.row_dims == 1:
        return _index(key, tiling.shape, get_rows)
    shape, height = tiling.shape, tiling.rows // tiling.shape[0]
    parts = key if isinstance(key, tuple) else (key,)
    if parts and isinstance(parts[0], (int, np.integer)) and not isinstance(parts[0], bool):
        if not -shape[0] <= parts[0] < shape[0]:
            raise IndexError(f"index {parts[0]} is out of bounds for a stack of {shape[0]} matrices")
        first = int(parts[0]) % shape[0] * height

        def rows_of_matrix(wanted: RowNumbers, cols: slice) -> np.ndarray:
            if isinstance(wanted, range):
                return get_rows(range(wanted.start + first, wanted.stop + first, wanted.step), cols)
            return get_rows(wanted + first, cols)

        return index(parts[1:], replace(tiling, shape=shape[1:], row_dims=tiling.row_dims - 1), rows_of_matrix)

    def rows_of_matrices(wanted: RowNumbers, cols: slice) -> np.ndarray:
        if isinstance(wanted, range) and wanted.step == 1:
            return get_rows(range(wanted.start * height, wanted.stop * height), cols)
        rows = np.asarray(wanted, np.int64)[:, None] * height + np.arange(height)
        return get_rows(rows.reshape(-1), cols)

    return _index(key, shape, rows_of_matrices)


def _index(key: Any, shape: tuple[int, ...], get_rows: Callable[[RowNumbers, slice], np.ndarray]) -> np.ndarray:
    """`dense[key]` for a tensor of `shape`; `get_rows` takes numbers of its first dimension."""
    parts = key if isinstance(key, tuple) else (key,)
    if 0 in shape:
        # there may be so many rows that their numbers would not fit in memory
        return np.empty(shape, get_rows(range(0), slice(None)).dtype)[key]
    if not shape:
        return get_rows(range(1), slice(None)).reshape(())[parts]
    first, rest = (parts[0], parts[1:]) if parts else (slice(None), ())
    if first is Ellipsis or first is None or _is_tuple_of_arrays(parts):
        # these may select or shift any dimension, so numpy indexes the whole tensor
        return get_rows(range(shape[0]), slice(None)).reshape(shape)[key]
    rows: RowNumbers
    if isinstance(first, slice):
        rows = range(*first.indices(shape[0]))
    else:
        selected = np.asarray(first)
        if selected.ndim > 1 or (selected.size and selected.dtype.kind not in "iub"):
            raise IndexError(
                f"rows are selected by integers, slices, or one dimension of integers or booleans, not {first!r}"
            )
        if selected.dtype == np.bool_ and selected.shape != (shape[0],):
            raise IndexError(f"a boolean index of shape {selected.shape} does not fit {shape[0]} rows")
        rows = _numbers(selected, shape[0])
        if selected.ndim == 0 and len(shape) == 2 and len(rest) == 1 and isinstance(rest[0], slice):
            return get_rows(rows, rest[0])[0]
        if selected.ndim == 0:
            # an index error of the rest is the same for one row as for an array without the first dimension
            return get_rows(rows, slice(None)).reshape(shape[1:])[rest]
    if len(shape) == 2 and len(rest) == 1 and isinstance(rest[0], slice):
        return get_rows(rows, rest[0])
    return get_rows(rows, slice(None)).reshape(len(rows), *shape[1:])[(slice(None), *rest)]


def _numbers(selected: np.ndarray, rows: int) -> np.ndarray:
    """Numbers of the rows that an array of integers or booleans selects. Raises IndexError, as numpy words it."""
    if selected.dtype == np.bool_:
        return np.flatnonzero(selected)
    selected = np.atleast_1d(selected)
    if not selected.size:
        return np.empty(0, np.int64)
    # one element stands for all rows, so that numpy's own rules apply without taking memory
    np.broadcast_to(np.int8(0), (rows,))[selected]
    numbers = selected.astype(np.int64)
    return np.where(numbers < 0, numbers + rows, numbers)


def _is_tuple_of_arrays(parts: tuple[Any, ...]) -> bool:
    """Whether later parts are arrays, which numpy would pair with the first part instead of crossing them."""
    return any(not isinstance(part, (slice, int, np.integer, type(Ellipsis))) for part in parts[1:])
