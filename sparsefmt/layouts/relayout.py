"""From one sparse layout to another. The zeros are never put back. Called by `Tile.to_layout`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsefmt.layouts import bitmask, permuted
from sparsefmt.layouts.bitmask import Bitmask
from sparsefmt.layouts.contract import Arrays, Layout
from sparsefmt.layouts.entries import Entries
from sparsefmt.layouts.gaps import Gaps
from sparsefmt.layouts.memory import Allocate, frozen
from sparsefmt.layouts.permuted import Columns
from sparsefmt.positions.masks import SLICE_ROWS, put_slices

if TYPE_CHECKING:
    from sparsefmt.layouts.tile import Tile


def between_sparse(tile: Tile, target: Layout, zeros: Allocate) -> Arrays:
    """The arrays of another sparse layout, or form, for a checked tile, in memory that comes from `zeros`.

    O(nnz + mask). What is not done often goes through entries, which take some bytes each beside the result.
    """
    direct = _DIRECT.get((tile.layout.form, target.form))
    if direct is not None:
        return direct(tile, zeros)
    return target.from_entries(Entries(*map(frozen, tile.entries())), tile.dtype, tile.shape, zeros)


def _bitmask_to_columns(tile: Tile, zeros: Allocate) -> Arrays:
    from sparsefmt.positions.jitted import masks as jitted

    made = Columns().allocate(bitmask.counts_by_row(tile), tile.dtype, tile.cols, zeros)
    mask, begins = bitmask.mask_of(tile), permuted.begins_by_row(made)
    jitted.to_rows(mask, frozen(tile["values"]), begins, SLICE_ROWS, made["values"], made["columns"])
    return made


def _bitmask_to_gaps(tile: Tile, zeros: Allocate) -> Arrays:
    from sparsefmt.layouts.jitted import gaps as jitted

    counts = bitmask.counts_by_row(tile) + tile.fillers()
    made = Gaps().allocate(counts, tile.dtype, tile.cols, zeros)
    mask, begins = bitmask.mask_of(tile), permuted.begins_by_row(made)
    jitted.of_mask(mask, frozen(tile["values"]), begins, made["values"], made["gaps"])
    return made


def _columns_to_bitmask(tile: Tile, zeros: Allocate) -> Arrays:
    from sparsefmt.positions.jitted import masks as jitted

    counts, begins = permuted.counts_by_row(tile), permuted.begins_by_row(tile.arrays)
    made, mask = Bitmask().allocate(counts, tile.dtype, tile.cols, zeros)
    jitted.set_bits(frozen(tile["columns"]), begins, frozen(counts), SLICE_ROWS, mask)
    jitted.from_rows(frozen(mask), frozen(tile["values"]), begins, SLICE_ROWS, made["values"])
    put_slices(mask, tile.rows, made["mask"])
    return made


_DIRECT = {
    ("bitmask", "columns"): _bitmask_to_columns,
    ("bitmask", "gaps"): _bitmask_to_gaps,
    ("columns", "bitmask"): _columns_to_bitmask,
}
"""By forms of the layouts: from which, to which."""
