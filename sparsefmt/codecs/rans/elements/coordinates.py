"""Elements of a tile with the row and the column of each, to find out how rows and columns differ."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparsefmt.positions import Positions


class Placed(NamedTuple):
    """Elements row by row, and where they stand.

    Attributes:
        elements: (n,), or what stands for each.
        counts: int64 (rows,): elements in each row.
        columns: int32 (n,): column of each.
    """

    elements: np.ndarray
    counts: np.ndarray
    columns: np.ndarray


def placed(elements: np.ndarray, positions: Positions | None) -> Placed | None:
    """Elements of an array, put row by row; None if they have no positions, or another number of them."""
    if positions is None:
        return None
    counts = positions.counts()
    if int(counts.sum()) != elements.size:
        return None
    ordered, columns = positions.by_row(elements, counts)
    return Placed(ordered, counts, columns)
