"""Where the elements of an array stand in the matrix of their tile: what a layout tells a codec of its arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Positions(NamedTuple):
    """An element at every position of a tile, row by row, or only at those that a mask keeps.

    Attributes:
        rows, cols: of the tile.
        mask: uint64 (rows, words), read-only. Bit c % 64 of word c // 64 of a row is set where there is an element.
            That of a file is not yet checked. None if there is an element at every position.
    """

    rows: int
    cols: int
    mask: np.ndarray | None
