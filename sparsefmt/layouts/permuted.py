"""Layout `permuted`: values and columns in slices of eight rows, rows sorted by count. Best above about 75 % zeros.

The rows of a tile are sorted by descending count of nonzeros (stable), eight rows make a slice, and a slice is stored
slot by slot: slot k holds the k-th nonzero of each of its eight rows, ascending by column. Rows that run out are padded
with value 0, column 0. Arrays of a tile of r rows and c columns, with S slots in all:

    columns          u16  S x 8              u32 where c > 65,536
    row_counts       u32  r                  nonzeros of the rows in sorted order: never ascending
    row_permutation  u16  r                  row_permutation[p] is the row at sorted position p
    slice_offsets    u32  ceil(r / 8) + 1    first slot of each slice; the last is S
    values           bits S x 8
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.errors import FormatError
from sparsefmt.layouts import negative_zeros
from sparsefmt.layouts.contract import Layout, Tile, expect_at_most, expect_size
from sparsefmt.layouts.memory import Allocate, frozen, zeros

LANES = 8
"""Rows in a slice: the lanes of a 256-bit vector of f32."""

U16, U32 = np.dtype("<u2"), np.dtype("<u4")
MAX_U16_COLS = 1 << 16


def slices_of(rows: int) -> int:
    """Slices of a tile of so many rows."""
    return -(-rows // LANES)


def padded_nnz(counts: np.ndarray) -> int:
    """Elements that a tile with so many nonzeros in each of its rows stores, padding included."""
    # in each slice, the row that has most comes first
    return int(np.sort(counts)[::-1][::LANES].sum(dtype=np.int64)) * LANES


class Permuted(Layout):
    name = "permuted"
    arrays = ("columns", "row_counts", "row_permutation", "slice_offsets", "values")
    sparse = True

    def array_dtype(self, array: str, dtype: DType, cols: int) -> np.dtype:
        return {
            "columns": U16 if cols <= MAX_U16_COLS else U32,
            "row_counts": U32,
            "row_permutation": U16,
            "slice_offsets": U32,
            "values": dtype.bits_dtype,
        }.get(array, np.dtype("<u1"))

    def check_sizes(self, sizes: Mapping[str, int], dtype: DType, rows: int, cols: int) -> None:
        slices = slices_of(rows)
        width = dtype.bits_dtype.itemsize
        expect_size(sizes, "row_counts", 4 * rows)
        expect_size(sizes, "row_permutation", 2 * rows)
        expect_size(sizes, "slice_offsets", 4 * (slices + 1))
        expect_at_most(sizes, "values", slices * cols * LANES * width, LANES * width)
        expect_size(sizes, "columns", sizes["values"] // width * (2 if cols <= MAX_U16_COLS else 4))

    def check(self, tile: Tile, dtype: DType, rows: int, cols: int) -> None:
        from sparsefmt.layouts.jitted import permuted as jitted

        arrays = slot_arrays(tile)
        fault, position = jitted.check(*arrays, tile["values"].dtype.type(dtype.negative_zero), cols)
        if fault == jitted.OK:
            return
        code, text = {
            jitted.PERMUTATION: ("row-permutation", "row_permutation is not valid, or equal counts are out of order"),
            jitted.ROW_COUNTS: ("row-counts", "a row count is over the columns, or counts ascend"),
            jitted.SLICE_OFFSETS: ("slice-offsets", "slice offsets disagree with the row counts"),
            jitted.COLUMN_RANGE: ("column-range", f"a column is not below {cols:,}"),
            jitted.COLUMN_ORDER: ("column-order", "columns of a row do not ascend strictly"),
            jitted.STORED_ZERO: ("stored-zero", "a stored value is zero"),
            jitted.SLOT_PADDING: ("slot-padding", "padding of a slice is not zero"),
        }[fault]
        raise FormatError(code, f"{text}, at sorted row {position} of a tile")

    def nnz(self, tile: Tile) -> int:
        return int(tile["row_counts"].sum(dtype=np.int64))

    def counts(self, tile: Tile) -> np.ndarray:
        return tile["row_counts"]

    def from_dense(self, bits: np.ndarray, dtype: DType, counts: np.ndarray) -> Tile:
        from sparsefmt.layouts.jitted import permuted as jitted

        tile = self.allocate(counts, dtype, bits.shape[1])
        jitted.pack(
            frozen(bits),
            bits.dtype.type(dtype.negative_zero),
            frozen(tile["row_permutation"]),
            frozen(tile["slice_offsets"]),
            tile["values"].reshape(-1, LANES),
            tile["columns"].reshape(-1, LANES),
        )
        return tile

    def allocate(self, counts: np.ndarray, dtype: DType, cols: int, zeros: Allocate = zeros) -> Tile:
        """Arrays for rows with the given counts: permutation, counts and offsets filled, values and columns zero."""
        rows = counts.size
        # numbers of 16 bits are sorted in linear time
        descending = (~counts).astype(U16) if int(counts.max(initial=0)) < 1 << 16 else -counts
        order = np.argsort(descending, kind="stable")
        sorted_counts = counts[order]
        slice_offsets = zeros(slices_of(rows) + 1, U32)
        np.cumsum(sorted_counts[::LANES], out=slice_offsets[1:], dtype=U32)
        slots = int(slice_offsets[-1]) * LANES
        tile = {
            "columns": zeros(slots, self.array_dtype("columns", dtype, cols)),
            "row_counts": zeros(rows, U32),
            "row_permutation": zeros(rows, U16),
            "slice_offsets": slice_offsets,
            "values": zeros(slots, dtype.bits_dtype),
        }
        tile["row_counts"][:] = sorted_counts
        tile["row_permutation"][:] = order
        return tile

    def to_dense(self, tile: Tile, dtype: DType, cols: int, begin: int, end: int) -> np.ndarray:
        from sparsefmt.layouts.jitted import permuted as jitted

        bits = np.zeros((end - begin, cols), dtype.bits_dtype)
        jitted.unpack(*slot_arrays(tile), begin, end, bits)
        before = tile["row_counts"][tile["row_permutation"] < begin].sum(dtype=np.int64)
        negative_zeros.restore(bits, tile, dtype, begin * cols - int(before))
        return bits


def slot_arrays(tile: Tile) -> tuple[np.ndarray, ...]:
    """The arrays in the order of jitted arguments: values and columns as (slots, 8), then the small ones."""
    return (
        frozen(tile["values"].reshape(-1, LANES)),
        frozen(tile["columns"].reshape(-1, LANES)),
        frozen(tile["row_permutation"]),
        frozen(tile["row_counts"]),
        frozen(tile["slice_offsets"]),
    )
