"""A mask with a bit for each element, row by row, and what one read of the elements tells beside."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np

from sparsefmt.adapters import Rows
from sparsefmt.dtypes import DType
from sparsefmt.errors import UnsupportedError
from sparsefmt.layouts.memory import frozen
from sparsefmt.threads import in_order

_WORD = 64


@cache
def passes() -> ModuleType:
    """`jitted/passes.py`, imported on first use: what needs no pattern does not wait for numba. An import statement
    takes microseconds each time, which small tensors notice."""
    from sparsefmt.patterns.jitted import passes

    return passes


@cache
def marking() -> ModuleType:
    """`jitted/marking.py`, likewise."""
    from sparsefmt.patterns.jitted import marking

    return marking


_INFINITY = {"F8_E5M2": 0x7C, "F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F80_0000, "F64": 0x7FF0_0000_0000_0000}
"""Bits of infinity. Above them, signs aside, are NaNs."""

_ONE_NAN = {"F8_E4M3": (0x7F, 0x7F), "F8_E4M3FNUZ": (0xFF, 0x80), "F8_E5M2FNUZ": (0xFF, 0x80)}
"""Bits that are kept, and what they are in a NaN, of types without infinity."""


@dataclass(frozen=True)
class Mask:
    """Which elements are not zero, and how many are special.

    Attributes:
        words: uint64 (rows, ceil(cols / 64)), read-only: bit c % 64 of word c // 64 is column c, what is behind is 0.
        cols: columns.
        height: rows of a matrix of a stack; of any other tensor, all rows.
        negative_zeros, nans, infinities: elements that are that. -0.0 is a zero.
    """

    words: np.ndarray
    cols: int
    height: int
    negative_zeros: int
    nans: int
    infinities: int

    @property
    def rows(self) -> int:
        return self.words.shape[0]

    @property
    def elements(self) -> int:
        return self.rows * self.cols

    def row_counts(self) -> np.ndarray:
        """Nonzeros of each row: int64 (rows,)."""
        counts = np.empty(self.rows, np.int64)
        passes().row_counts(self.words, counts)
        return counts

    def column_counts(self) -> np.ndarray:
        """Nonzeros of each column of each matrix: int64 (matrices, cols)."""
        counts = np.zeros((self.rows // self.height if self.height else 0, self.cols), np.int64)
        passes().column_counts(self.words, self.height, counts)
        return counts

    def density(self, down: int, across: int) -> np.ndarray:
        """Share of nonzeros in each box of a picture: float64 (at most down, at most across), 0 boxes without elements.

        No box is smaller than an element.
        """
        down, across = min(down, self.rows), min(across, self.cols)
        sums = np.zeros((down, across), np.int64)
        if not sums.size:
            return sums.astype(np.float64)
        passes().density(self.words, self.cols, sums)
        tall = np.diff(-(-np.arange(down + 1) * self.rows // down))
        wide = np.diff(-(-np.arange(across + 1) * self.cols // across))
        return sums / np.outer(tall, wide)


def first_not_finite(dtype: DType) -> int:
    """Bits of the smallest magnitude, in a type of floats, that is not a finite number."""
    if dtype.name in _INFINITY:
        return _INFINITY[dtype.name]
    # the only NaN of the fnuz types has the magnitude of 0
    return 0x7F if dtype.name == "F8_E4M3" else 1 << (dtype.nbits - 1)


def is_looked_at(dtype: DType) -> bool:
    """Whether all-zero bits are what a pruned element of this type has: not so for packed and complex numbers."""
    return dtype.prunable or dtype.name == "BOOL"


def mask_of_rows(matrix: Rows, threads: int | None = None, progress: Callable[[int], object] | None = None) -> Mask:
    """The mask of a tensor, from one read of it.

    Args:
        progress: called with the dense bytes of each run of rows.

    Raises:
        UnsupportedError: its dtype has no zeros that could be pruned.
        as reading the rows.

    Cost: 1/16 of the bytes of a tensor of bfloat16, and a few tiles.
    """
    height = matrix.tile_rows("dense")
    ends = range(0, matrix.rows, height) if height else ()

    def read(run: tuple[int, int]) -> np.ndarray:
        bits = matrix.bits(*run)
        if progress:
            progress(matrix.dtype.nbytes(bits.size))
        return bits

    runs = [(begin, min(begin + height, matrix.rows)) for begin in ends]
    return mask_of_runs(matrix.dtype, (matrix.rows, matrix.cols, matrix.matrix_rows), (runs, read), threads)


def mask_of_runs(
    dtype: DType,
    size: tuple[int, int, int],
    source: tuple[Iterable[tuple[int, int]], Callable[[tuple[int, int]], np.ndarray]],
    threads: int | None = None,
) -> Mask:
    """The mask of a matrix that is read a run of rows at a time.

    Args:
        size: rows, columns, and rows of a matrix of the stack.
        source: runs, each its first row and one past its last, and what gives the bits (rows, cols) of a run.
    """
    if not is_looked_at(dtype):
        raise UnsupportedError("dtype-unknown", f"elements of {dtype.name} cannot be pruned, so that there is no mask")
    rows, cols, height = size
    runs, read = source
    words = np.zeros((rows, -(-cols // _WORD)), np.uint64)
    ranges = _ranges(dtype)

    def mark(run: tuple[int, int]) -> np.ndarray:
        special = np.zeros(3, np.int64)
        marking().mark(frozen(np.ascontiguousarray(read(run))), dtype.kept_bits, ranges, words[slice(*run)], special)
        return special

    special = sum(in_order(mark, runs, threads), np.zeros(3, np.int64))
    return Mask(frozen(words), cols, height, *(int(count) for count in special))


def _ranges(dtype: DType) -> np.ndarray:
    """The ranges of bits for `jitted/marking.py`: -0.0, NaN and infinity."""
    every = (1 << dtype.nbits) - 1
    unsigned = every & ~dtype.negative_zero
    ranges = np.zeros((3, 3), np.uint64)
    if dtype.negative_zero:
        ranges[0] = every, dtype.negative_zero, 0
    if dtype.name in _INFINITY:
        infinity = _INFINITY[dtype.name]
        ranges[1] = unsigned, infinity + 1, unsigned - infinity - 1
        ranges[2] = unsigned, infinity, 0
    elif dtype.name in _ONE_NAN:
        ranges[1] = (*_ONE_NAN[dtype.name], 0)
    return ranges
