"""Bytes that the arrays of a matrix take in each layout, told before they are made.

They follow from how full the matrix is, and for `permuted` from how many entries each row of a tile has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.layouts import FORMS
from sparsefmt.layouts.contract import Layout
from sparsefmt.layouts.fillers import MAX_GAP
from sparsefmt.layouts.permuted import MAX_U16_COLS, padded
from sparsefmt.positions.masks import mask_bytes, slices_of


class Stored(NamedTuple):
    """Elements that `permuted` stores, in each of its forms."""

    columns: int
    gaps: int


def stored_by_form(tiles: Iterable[tuple[np.ndarray, np.ndarray]]) -> Stored:
    """Elements that tiles store whose rows have so many nonzeros, and so many fillers (`gaps.py`)."""
    columns, gaps = 0, 0
    for counts, fillers in tiles:
        columns += padded(counts)
        gaps += padded(counts + fillers)
    return Stored(columns, gaps)


@dataclass(frozen=True, slots=True)
class Filling:
    """How full a matrix is: what the sizes of its arrays follow from.

    Attributes:
        tile_rows: rows in every tile but the last.
        nnz: elements that are not pruned.
        stored: elements that `permuted` stores, by form: those, the fillers of `gaps`, and the padding of slices, which
            depends on how many entries each row of a tile has (`stored_by_form`).
    """

    dtype: DType
    rows: int
    cols: int
    tile_rows: int
    nnz: int
    stored: Stored

    @classmethod
    def together(cls, matrices: Sequence[Filling]) -> Filling:
        """How full matrices of one dtype and one number of columns are as one, above each other; at least one."""
        stored = Stored(*(sum(forms) for forms in zip(*(each.stored for each in matrices), strict=True)))
        rows, nnz = sum(each.rows for each in matrices), sum(each.nnz for each in matrices)
        return replace(matrices[0], rows=rows, nnz=nnz, stored=stored)

    def nbytes(self, layout: Layout) -> int:
        """Bytes of all arrays in memory, to the byte, without `negative_zeros`."""
        width, last_rows = self.dtype.bits_dtype.itemsize, self.rows - (self.tiles - 1) * self.tile_rows
        slices = (self.tiles - 1) * slices_of(self.tile_rows) + slices_of(last_rows)
        if layout.form == "bitmask":
            masks = (self.tiles - 1) * mask_bytes(self.tile_rows, self.cols) + mask_bytes(last_rows, self.cols)
            return masks + 4 * (slices + self.tiles) + self.nnz * width
        if layout.form == "columns":
            column = 2 if self.cols <= MAX_U16_COLS else 4
            return self.rows * 6 + 4 * (slices + self.tiles) + self.stored.columns * (width + column)
        if layout.form == "gaps":
            return self.rows * 6 + 4 * (slices + self.tiles) + self.stored.gaps * (width + 1)
        return self.dtype.nbytes(self.rows * self.cols)

    @property
    def permuted(self) -> Layout:
        """The form of `permuted` that takes fewer bytes."""
        columns, gaps = FORMS["columns"], FORMS["gaps"]
        return gaps if self.nbytes(gaps) < self.nbytes(columns) else columns

    @property
    def likely_permuted(self) -> Layout:
        """The form that takes fewer bytes if zeros are anywhere: for who knows how many there are, but not where."""
        zeros = 1 - self.nnz / max(self.rows * self.cols, 1)
        # of k * 255 + 1 columns and more, for k = 1, 2, …; a row of zeros has none to bridge
        far = zeros**MAX_GAP if self.cols > MAX_GAP + 1 else 0.0
        fillers = int(self.nnz * far / (1 - far)) if self.nnz else 0
        return replace(self, stored=Stored(self.stored.columns, self.stored.gaps + fillers)).permuted

    @property
    def tiles(self) -> int:
        return -(-self.rows // self.tile_rows)
