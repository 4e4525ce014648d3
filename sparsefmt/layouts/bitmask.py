"""Layout `bitmask`: one bit per position, then the nonzeros row by row. Best at about 30 to 75 % zeros; 2:4 lives here.

Arrays of a tile of r rows and c columns, n of whose positions are not pruned:

    mask         u8   r x 8 * ceil(c / 64)   bit c % 8 of byte c // 8 of a row; padding bits zero
    row_offsets  u32  r + 1                  where each row starts in `values`; the last is n
    values       bits n                      row-major
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.errors import FormatError
from sparsefmt.layouts.contract import Arrays, Layout, expect_at_most, expect_size
from sparsefmt.layouts.entries import Entries
from sparsefmt.layouts.memory import Allocate, frozen, zeros
from sparsefmt.positions import Positions

if TYPE_CHECKING:
    from sparsefmt.layouts.tile import Tile

U8, U32 = np.dtype("<u1"), np.dtype("<u4")


def mask_stride(cols: int) -> int:
    """Bytes of one row of the mask: whole 64-bit words."""
    return (cols + 63) // 64 * 8


def mask_words(tile: Tile) -> np.ndarray:
    """The mask as (rows, words) uint64."""
    return frozen(tile["mask"].view(np.uint64).reshape(tile.rows, -1))


class Bitmask(Layout):
    name = "bitmask"
    arrays = ("mask", "row_offsets", "values")
    sparse = True
    mask = "mask"
    derived = frozenset({"row_offsets"})

    def array_dtype(self, array: str, dtype: DType, cols: int) -> np.dtype:
        types: dict[str, np.dtype] = {"mask": U8, "row_offsets": U32, "values": dtype.bits_dtype}
        return types[array]

    def positions(self, array: str, tile: Tile) -> Positions | None:
        return Positions(tile.rows, tile.cols, mask_words(tile)) if array == "values" else None

    def derive(self, array: str, tile: Tile, out: np.ndarray) -> None:
        from sparsefmt.layouts.jitted import bitmask as jitted

        jitted.row_offsets(mask_words(tile), out)

    def check_sizes(self, sizes: Mapping[str, int], dtype: DType, rows: int, cols: int) -> None:
        width = dtype.bits_dtype.itemsize
        expect_size(sizes, "mask", rows * mask_stride(cols))
        expect_size(sizes, "row_offsets", 4 * (rows + 1))
        expect_at_most(sizes, "values", rows * cols * width, width)

    def check(self, tile: Tile) -> None:
        from sparsefmt.layouts.jitted import bitmask as jitted

        values = frozen(tile["values"])
        fault, row = jitted.check(
            mask_words(tile),
            frozen(tile["row_offsets"]),
            values,
            values.dtype.type(tile.dtype.negative_zero),
            tile.cols,
        )
        if fault == jitted.MASK_PADDING:
            raise FormatError("mask-padding", f"row {row} of a tile has mask bits beyond its {tile.cols:,} columns")
        if fault == jitted.ROW_OFFSETS:
            raise FormatError("row-offsets", f"row offsets disagree with the mask at row {row} of a tile")
        if fault == jitted.STORED_ZERO:
            raise FormatError("stored-zero", "a stored value is zero")

    def nnz(self, tile: Tile) -> int:
        return int(tile["row_offsets"][-1])

    def nnz_before(self, tile: Tile, row: int) -> int:
        return int(tile["row_offsets"][row])

    def counts(self, tile: Tile) -> np.ndarray:
        return np.diff(tile["row_offsets"])

    def from_dense(self, bits: np.ndarray, dtype: DType, counts: np.ndarray) -> Arrays:
        from sparsefmt.layouts.jitted import bitmask as jitted

        arrays = self.allocate(counts, dtype, bits.shape[1])
        jitted.pack(
            frozen(bits),
            bits.dtype.type(dtype.negative_zero),
            frozen(arrays["row_offsets"]),
            arrays["mask"].view(np.uint64).reshape(bits.shape[0], -1),
            arrays["values"],
        )
        return arrays

    def allocate(self, counts: np.ndarray, dtype: DType, cols: int, zeros: Allocate = zeros) -> Arrays:
        """Arrays for rows with the given counts: `row_offsets` filled, `mask` zero, `values` anything."""
        row_offsets = zeros(counts.size + 1, U32)
        np.cumsum(counts, out=row_offsets[1:], dtype=U32)
        return {
            "mask": zeros(counts.size * mask_stride(cols), U8),
            "row_offsets": row_offsets,
            "values": zeros(int(row_offsets[-1]), dtype.bits_dtype),
        }

    def to_dense(self, tile: Tile, begin: int, end: int) -> np.ndarray:
        from sparsefmt.layouts.jitted import bitmask as jitted

        bits = np.zeros((end - begin, tile.cols), tile.dtype.bits_dtype)
        jitted.unpack(mask_words(tile), frozen(tile["row_offsets"]), frozen(tile["values"]), begin, end, bits)
        return bits

    def from_entries(self, entries: Entries, dtype: DType, shape: tuple[int, int]) -> Arrays:
        from sparsefmt.layouts.jitted import bitmask as jitted

        rows, cols = shape
        arrays = self.allocate(np.bincount(entries.rows, minlength=rows), dtype, cols)
        arrays["values"][:] = entries.values
        jitted.of_entries(entries.rows, entries.columns, arrays["mask"].view(np.uint64).reshape(rows, -1))
        return arrays

    def to_entries(self, tile: Tile) -> Entries:
        from sparsefmt.layouts.jitted import bitmask as jitted

        offsets, values = tile["row_offsets"].astype(np.int64), tile["values"]
        columns = np.empty(values.size, np.int64)
        jitted.columns_of(mask_words(tile), columns)
        return Entries(np.repeat(np.arange(tile.rows), offsets[1:] - offsets[:-1]), columns, values)
