"""The matrix that a kernel multiplies by."""

from __future__ import annotations

from typing import NamedTuple

from sparsefmt.dtypes import DType
from sparsefmt.layouts.contract import Tile


class Operand(NamedTuple):
    """A matrix in one of the layouts, its arrays checked and read-only.

    Attributes:
        tiles: arrays of rows [t * tile_rows, (t + 1) * tile_rows) each.
    """

    dtype: DType
    rows: int
    cols: int
    layout: str
    tile_rows: int
    tiles: tuple[Tile, ...]
