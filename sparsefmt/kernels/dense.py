"""Product with layout `dense`: every element is multiplied, in sixteen partial sums per row."""

from __future__ import annotations

import numpy as np
from numba import njit

from sparsefmt.kernels.simd import fma, load16, tree_sum, zeros16
from sparsefmt.kernels.widening import widen


@njit(nogil=True, cache=True)
def product(
    values: np.ndarray, kind: int, table: np.ndarray, begin: int, end: int, x: np.ndarray, y: np.ndarray
) -> None:
    """y[t, r - begin] = sum over c of values[r, c] * x[t, c], for rows `begin` to `end`.

    Args:
        values: bits (rows, cols).
        x: activations (tokens, cols rounded up to 16), zeros behind the columns.
        y: (tokens, end - begin), any strides.
    """
    cols = values.shape[1]
    padded = x.shape[1]
    # one allocation for four rows: each partial sum alone would wait for its last addition
    weights = np.zeros(4 * padded, x.dtype)
    flat = x.reshape(-1)
    for first in range(begin, end, 4):
        for row in range(first, min(first + 4, end)):
            start = (row - first) * padded
            for col in range(cols):
                weights[start + col] = widen(values[row, col], kind, table)
        for token in range(x.shape[0]):
            base = token * padded
            sum0, sum1, sum2, sum3 = zeros16(x), zeros16(x), zeros16(x), zeros16(x)
            for col in range(0, padded, 16):
                activations = load16(flat, base + col)
                sum0 = fma(load16(weights, col), activations, sum0)
                sum1 = fma(load16(weights, padded + col), activations, sum1)
                sum2 = fma(load16(weights, 2 * padded + col), activations, sum2)
                sum3 = fma(load16(weights, 3 * padded + col), activations, sum3)
            # adding +0.0 makes a zero result positive
            zero = x.dtype.type(0)
            y[token, first - begin] = tree_sum(sum0) + zero
            if first + 1 < end:
                y[token, first + 1 - begin] = tree_sum(sum1) + zero
            if first + 2 < end:
                y[token, first + 2 - begin] = tree_sum(sum2) + zero
            if first + 3 < end:
                y[token, first + 3 - begin] = tree_sum(sum3) + zero
