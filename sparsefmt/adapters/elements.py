"""Sparse matrices of any library by their elements, row by row: what is called CSR, CSC and COO.

Elements are counted, and moved to their rows where they lie otherwise; nothing is sorted. `blocks.py` takes tensors
with several elements at one place, with blocks, or with more than two dimensions.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.adapters.blocks import BlocksRows, as_blocks, expanded, expect_within, flat_places, invalid
from sparsefmt.adapters.rows import Rows, Survey
from sparsefmt.dtypes import DType
from sparsefmt.layouts.entries import COLUMN, Entries
from sparsefmt.layouts.fillers import MAX_GAP
from sparsefmt.layouts.memory import frozen
from sparsefmt.limits import MAX_SPARSE_COLS
from sparsefmt.threads import in_order

_MOST_ROWS = 1 << 32
"""Rows whose numbers fit COLUMN."""

_ROWS_AT_ONCE = 1 << 16
"""Rows that a thread surveys together. Most have few elements."""

_MOST_COUNTED = 16
"""Rows and columns to an element up to which elements are moved to rows by counting them."""


class ElementsRows(Rows):
    """A sparse matrix by its elements.

    Args:
        elements: of all rows, -0.0 and explicit zeros among them. Columns are trusted to be in the matrix, so they must
            be memory that nobody else writes to; values may be anybody's.
    """

    is_sparse = True

    def __init__(self, dtype: DType, shape: tuple[int, ...], elements: Entries) -> None:
        super().__init__(dtype, shape)
        self._elements = Entries(*map(frozen, elements))
        self._begins = frozen(elements.begins)

    def survey(self, threads: int | None = None) -> Survey:
        from sparsefmt.adapters.jitted import elements as jitted

        _, columns, values = self._elements
        counts, fillers = np.empty(self.rows, np.uint32), np.zeros(self.rows, np.uint32)
        negative_zero = values.dtype.type(self.dtype.negative_zero)

        def count(begin: int) -> int:
            rows = slice(begin, begin + _ROWS_AT_ONCE)
            of_rows = self._begins[rows], self._elements.counts[rows], columns, values, negative_zero
            return jitted.survey(*of_rows, counts[rows], fillers[rows])

        negatives = sum(in_order(count, range(0, self.rows, _ROWS_AT_ONCE), threads))
        if self.cols <= MAX_GAP + 1:
            fillers[:] = 0
        return self._survey_of(counts, fillers, negatives)

    def entries(self, begin: int, end: int) -> Entries:
        counts, columns, values = self._elements
        if begin >= end:
            return Entries(counts[:0], columns[:0], values[:0])
        some = slice(int(self._begins[begin]), int(self._begins[end - 1] + counts[end - 1]))
        return Entries(counts[begin:end], columns[some], values[some])

    def bits(self, begin: int, end: int) -> np.ndarray:
        entries = self.entries(begin, end)
        bits = np.zeros((end - begin, self.cols), self.dtype.bits_dtype)
        bits[entries.rows, entries.columns] = entries.values
        return bits


def matrix_by_rows(
    dtype: DType, shape: tuple[int, ...], starts: np.ndarray, columns: np.ndarray, values: np.ndarray
) -> Rows:
    """A matrix whose elements lie row by row (CSR).

    Args:
        starts: (rows + 1,) the first element of each row, and after them their end.
        columns: (n,) integers.
        values: (n,) bits.

    Raises:
        FormatError: the pointers do not ascend from 0 to n, a column is outside the matrix, or there are not n values.
    """
    _expect_as_many(columns, values)
    if not _fits(shape, columns.size):
        return _by_places(dtype, shape, (expanded(starts, columns.size), columns), values)
    counts = _counts(starts, columns.size, shape[0])
    elements = Entries(counts, _narrowed(columns, shape[1], 1), values)
    if _ascend(elements):
        return ElementsRows(dtype, shape, elements)
    return matrix_by_coordinates(dtype, shape, elements.rows, columns, values)


def matrix_by_columns(
    dtype: DType, shape: tuple[int, ...], starts: np.ndarray, rows: np.ndarray, values: np.ndarray
) -> Rows:
    """A matrix whose elements lie column by column (CSC). Otherwise as `matrix_by_rows`."""
    _expect_as_many(rows, values)
    if not _fits(shape, rows.size):
        return _by_places(dtype, shape, (rows, expanded(starts, rows.size)), values)
    counts = _counts(starts, rows.size, shape[1])
    numbers = np.repeat(np.arange(shape[1], dtype=COLUMN), counts)
    elements = _moved(_narrowed(rows, shape[0], 0), numbers, values, shape[0])
    if _ascend(elements):
        return ElementsRows(dtype, shape, elements)
    return _by_places(dtype, shape, (rows, numbers), values)


def matrix_by_coordinates(
    dtype: DType, shape: tuple[int, ...], rows: np.ndarray, columns: np.ndarray, values: np.ndarray
) -> Rows:
    """A matrix whose elements lie in any order (COO), those at one place being summed. Otherwise as `matrix_by_rows`.

    Args:
        rows, columns: (n,) integers.
    """
    _expect_as_many(rows, columns)
    _expect_as_many(rows, values)
    if not _fits(shape, rows.size):
        return _by_places(dtype, shape, (rows, columns), values)
    to_rows, to_columns = _narrowed(rows, shape[0], 0), _narrowed(columns, shape[1], 1)
    elements = _moved(to_rows, to_columns, values, shape[0])
    if not _ascend(elements):
        # by column, and then by row, in which moving keeps the order
        by_column = _moved(to_columns, to_rows, values, shape[1])
        elements = _moved(by_column.columns, by_column.rows.astype(COLUMN), by_column.values, shape[0])
    if _ascend(elements):
        return ElementsRows(dtype, shape, elements)
    return _by_places(dtype, shape, (rows, columns), values)


def _by_places(dtype: DType, shape: tuple[int, ...], coordinates: tuple[np.ndarray, ...], values: np.ndarray) -> Rows:
    return BlocksRows(dtype, shape, flat_places(coordinates, shape), as_blocks(values))


def _fits(shape: tuple[int, ...], elements: int) -> bool:
    """Whether rows and columns are few enough to be counted."""
    most = max(_MOST_COUNTED * elements, 1 << 20)
    return shape[0] <= min(most, _MOST_ROWS) and shape[1] <= min(most, MAX_SPARSE_COLS)


def _expect_as_many(places: np.ndarray, values: np.ndarray) -> None:
    if places.shape != values.shape:
        raise invalid(f"there are {len(values):,} values for {len(places):,} places")


def _counts(starts: np.ndarray, elements: int, rows: int) -> np.ndarray:
    """Elements of each row, or column, by where they start. Raises FormatError."""
    starts = np.array(starts, np.int64)
    counts = np.diff(starts)
    if counts.size != rows or starts[0] != 0 or starts[-1] != elements or (counts < 0).any():
        raise invalid(f"the pointers to rows (or columns) do not go from 0 to {elements:,}, ascending")
    return counts


def _narrowed(indices: np.ndarray, size: int, dimension: int) -> np.ndarray:
    """A checked copy, so that nobody can change an index after it was checked. Raises FormatError."""
    from sparsefmt.adapters.jitted import elements as jitted

    if indices.dtype not in (np.int32, np.int64):
        indices = indices.astype(np.int64)
    out = np.empty(indices.size, COLUMN)
    if not jitted.narrow(frozen(np.ascontiguousarray(indices)), size, out):
        expect_within(indices, size, f"an index in dimension {dimension}")
        raise invalid("an index changed meanwhile")
    return out


def _moved(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, height: int) -> Entries:
    """Elements put row by row, in each of which they keep their order."""
    from sparsefmt.adapters.jitted import elements as jitted

    counts = np.zeros(height, np.int64)
    jitted.count(frozen(rows), counts)
    found = Entries(counts, np.empty_like(columns), np.empty(values.shape, values.dtype))
    jitted.move(frozen(rows), found.begins, frozen(columns), frozen(values), found.columns, found.values)
    return found


def _ascend(elements: Entries) -> bool:
    from sparsefmt.adapters.jitted import elements as jitted

    return jitted.ascend(frozen(elements.begins), frozen(elements.counts), frozen(elements.columns))
