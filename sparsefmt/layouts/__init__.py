"""The layouts, by name. A fixed table: nothing in a file is looked up anywhere else."""

from __future__ import annotations

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.layouts import negative_zeros
from sparsefmt.layouts.bitmask import Bitmask
from sparsefmt.layouts.contract import NEGATIVE_ZEROS, Layout, Tile
from sparsefmt.layouts.dense import Dense
from sparsefmt.layouts.memory import frozen
from sparsefmt.layouts.permuted import Permuted

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (Dense(), Bitmask(), Permuted())}


def from_dense(layout: Layout, bits: np.ndarray, dtype: DType) -> Tile:
    """The arrays of `layout` for dense `bits` (rows, cols), with `negative_zeros` if there is a -0.0."""
    if not layout.sparse:
        return layout.from_dense(bits, dtype, np.empty(0, np.int64))
    from sparsefmt.layouts.jitted import scan

    counts = np.empty(bits.shape[0], np.int64)
    negatives = scan.count(frozen(bits), bits.dtype.type(dtype.negative_zero), counts)
    tile = layout.from_dense(bits, dtype, counts)
    if negatives:
        tile[NEGATIVE_ZEROS] = negative_zeros.from_dense(bits, dtype, bits.size - int(counts.sum()))
    return tile


def check(layout: Layout, tile: Tile, dtype: DType, rows: int, cols: int) -> None:
    """Verify every invariant of a tile's arrays, `negative_zeros` included. Raises FormatError."""
    layout.check(tile, dtype, rows, cols)
    if NEGATIVE_ZEROS in tile:
        negative_zeros.check(tile[NEGATIVE_ZEROS], rows * cols - layout.nnz(tile))
