"""Layout `dense`: every element, row-major. For embeddings, norms, biases and whatever has few zeros.

Array `values` holds the bits as they are, -0.0 included. Sub-byte types are packed without gaps, first element in the
lowest bits; unused bits of the last byte are zero. Needs no jitted code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sparsefmt import dtypes
from sparsefmt.dtypes import DType
from sparsefmt.errors import FormatError
from sparsefmt.layouts.contract import Arrays, Layout, expect_size
from sparsefmt.layouts.in_rows import InRows
from sparsefmt.layouts.memory import Allocate, empty
from sparsefmt.positions import Positions

if TYPE_CHECKING:
    from sparsefmt.layouts.tile import Tile


class Dense(Layout):
    name = form = "dense"
    arrays = ("values",)
    sparse = False

    def array_dtype(self, array: str, dtype: DType, cols: int) -> np.dtype:
        return dtype.bits_dtype

    def positions(self, array: str, tile: Tile) -> Positions | None:
        return None if tile.dtype.packed else Positions(tile.rows, tile.cols, None)

    def check_sizes(self, sizes: Mapping[str, int], dtype: DType, rows: int, cols: int) -> None:
        expect_size(sizes, "values", dtype.nbytes(rows * cols))

    def check(self, tile: Tile) -> None:
        values, dtype = tile["values"], tile.dtype
        if dtype.name == "BOOL" and values.size and values.max() > 1:
            raise FormatError("bool-invalid", "a BOOL element is neither 0 nor 1")
        unused = -tile.rows * tile.cols * dtype.nbits % 8
        if unused and values[-1] >> (8 - unused):
            raise FormatError("values-padding", "unused bits of the last byte are not zero")

    def from_dense(self, bits: np.ndarray, dtype: DType, found: InRows, empty: Allocate = empty) -> Arrays:
        elements = dtypes.pack(bits, dtype) if dtype.packed else bits.reshape(-1)
        values = empty(elements.size, elements.dtype)
        values[:] = elements
        return {"values": values}

    def fill(self, tile: Tile, begin: int, first_col: int, bits: np.ndarray) -> None:
        values, dtype, cols = tile["values"], tile.dtype, tile.cols
        if dtype.packed:
            values = dtypes.unpack(values, dtype, values.size * 8 // dtype.nbits)
        end = begin + bits.shape[0]
        bits[:] = values[begin * cols : end * cols].reshape(-1, cols)[:, first_col : first_col + bits.shape[1]]
