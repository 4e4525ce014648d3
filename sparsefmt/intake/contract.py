"""What an intake is: a dense tensor, its bits a run of rows at a time.

An intake gives rows of the matrix view as C-contiguous, little-endian unsigned integers, copying no more than those
rows, so that a tensor in odd memory or byte order costs a tile and not a second tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sparsefmt import layouts
from sparsefmt.container.names import check_shape, matrix_view
from sparsefmt.dtypes import DType
from sparsefmt.layouts import LAYOUTS, choose
from sparsefmt.layouts.contract import Tile
from sparsefmt.layouts.memory import frozen
from sparsefmt.layouts.permuted import padded_nnz
from sparsefmt.threads import in_order


class Survey(NamedTuple):
    """What one read of a tensor tells.

    Attributes:
        nnz: elements that are neither 0 nor -0.0.
        negative_zeros: elements that are -0.0.
        padded_nnz: elements that layout `permuted` would store, those that pad its slices included.
    """

    nnz: int
    negative_zeros: int
    padded_nnz: int


class Intake(ABC):
    """A dense tensor to be laid out.

    Attributes:
        dtype, shape: of the dense tensor.
        rows, cols: of its matrix view.
    """

    def __init__(self, dtype: DType, shape: tuple[int, ...]) -> None:
        check_shape(shape, dtype)
        self.dtype = dtype
        self.shape = shape
        self.rows, self.cols = matrix_view(shape)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of all elements, those of sub-byte types packed."""
        return self.dtype.nbytes(self.rows * self.cols)

    @abstractmethod
    def bits(self, begin: int, end: int) -> np.ndarray:
        """Bits (end - begin, cols) of rows `begin` to `end`, one element each also for sub-byte types."""

    def survey(self, threads: int | None = None) -> Survey:
        """Count nonzeros and negative zeros. One read of the tensor, in parallel."""
        if not self.dtype.prunable or not self.rows * self.cols:
            return Survey(0, 0, 0)
        from sparsefmt.layouts.passes import scan

        at_once = choose.tile_rows(self.rows, self.cols)
        # padding depends on which rows are in a tile; what cannot be laid out sparse has none
        height = self.tile_rows("permuted") or at_once

        def survey_tile(begin: int) -> Survey:
            end = min(self.rows, begin + height)
            counts, negatives = np.empty(end - begin, np.int64), 0
            for first in range(begin, end, at_once):
                last = min(end, first + at_once)
                bits = frozen(self.bits(first, last))
                negative_zero = bits.dtype.type(self.dtype.negative_zero)
                negatives += scan.count(bits, negative_zero, counts[first - begin : last - begin])
            return Survey(int(counts.sum()), negatives, padded_nnz(counts))

        tiles = list(in_order(survey_tile, range(0, self.rows, height), threads))
        return Survey(*map(sum, zip(*tiles, strict=True)))

    def filling(self, survey: Survey) -> choose.Filling:
        """What the sizes of its arrays follow from."""
        height = self.tile_rows("permuted") or 1
        return choose.Filling(self.dtype, self.rows, self.cols, height, survey.nnz, survey.padded_nnz)

    def tile_rows(self, layout: str) -> int:
        """Rows per tile for `layout`."""
        if LAYOUTS[layout].sparse:
            return choose.sparse_tile_rows(self.rows, self.cols)
        height = choose.tile_rows(self.rows, self.cols)
        # tiles of packed elements start at whole bytes
        return min(self.rows, -(-height // 8) * 8) if self.dtype.packed else height

    def tile_maker(self, layout: str, drop_negative_zeros: bool = False) -> Callable[[int], Tile]:
        """A function that lays out tile number t in `layout`."""
        height = self.tile_rows(layout)

        def make_tile(number: int) -> Tile:
            bits = self.bits(number * height, min(self.rows, (number + 1) * height))
            if drop_negative_zeros and self.dtype.negative_zero:
                bits = np.where(bits == bits.dtype.type(self.dtype.negative_zero), bits.dtype.type(0), bits)
            if LAYOUTS[layout].sparse:
                # counted, then packed: the caller may be writing to it meanwhile, and packing trusts the counts
                bits = np.array(bits)
            tile = layouts.from_dense(LAYOUTS[layout], bits, self.dtype)
            if not LAYOUTS[layout].sparse:
                # a BOOL can hold what is none; sparse layouts are right by construction
                layouts.check(LAYOUTS[layout], tile, self.dtype, bits.shape[0], self.cols)
            return {array: frozen(data) for array, data in tile.items()}

        return make_tile
