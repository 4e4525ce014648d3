"""Where the elements of an array stand in the matrix of their tile: what a layout tells a codec of its arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Positions(NamedTuple):
    """An element at every position of a tile, row by row; or only at those that a mask keeps, slice by slice of 16
    rows, and in each of them column by column.

    Attributes:
        rows, cols: of the tile.
        mask: (slices, cols), as `masks.in_slices` gives it. Bit i of mask[s, c] is set where row 16 s + i has an
            element in column c. That of a file is not yet checked. None if there is an element at every position.
    """

    rows: int
    cols: int
    mask: np.ndarray | None

    def counts(self) -> np.ndarray:
        """Elements of each row: int64 (rows,)."""
        from sparsefmt.positions.jitted import masks as jitted

        if self.mask is None:
            return np.full(self.rows, self.cols, np.int64)
        counts = np.empty(self.rows, np.int64)
        jitted.counts(self.mask, counts)
        return counts

    def elements(self) -> int:
        """How many there are."""
        if self.mask is None:
            return self.rows * self.cols
        # numpy takes as long for a short word as for a long one
        words = self.mask.reshape(-1)
        words = words.view(np.uint64) if words.nbytes % 8 == 0 else words
        return int(np.bitwise_count(words).sum(dtype=np.int64))

    def by_row(self, elements: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Elements of the array put row by row, and the column of each (int32). counts: what `counts` gives."""
        from sparsefmt.positions.jitted import masks as jitted

        if self.mask is None:
            return elements, np.tile(np.arange(self.cols, dtype=np.int32), self.rows)
        out, columns = np.empty_like(elements), np.empty(elements.size, np.int32)
        # jitted code takes read-only arrays for a type of their own
        begins, elements = np.cumsum(counts) - counts, elements.view()
        begins.flags.writeable = elements.flags.writeable = False
        jitted.to_rows(self.mask, elements, begins, 1, out, columns.view(np.uint32))  # which is compiled anyway
        return out, columns
