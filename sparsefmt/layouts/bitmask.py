"""Layout `bitmask`: one bit per position, and the nonzeros. Best at about 30 to 75 % zeros; 2:4 lives here.

Rows are stored in slices of 16, column by column, so that the rows of a slice fill the lanes of a register. Arrays of a
tile of r rows and c columns, n of whose positions are not pruned:

    mask           u8   see below          a bit for each position (`positions/masks.py`)
    slice_offsets  u32  ceil(r / 16) + 1   where each slice starts in `values`; the last is n
    values         bits n                  slice by slice, column by column, rows ascending
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.errors import FormatError
from sparsefmt.layouts import fillers
from sparsefmt.layouts.contract import Arrays, Layout, expect_at_most, expect_size
from sparsefmt.layouts.entries import Entries
from sparsefmt.layouts.in_rows import InRows, RowsChanged
from sparsefmt.layouts.memory import Allocate, empty, frozen, zeros
from sparsefmt.positions import Positions
from sparsefmt.positions.masks import SLICE_ROWS, in_slices, mask_bytes, put_slices, room_for_slices, slices_of

if TYPE_CHECKING:
    from sparsefmt.layouts.tile import Tile

U8, U32 = np.dtype("<u1"), np.dtype("<u4")


def mask_of(tile: Tile) -> np.ndarray:
    """The mask as passes see it, (slices, cols), read-only."""
    return in_slices(tile["mask"], tile.rows, tile.cols)


class Bitmask(Layout):
    name = form = "bitmask"
    arrays = ("mask", "slice_offsets", "values")
    sparse = True
    mask = "mask"
    derived = frozenset({"slice_offsets"})

    def array_dtype(self, array: str, dtype: DType, cols: int) -> np.dtype:
        types: dict[str, np.dtype] = {"mask": U8, "slice_offsets": U32, "values": dtype.bits_dtype}
        return types[array]

    def positions(self, array: str, tile: Tile) -> Positions | None:
        if array == "values":
            return Positions(tile.rows, tile.cols, mask_of(tile))
        return Positions(tile.rows, tile.cols, None) if array == "mask" else None

    def derive(self, array: str, tile: Tile, out: np.ndarray) -> None:
        from sparsefmt.positions.jitted import masks as jitted

        jitted.offsets(mask_of(tile), out)

    def check_sizes(self, sizes: Mapping[str, int], dtype: DType, rows: int, cols: int) -> None:
        width = dtype.bits_dtype.itemsize
        expect_size(sizes, "mask", mask_bytes(rows, cols))
        expect_size(sizes, "slice_offsets", 4 * (slices_of(rows) + 1))
        expect_at_most(sizes, "values", rows * cols * width, width)

    def check(self, tile: Tile) -> None:
        from sparsefmt.layouts.jitted import bitmask as jitted

        values = frozen(tile["values"])
        fault, slice_ = jitted.check(
            mask_of(tile),
            frozen(tile["slice_offsets"]),
            values,
            values.dtype.type(tile.dtype.negative_zero),
            tile.rows,
        )
        if fault == jitted.MASK_PADDING:
            raise FormatError("mask-padding", f"a tile has mask bits beyond its {tile.rows:,} rows")
        if fault == jitted.SLICE_OFFSETS:
            raise FormatError("slice-offsets", f"slice offsets disagree with the mask at slice {slice_} of a tile")
        if fault == jitted.STORED_ZERO:
            raise FormatError("stored-zero", "a stored value is zero")

    def nnz(self, tile: Tile) -> int:
        return int(tile["slice_offsets"][-1])

    def nnz_before(self, tile: Tile, row: int) -> int:
        from sparsefmt.layouts.jitted import bitmask as jitted

        before = int(tile["slice_offsets"][row // SLICE_ROWS])
        return before + (int(jitted.stored_before(mask_of(tile), row)) if row % SLICE_ROWS else 0)

    def counts(self, tile: Tile) -> np.ndarray:
        return counts_by_row(tile)

    def fillers(self, tile: Tile) -> np.ndarray:
        return fillers.of_mask(mask_of(tile), tile.rows)

    def from_dense(self, bits: np.ndarray, dtype: DType, found: InRows, empty: Allocate = empty) -> Arrays:
        from sparsefmt.layouts.jitted import bitmask as jitted
        from sparsefmt.layouts.jitted.registers import compressing

        arrays, mask = self.allocate(found.counts, dtype, bits.shape[1], empty)
        offsets, values = frozen(arrays["slice_offsets"]), arrays["values"]
        if not jitted.from_dense(frozen(bits), dtype.kept_bits, mask, offsets, values, compressing(bits)):
            raise RowsChanged
        put_slices(mask, bits.shape[0], arrays["mask"])
        return arrays

    def allocate(
        self, counts: np.ndarray, dtype: DType, cols: int, zeros: Allocate = zeros
    ) -> tuple[Arrays, np.ndarray]:
        """Arrays for rows with the given counts, and a mask (slices, cols) for `put_slices`.

        `slice_offsets` is filled, the others are what `zeros` gives. The mask is `mask` itself, unless it has to be
        narrowed.
        """
        rows = counts.size
        slice_offsets = zeros(slices_of(rows) + 1, U32)
        slice_offsets[0] = 0
        np.cumsum(np.add.reduceat(counts, np.arange(0, rows, SLICE_ROWS)), out=slice_offsets[1:], dtype=U32)
        raw = zeros(mask_bytes(rows, cols), U8)
        mask = room_for_slices(raw, rows, cols)
        values = zeros(int(slice_offsets[-1]), dtype.bits_dtype)
        return {"mask": raw, "slice_offsets": slice_offsets, "values": values}, mask

    def fill(self, tile: Tile, begin: int, first_col: int, bits: np.ndarray) -> None:
        from sparsefmt.layouts.jitted import bitmask as jitted
        from sparsefmt.layouts.jitted.registers import expanding

        arrays = frozen(tile["slice_offsets"]), frozen(tile["values"])
        jitted.to_dense(mask_of(tile), *arrays, begin, first_col, bits, expanding(bits))

    def from_entries(self, entries: Entries, dtype: DType, shape: tuple[int, int], zeros: Allocate = zeros) -> Arrays:
        from sparsefmt.positions.jitted import masks as jitted

        rows, cols = shape
        arrays, mask = self.allocate(entries.counts, dtype, cols, zeros)
        begins = frozen(entries.begins)
        jitted.set_bits(entries.columns, begins, entries.counts, 1, mask)
        jitted.from_rows(frozen(mask), entries.values, begins, 1, arrays["values"])
        put_slices(mask, rows, arrays["mask"])
        return arrays

    def to_rows(self, tile: Tile, begins: np.ndarray, values: np.ndarray, columns: np.ndarray) -> None:
        from sparsefmt.positions.jitted import masks as jitted

        jitted.to_rows(mask_of(tile), frozen(tile["values"]), begins, 1, values, columns)


def counts_by_row(tile: Tile) -> np.ndarray:
    """Number of stored values in each row, int64, the rows in their order."""
    return Positions(tile.rows, tile.cols, mask_of(tile)).counts()
