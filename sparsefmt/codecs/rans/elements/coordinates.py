"""The row and the column of each element of a tile, to find out how rows and columns differ."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparsefmt.positions import Positions


class Coordinates(NamedTuple):
    """Where the elements of a tile stand in its matrix, row by row.

    Attributes:
        counts: int64 (rows,): elements in each row.
        columns: int32 (elements,): column of each.
    """

    counts: np.ndarray
    columns: np.ndarray


def coordinates(positions: Positions | None, count: int) -> Coordinates | None:
    """Those of `count` elements; None if they have no positions, or another number of them."""
    from sparsefmt.codecs.rans.jitted import elements as jitted

    if positions is None:
        return None
    rows, cols, mask = positions
    if mask is None:
        if count != rows * cols:
            return None
        return Coordinates(np.full(rows, cols, np.int64), np.tile(np.arange(cols, dtype=np.int32), rows))
    counts = np.bitwise_count(mask).sum(1, dtype=np.int64)
    if int(counts.sum()) != count:
        return None
    columns = np.empty(count, np.int32)
    jitted.columns_of(mask, columns)
    return Coordinates(counts, columns)
