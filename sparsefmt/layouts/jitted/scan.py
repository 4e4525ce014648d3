"""Passes over dense bits that every sparse layout shares."""

from __future__ import annotations

import numpy as np

from sparsefmt.jit import jit


@jit
def count(bits: np.ndarray, negative_zero: int, counts: np.ndarray) -> int:
    """Write the nonzeros of each row of `bits` (rows, cols) to `counts` (rows,) int64; return how many -0.0 there are.

    A type without negative zero passes 0 for it. One read of the bits.
    """
    negatives = np.int64(0)
    for row in range(bits.shape[0]):
        zeros = np.int64(0)
        row_negatives = np.int64(0)
        for col in range(bits.shape[1]):
            zeros += np.int64(bits[row, col] == 0)
            row_negatives += np.int64(bits[row, col] == negative_zero)
        if negative_zero == 0:
            row_negatives = np.int64(0)
        counts[row] = bits.shape[1] - zeros - row_negatives
        negatives += row_negatives
    return negatives


@jit
def mark_negative_zeros(bits: np.ndarray, negative_zero: int, array: np.ndarray) -> None:
    """Set in zeroed `array` (uint8) the bit of each pruned position of `bits` (rows, cols) that is -0.0."""
    pruned = np.int64(0)
    for row in range(bits.shape[0]):
        for col in range(bits.shape[1]):
            if bits[row, col] == negative_zero:
                array[pruned >> 3] |= np.uint8(1 << (pruned & 7))
                pruned += 1
            elif bits[row, col] == 0:
                pruned += 1


@jit
def restore_negative_zeros(bits: np.ndarray, negative_zero: int, array: np.ndarray, first_pruned: int) -> None:
    """Turn the zeros of `bits` (rows, cols) whose bit in `array` is set into -0.0."""
    pruned = np.int64(first_pruned)
    for row in range(bits.shape[0]):
        for col in range(bits.shape[1]):
            if bits[row, col] == 0:
                if (array[pruned >> 3] >> (pruned & 7)) & 1:
                    bits[row, col] = negative_zero
                pruned += 1
