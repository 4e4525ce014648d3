"""From one sparse layout to another. The zeros are never put back. Called by `Tile.to_layout`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsefmt.layouts import bitmask, permuted
from sparsefmt.layouts.bitmask import Bitmask
from sparsefmt.layouts.contract import Arrays, Layout
from sparsefmt.layouts.memory import Allocate, frozen
from sparsefmt.layouts.permuted import Permuted
from sparsefmt.positions.masks import SLICE_ROWS, put_slices

if TYPE_CHECKING:
    from sparsefmt.layouts.tile import Tile


def between_sparse(tile: Tile, target: Layout, zeros: Allocate) -> Arrays:
    """The arrays of another sparse layout for a checked tile, in memory that comes from `zeros`. O(nnz + mask)."""
    return _CONVERSIONS[tile.layout.name, target.name](tile, zeros)


def _bitmask_to_permuted(tile: Tile, zeros: Allocate) -> Arrays:
    from sparsefmt.positions.jitted import masks as jitted

    converted = Permuted().allocate(bitmask.counts_by_row(tile), tile.dtype, tile.cols, zeros)
    mask, begins = bitmask.mask_of(tile), permuted.begins_by_row(converted)
    jitted.to_rows(mask, frozen(tile["values"]), begins, SLICE_ROWS, converted["values"], converted["columns"])
    return converted


def _permuted_to_bitmask(tile: Tile, zeros: Allocate) -> Arrays:
    from sparsefmt.positions.jitted import masks as jitted

    counts, begins = permuted.counts_by_row(tile), permuted.begins_by_row(tile.arrays)
    converted, mask = Bitmask().allocate(counts, tile.dtype, tile.cols, zeros)
    jitted.set_bits(frozen(tile["columns"]), begins, frozen(counts), SLICE_ROWS, mask)
    jitted.from_rows(frozen(mask), frozen(tile["values"]), begins, SLICE_ROWS, converted["values"])
    put_slices(mask, tile.rows, converted["mask"])
    return converted


_CONVERSIONS = {
    ("bitmask", "permuted"): _bitmask_to_permuted,
    ("permuted", "bitmask"): _permuted_to_bitmask,
}
"""By names of the layouts: from which, to which."""
