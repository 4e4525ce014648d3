"""Product with layout `dense`: every element is multiplied, in sixteen partial sums per row."""

from __future__ import annotations

import numpy as np
from numba import njit

from sparsefmt.kernels.simd import fma, load16, tree_sum, zeros16


@njit(nogil=True, cache=True)
def product(values: np.ndarray, cols: int, begin: int, end: int, x: np.ndarray, y: np.ndarray) -> None:
    """y[t, r - begin] = sum over c of values[r, c] * x[t, c], for rows `begin` to `end`.

    Args:
        values: (rows * cols,), as `kernel_values` gives them.
        x: activations (tokens, cols rounded up to 16), zeros behind the columns.
        y: (tokens, end - begin), any strides.
    """
    padded = x.shape[1]
    whole = cols // 16 * 16
    flat = x.reshape(-1)
    zero = x.dtype.type(0)
    # the last columns of four rows, filled up with zeros
    tails = np.zeros(64, values.dtype)
    for first in range(begin, end, 4):
        # four rows at once, since each sum alone would wait for its last addition; the last rows are done twice
        row0, row1 = first * cols, min(first + 1, end - 1) * cols
        row2, row3 = min(first + 2, end - 1) * cols, min(first + 3, end - 1) * cols
        for col in range(whole, cols):
            tails[col - whole] = values[row0 + col]
            tails[col - whole + 16] = values[row1 + col]
            tails[col - whole + 32] = values[row2 + col]
            tails[col - whole + 48] = values[row3 + col]
        for token in range(x.shape[0]):
            base = token * padded
            sum0, sum1, sum2, sum3 = zeros16(x), zeros16(x), zeros16(x), zeros16(x)
            for col in range(0, whole, 16):
                activations = load16(flat, base + col, x)
                sum0 = fma(load16(values, row0 + col, x), activations, sum0)
                sum1 = fma(load16(values, row1 + col, x), activations, sum1)
                sum2 = fma(load16(values, row2 + col, x), activations, sum2)
                sum3 = fma(load16(values, row3 + col, x), activations, sum3)
            if whole < cols:
                activations = load16(flat, base + whole, x)
                sum0 = fma(load16(tails, 0, x), activations, sum0)
                sum1 = fma(load16(tails, 16, x), activations, sum1)
                sum2 = fma(load16(tails, 32, x), activations, sum2)
                sum3 = fma(load16(tails, 48, x), activations, sum3)
            # adding +0.0 makes a zero result positive
            y[token, first - begin] = tree_sum(sum0) + zero
            y[token, min(first + 1, end - 1) - begin] = tree_sum(sum1) + zero
            y[token, min(first + 2, end - 1) - begin] = tree_sum(sum2) + zero
            y[token, min(first + 3, end - 1) - begin] = tree_sum(sum3) + zero
