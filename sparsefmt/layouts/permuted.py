"""Layout `permuted`: values in slices of 16 rows, rows sorted by count, and where each stands. Best from 75 % zeros.

The rows of a tile are sorted by descending count of entries (stable), 16 rows make a slice, and a slice is stored slot
by slot: slot k holds the k-th entry of each of its 16 rows, ascending by column. Rows that run out are padded with 0.
Arrays of a tile of r rows and c columns, with S slots in all:

    row_counts       u32  r                  entries of the rows in sorted order: never ascending
    row_permutation  u16  r                  row_permutation[p] is the row at sorted position p
    slice_offsets    u32  ceil(r / 16) + 1   first slot of each slice; the last is S
    values           bits S x 16

and one of these, which is the form of a tensor: the smaller one is written.

    columns          u16  S x 16             u32 where c > 65,536. Entries are the stored elements
    gaps             u8   S x 16             columns from the entry before in the row; see `gaps.py`
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.errors import FormatError
from sparsefmt.layouts import fillers
from sparsefmt.layouts.contract import Arrays, Layout, expect_at_most, expect_size
from sparsefmt.layouts.entries import Entries
from sparsefmt.layouts.fillers import FillerCount
from sparsefmt.layouts.in_rows import InRows, RowsChanged
from sparsefmt.layouts.memory import Allocate, empty, frozen, zeros
from sparsefmt.positions.masks import SLICE_ROWS, slices_of

if TYPE_CHECKING:
    from sparsefmt.layouts.tile import Tile

U16, U32 = np.dtype("<u2"), np.dtype("<u4")
MAX_U16_COLS = 1 << 16


def padded(counts: np.ndarray) -> int:
    """Elements that a tile with so many entries in each of its rows stores, padding included."""
    # in each slice, the row that has most comes first
    return int(np.sort(counts)[::-1][::SLICE_ROWS].sum(dtype=np.int64)) * SLICE_ROWS


class Permuted(Layout):
    """What both forms have in common.

    Attributes:
        where: the array that says where the values stand.
        has_fillers: whether there are entries that bridge long distances; see `fillers.py`.
    """

    name = "permuted"
    sparse = True
    where: str
    has_fillers: bool

    @abstractmethod
    def where_dtype(self, cols: int) -> np.dtype:
        """The type of the elements of `where`."""

    def array_dtype(self, array: str, dtype: DType, cols: int) -> np.dtype:
        types: dict[str, np.dtype] = {
            "row_counts": U32,
            "row_permutation": U16,
            "slice_offsets": U32,
            "values": dtype.bits_dtype,
        }
        return self.where_dtype(cols) if array == self.where else types[array]

    def check_sizes(self, sizes: Mapping[str, int], dtype: DType, rows: int, cols: int) -> None:
        slices = slices_of(rows)
        width = dtype.bits_dtype.itemsize
        expect_size(sizes, "row_counts", 4 * rows)
        expect_size(sizes, "row_permutation", 2 * rows)
        expect_size(sizes, "slice_offsets", 4 * (slices + 1))
        expect_at_most(sizes, "values", slices * cols * SLICE_ROWS * width, SLICE_ROWS * width)
        expect_size(sizes, self.where, sizes["values"] // width * self.where_dtype(cols).itemsize)

    def check(self, tile: Tile) -> None:
        from sparsefmt.layouts.jitted import permuted as jitted

        fault, position = jitted.check_rows(*slot_arrays(tile)[2:], tile["values"].size // SLICE_ROWS, tile.cols)
        if fault == jitted.OK:
            fault, position = self.find_fault(tile)
        if fault == jitted.OK:
            return
        code, text = {
            jitted.PERMUTATION: ("row-permutation", "row_permutation is not valid, or equal counts are out of order"),
            jitted.ROW_COUNTS: ("row-counts", "a row count is over the columns, or counts ascend"),
            jitted.SLICE_OFFSETS: ("slice-offsets", "slice offsets disagree with the row counts"),
            jitted.COLUMN_RANGE: ("column-range", f"a column is not below {tile.cols:,}"),
            jitted.COLUMN_ORDER: ("column-order", "columns of a row do not ascend strictly"),
            jitted.STORED_ZERO: ("stored-zero", "a stored value is zero"),
            jitted.SLOT_PADDING: ("slot-padding", "padding of a slice is not zero"),
        }[fault]
        raise FormatError(code, f"{text}, at sorted row {position} of a tile")

    @abstractmethod
    def find_fault(self, tile: Tile) -> tuple[int, int]:
        """Verify values and where they stand, the other arrays being right: see `jitted.permuted.check_columns`."""

    def nnz_before(self, tile: Tile, row: int) -> int:
        return int(self.counts(tile)[tile["row_permutation"] < row].sum(dtype=np.int64))

    def allocate(self, counts: np.ndarray, dtype: DType, cols: int, zeros: Allocate = zeros) -> Arrays:
        """Arrays for rows of so many entries: permutation, counts and offsets filled, others as `zeros` gives them."""
        rows = counts.size
        # numbers of 16 bits are sorted in linear time
        descending = (~counts).astype(U16) if int(counts.max(initial=0)) < 1 << 16 else -counts
        order = np.argsort(descending, kind="stable")
        sorted_counts = counts[order]
        slice_offsets = zeros(slices_of(rows) + 1, U32)
        slice_offsets[0] = 0
        np.cumsum(sorted_counts[::SLICE_ROWS], out=slice_offsets[1:], dtype=U32)
        slots = int(slice_offsets[-1]) * SLICE_ROWS
        arrays = {
            self.where: zeros(slots, self.where_dtype(cols)),
            "row_counts": zeros(rows, U32),
            "row_permutation": zeros(rows, U16),
            "slice_offsets": slice_offsets,
            "values": zeros(slots, dtype.bits_dtype),
        }
        arrays["row_counts"][:] = sorted_counts
        arrays["row_permutation"][:] = order
        return arrays

    def from_dense(self, bits: np.ndarray, dtype: DType, found: InRows, empty: Allocate = empty) -> Arrays:
        from sparsefmt.layouts.jitted import permuted as jitted
        from sparsefmt.layouts.jitted.registers import compressing, places

        counts = found.counts + found.fillers if self.has_fillers else found.counts
        arrays = self.allocate(counts, dtype, bits.shape[1], empty)
        values, where = self.slots(arrays)
        most = int(arrays["row_counts"][0]) if counts.size else 0
        as_found = jitted.from_dense(
            frozen(bits),
            dtype.kept_bits,
            frozen(arrays["row_permutation"]),
            frozen(arrays["row_counts"]),
            frozen(arrays["slice_offsets"]),
            values,
            where,
            (compressing(bits), places()),
            jitted.room_for(most, values.dtype, where.dtype),
        )
        if not as_found:
            raise RowsChanged
        return arrays

    def fill(self, tile: Tile, begin: int, first_col: int, bits: np.ndarray) -> None:
        from sparsefmt.layouts.jitted import permuted as jitted

        rows = bits.shape[0]
        # in sorted order, since rows that lie side by side there share lines of the cache
        positions = np.arange(rows) if rows == tile.rows else np.sort(tile.places()[begin : begin + rows])
        jitted.to_dense(*slot_arrays(tile), frozen(positions), begin, first_col, bits)

    def from_entries(self, entries: Entries, dtype: DType, shape: tuple[int, int], zeros: Allocate = zeros) -> Arrays:
        from sparsefmt.layouts.jitted import permuted as jitted

        rows, cols = shape
        counts = entries.counts
        if self.has_fillers:
            needed = FillerCount(rows, cols)
            needed.add(entries.rows, entries.columns)
            counts = counts + needed.found
        arrays = self.allocate(counts, dtype, cols, zeros)
        jitted.of_entries(
            entries.columns,
            entries.values,
            frozen(entries.begins),
            entries.counts,
            frozen(arrays["row_permutation"]),
            frozen(arrays["slice_offsets"]),
            *self.slots(arrays),
        )
        return arrays

    def counts_by_row(self, tile: Tile) -> np.ndarray:
        return counts_by_row(tile)

    def to_rows(self, tile: Tile, begins: np.ndarray, values: np.ndarray, columns: np.ndarray) -> None:
        from sparsefmt.layouts.jitted import permuted as jitted

        jitted.to_entries(*slot_arrays(tile), begins, columns, values)

    def slots(self, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """Values and where they stand, as (slots, 16)."""
        return arrays["values"].reshape(-1, SLICE_ROWS), arrays[self.where].reshape(-1, SLICE_ROWS)


class Columns(Permuted):
    """The form with `columns`."""

    form = where = "columns"
    has_fillers = False
    arrays = ("columns", "row_counts", "row_permutation", "slice_offsets", "values")

    def where_dtype(self, cols: int) -> np.dtype:
        return U16 if cols <= MAX_U16_COLS else U32

    def find_fault(self, tile: Tile) -> tuple[int, int]:
        from sparsefmt.layouts.jitted import permuted as jitted

        values, columns, _, row_counts, slice_offsets = slot_arrays(tile)
        negative_zero = values.dtype.type(tile.dtype.negative_zero)
        return jitted.check_columns(values, columns, row_counts, slice_offsets, negative_zero, tile.cols)

    def nnz(self, tile: Tile) -> int:
        return int(tile["row_counts"].sum(dtype=np.int64))

    def counts(self, tile: Tile) -> np.ndarray:
        return tile["row_counts"]

    def fillers(self, tile: Tile) -> np.ndarray:
        _, columns, _, row_counts, slice_offsets = slot_arrays(tile)
        return fillers.of_columns(columns, row_counts, slice_offsets, tile.cols)


def counts_by_row(tile: Tile) -> np.ndarray:
    """Number of stored values in each row, int64, the rows in their order."""
    counts = np.empty(tile.rows, np.int64)
    counts[tile["row_permutation"]] = tile.counts()
    return counts


def begins_by_row(arrays: Arrays) -> np.ndarray:
    """Where each row begins in `values`, its entries SLICE_ROWS apart: int64 (rows,), read-only."""
    places = np.arange(arrays["row_permutation"].size)
    begins = np.empty(places.size, np.int64)
    slots = arrays["slice_offsets"][places // SLICE_ROWS].astype(np.int64)
    begins[arrays["row_permutation"]] = slots * SLICE_ROWS + places % SLICE_ROWS
    return frozen(begins)


def slot_arrays(tile: Tile) -> tuple[np.ndarray, ...]:
    """The arrays in the order of jitted arguments: values and where they stand as (slots, 16), then the small ones."""
    layout = tile.layout
    assert isinstance(layout, Permuted)
    return (
        *map(frozen, layout.slots(tile.arrays)),
        frozen(tile["row_permutation"]),
        frozen(tile["row_counts"]),
        frozen(tile["slice_offsets"]),
    )
