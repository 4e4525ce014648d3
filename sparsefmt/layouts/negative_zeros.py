"""Negative zeros: pruned for computing, kept on the side.

Multiplying weights by a mask leaves about half of the pruned positions as -0.0. Sparse layouts prune those like +0.0,
and remember the sign in one bit per pruned position of the tile, in row-major order, lowest bit first, so that the
array is the same whatever the layout. Products never read it.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.errors import FormatError
from sparsefmt.layouts.contract import NEGATIVE_ZEROS, Tile
from sparsefmt.layouts.memory import frozen, zeros


def from_dense(bits: np.ndarray, dtype: DType, pruned: int) -> np.ndarray:
    """The array for dense `bits` (rows, cols) with `pruned` zeros of either sign."""
    from sparsefmt.layouts.jitted import scan

    array = zeros((pruned + 7) // 8, np.dtype(np.uint8))
    scan.pack_negative_zeros(frozen(bits), bits.dtype.type(dtype.negative_zero), array)
    return array


def restore(bits: np.ndarray, tile: Tile, dtype: DType, first_pruned: int) -> None:
    """Set -0.0 in dense `bits`, whose first zero is pruned position number `first_pruned` of its tile."""
    if NEGATIVE_ZEROS in tile:
        from sparsefmt.layouts.jitted import scan

        negative_zero = bits.dtype.type(dtype.negative_zero)
        scan.restore_negative_zeros(bits, negative_zero, frozen(tile[NEGATIVE_ZEROS]), first_pruned)


def check(array: np.ndarray, pruned: int) -> None:
    """Refuse an array that is not one bit for each of `pruned` positions, or whose unused bits are set."""
    if array.size != (pruned + 7) // 8:
        raise FormatError(
            "array-size", f"array {NEGATIVE_ZEROS!r} of a tile has {array.size:,} bytes for {pruned:,} pruned positions"
        )
    if pruned % 8 and array[-1] >> (pruned % 8):
        raise FormatError("negative-zeros-padding", f"unused bits of array {NEGATIVE_ZEROS!r} are not zero")
