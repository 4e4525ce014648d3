"""Tiles from and to their entries: what is not zero, and where it is, in time and memory in proportion to that."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.layouts.bitmask import Bitmask, mask_words
from sparsefmt.layouts.contract import NEGATIVE_ZEROS, Tile
from sparsefmt.layouts.memory import frozen, zeros
from sparsefmt.layouts.permuted import LANES, Permuted, slot_arrays


class Entries(NamedTuple):
    """Elements of a run of rows, ordered by row and then by column, each at most once.

    Attributes:
        rows: int64 (n,), counted from the first of the run.
        columns: int64 (n,).
        values: bits (n,). May be zeros, of either sign.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray


def from_entries(layout: str, entries: Entries, dtype: DType, rows: int, cols: int) -> Tile:
    """The arrays of a sparse layout for a tile of `rows` x `cols` whose other elements are zero.

    The same arrays as `layouts.from_dense` makes of the dense tile, in O(entries + rows) for `permuted`, and for
    `bitmask` beside its mask, which has a bit for each position.
    """
    from sparsefmt.layouts.jitted import bitmask, permuted

    values = entries.values
    negative = (values == dtype.negative_zero) if dtype.negative_zero else np.zeros(values.size, np.bool_)
    kept = (values != 0) & ~negative
    kept_rows, columns, values = entries.rows[kept], frozen(entries.columns[kept]), frozen(values[kept])
    counts = np.bincount(kept_rows, minlength=rows).astype(np.int64)
    if layout == "permuted":
        tile = Permuted().allocate(counts, dtype, cols)
        permuted.of_entries(
            columns,
            values,
            frozen(np.cumsum(counts) - counts),
            frozen(tile["row_permutation"]),
            frozen(tile["row_counts"]),
            frozen(tile["slice_offsets"]),
            tile["values"].reshape(-1, LANES),
            tile["columns"].reshape(-1, LANES),
        )
    else:
        tile = Bitmask().allocate(counts, dtype, cols)
        tile["values"][:] = values
        bitmask.of_entries(frozen(kept_rows), columns, tile["mask"].view(np.uint64).reshape(rows, -1))
    if negative.any():
        # the number of each among pruned positions: its position, less the values before it
        pruned = (entries.rows * cols + entries.columns - np.cumsum(kept))[negative]
        tile[NEGATIVE_ZEROS] = zeros((rows * cols - values.size + 7) // 8, np.dtype(np.uint8))
        np.bitwise_or.at(tile[NEGATIVE_ZEROS], pruned >> 3, (1 << (pruned & 7)).astype(np.uint8))
    return tile


def to_entries(layout: str, tile: Tile, rows: int) -> Entries:
    """The values of a checked tile of a sparse layout, and where they are."""
    from sparsefmt.layouts.jitted import bitmask, permuted

    if layout == "permuted":
        arrays = slot_arrays(tile)
        counts = np.empty(rows, np.int64)
        counts[tile["row_permutation"]] = tile["row_counts"]
        columns, values = np.empty(int(counts.sum()), np.int64), np.empty(int(counts.sum()), tile["values"].dtype)
        permuted.to_entries(*arrays, frozen(np.cumsum(counts) - counts), columns, values)
    else:
        offsets, values = tile["row_offsets"].astype(np.int64), tile["values"]
        counts = offsets[1:] - offsets[:-1]
        columns = np.empty(values.size, np.int64)
        bitmask.columns_of(mask_words(tile, rows), columns)
    return Entries(np.repeat(np.arange(rows), counts), columns, values)
