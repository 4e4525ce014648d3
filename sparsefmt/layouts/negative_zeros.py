"""Negative zeros: pruned for computing, kept on the side.

Multiplying weights by a mask leaves about half of the pruned positions as -0.0. Sparse layouts prune those like +0.0,
and the tile remembers the sign in one bit per pruned position, in row-major order, lowest bit first, so that the array
is the same whatever the layout. Products never read it. Only `tile.py` calls what is here.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.errors import FormatError
from sparsefmt.layouts.in_rows import RowsChanged
from sparsefmt.layouts.memory import Allocate, empty, frozen, zeros

NEGATIVE_ZEROS = "negative_zeros"
"""Name of the one optional array: a bit per pruned position, in row-major order, set where it was -0.0."""

DTYPE = np.dtype(np.uint8)


def nbytes(pruned: int) -> int:
    """Bytes of the array for so many pruned positions."""
    return (pruned + 7) // 8


def none(pruned: int, zeros: Allocate = zeros) -> np.ndarray:
    """The array that marks none of `pruned` positions, in memory that comes from `zeros`."""
    return zeros(nbytes(pruned), DTYPE)


def from_dense(bits: np.ndarray, dtype: DType, pruned: int, empty: Allocate = empty) -> np.ndarray:
    """The array for dense `bits` (rows, cols) with `pruned` zeros of either sign, in memory that comes from `empty`.

    Raises:
        RowsChanged: they have another number of zeros. Bits that change meanwhile do no other harm.
    """
    from sparsefmt.layouts.jitted import scan

    array = empty(nbytes(pruned), DTYPE)
    if not scan.mark_negative_zeros(frozen(bits), dtype.kept_bits, dtype.negative_zero_word, pruned, array):
        raise RowsChanged
    return array


def from_numbers(numbers: np.ndarray, pruned: int) -> np.ndarray:
    """The array for `pruned` positions that marks those with the given numbers (int64)."""
    array = none(pruned)
    np.bitwise_or.at(array, numbers >> 3, (1 << (numbers & 7)).astype(np.uint8))
    return array


def restore(bits: np.ndarray, array: np.ndarray, dtype: DType, first_pruned: int) -> None:
    """Set -0.0 in dense `bits`, whose first zero is pruned position number `first_pruned` of its tile."""
    from sparsefmt.layouts.jitted import scan

    scan.restore_negative_zeros(bits, dtype.kept_bits, dtype.negative_zero_word, frozen(array), first_pruned)


def check(array: np.ndarray, pruned: int) -> None:
    """Refuse an array that is not one bit for each of `pruned` positions, or whose unused bits are set."""
    if array.size != nbytes(pruned):
        raise FormatError(
            "array-size", f"array {NEGATIVE_ZEROS!r} of a tile has {array.size:,} bytes for {pruned:,} pruned positions"
        )
    if pruned % 8 and array[-1] >> (pruned % 8):
        raise FormatError("negative-zeros-padding", f"unused bits of array {NEGATIVE_ZEROS!r} are not zero")
