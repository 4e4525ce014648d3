"""From one layout to another. Between the sparse ones the zeros are never put back."""

from __future__ import annotations

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.layouts import LAYOUTS, from_dense
from sparsefmt.layouts.bitmask import Bitmask, mask_words
from sparsefmt.layouts.contract import NEGATIVE_ZEROS, Tile
from sparsefmt.layouts.memory import Allocate, frozen, zeros
from sparsefmt.layouts.permuted import Permuted, slot_arrays


def convert(tile: Tile, source: str, target: str, dtype: DType, rows: int, cols: int, zeros: Allocate = zeros) -> Tile:
    """The arrays of layout `target` for a checked tile of layout `source`. The tile itself if they are the same.

    O(nnz + mask) between `bitmask` and `permuted`, whose memory comes from `zeros`; O(rows * cols) to and from `dense`.
    """
    if source == target:
        return tile
    if (source, target) == ("bitmask", "permuted"):
        converted = _bitmask_to_permuted(tile, dtype, rows, cols, zeros)
    elif (source, target) == ("permuted", "bitmask"):
        converted = _permuted_to_bitmask(tile, dtype, rows, cols, zeros)
    else:
        return from_dense(LAYOUTS[target], LAYOUTS[source].to_dense(tile, dtype, cols, 0, rows), dtype)
    if NEGATIVE_ZEROS in tile:
        converted[NEGATIVE_ZEROS] = tile[NEGATIVE_ZEROS]
    return converted


def _bitmask_to_permuted(tile: Tile, dtype: DType, rows: int, cols: int, zeros: Allocate) -> Tile:
    from sparsefmt.layouts.jitted import bitmask as jitted

    offsets = tile["row_offsets"].astype(np.int64)
    counts = offsets[1:] - offsets[:-1]
    converted = Permuted().allocate(counts, dtype, cols, zeros)
    jitted.to_permuted(
        mask_words(tile, rows),
        frozen(tile["row_offsets"]),
        frozen(tile["values"]),
        frozen(converted["row_permutation"]),
        frozen(converted["slice_offsets"]),
        converted["values"],
        converted["columns"],
    )
    return converted


def _permuted_to_bitmask(tile: Tile, dtype: DType, rows: int, cols: int, zeros: Allocate) -> Tile:
    from sparsefmt.layouts.jitted import bitmask as jitted

    counts = np.empty(rows, np.int64)
    counts[tile["row_permutation"]] = tile["row_counts"]
    converted = Bitmask().allocate(counts, dtype, cols, zeros)
    jitted.from_permuted(
        *slot_arrays(tile),
        frozen(converted["row_offsets"]),
        converted["mask"].view(np.uint64).reshape(rows, -1),
        converted["values"],
    )
    return converted
