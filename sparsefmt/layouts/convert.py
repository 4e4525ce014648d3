"""From one sparse layout to another: the zeros are never put back. Called by `Tile.converted`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparsefmt.layouts.bitmask import Bitmask, mask_words
from sparsefmt.layouts.contract import Arrays, Layout
from sparsefmt.layouts.memory import Allocate, frozen
from sparsefmt.layouts.permuted import Permuted, counts_by_row, slot_arrays

if TYPE_CHECKING:
    from sparsefmt.layouts.tile import Tile


def between_sparse(tile: Tile, target: Layout, zeros: Allocate) -> Arrays:
    """The arrays of another sparse layout for a checked tile, in memory that comes from `zeros`. O(nnz + mask)."""
    return _CONVERSIONS[tile.layout.name, target.name](tile, zeros)


def _bitmask_to_permuted(tile: Tile, zeros: Allocate) -> Arrays:
    from sparsefmt.layouts.jitted import bitmask as jitted

    offsets = tile["row_offsets"].astype(np.int64)
    counts = offsets[1:] - offsets[:-1]
    converted = Permuted().allocate(counts, tile.dtype, tile.cols, zeros)
    jitted.to_permuted(
        mask_words(tile),
        frozen(tile["row_offsets"]),
        frozen(tile["values"]),
        frozen(converted["row_permutation"]),
        frozen(converted["slice_offsets"]),
        converted["values"],
        converted["columns"],
    )
    return converted


def _permuted_to_bitmask(tile: Tile, zeros: Allocate) -> Arrays:
    from sparsefmt.layouts.jitted import bitmask as jitted

    converted = Bitmask().allocate(counts_by_row(tile), tile.dtype, tile.cols, zeros)
    jitted.from_permuted(
        *slot_arrays(tile),
        frozen(converted["row_offsets"]),
        converted["mask"].view(np.uint64).reshape(tile.rows, -1),
        converted["values"],
    )
    return converted


_CONVERSIONS = {
    ("bitmask", "permuted"): _bitmask_to_permuted,
    ("permuted", "bitmask"): _permuted_to_bitmask,
}
"""By names of the layouts: from which, to which."""
