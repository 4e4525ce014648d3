"""How many rows tiles have."""

from __future__ import annotations

import pytest

from sparsefmt.layouts import heights


@pytest.mark.parametrize(("rows", "cols"), [(0, 5), (5, 0), (1, 1), (4096, 4096), (3, 1 << 33), (1 << 33, 1)])
def test_tile_rows_are_in_range(rows, cols):
    height = heights.tile_rows(rows, cols)
    assert (height == 0) if not rows * cols else 1 <= height <= rows


def test_sparse_tiles_are_whole_slices_within_limits():
    assert heights.sparse_tile_rows(4096, 4096) % 16 == 0
    assert heights.sparse_tile_rows(1 << 20, 2) <= 1 << 16
    assert heights.sparse_tile_rows(100, 1 << 30) == 1
