"""Product with layout `permuted`: eight rows in eight lanes, one chain of fused multiply-adds per row."""

from __future__ import annotations

import numpy as np
from numba import njit

from sparsefmt.kernels.simd import first_lanes, fma, gather8, load8, store8, zeros8


@njit(nogil=True, cache=True)
def product(
    values: np.ndarray,
    columns: np.ndarray,
    row_permutation: np.ndarray,
    row_counts: np.ndarray,
    slice_offsets: np.ndarray,
    begin: int,
    end: int,
    x: np.ndarray,
    y: np.ndarray,
) -> None:
    """y[t, r] = sum over stored (r, c) of values * x[t, c], for the rows of slices `begin` to `end`.

    Args:
        values: (slots * 8,), as `kernel_values` gives them.
        columns: (slots * 8,).
        x: activations (tokens, at least cols).
        y: (tokens, rows of the tile), any strides.
    """
    rows = row_permutation.shape[0]
    results = np.empty(8, x.dtype)
    zero = x.dtype.type(0)
    for slice_ in range(begin, end):
        first = np.int64(slice_offsets[slice_]) * 8
        last = np.int64(slice_offsets[slice_ + 1]) * 8
        lanes = min(8, rows - slice_ * 8)
        # rows are sorted by count: up to the last one's, no lane is padding
        full = first + (np.int64(row_counts[slice_ * 8 + 7]) * 8 if lanes == 8 else 0)
        for token in range(x.shape[0]):
            activations = x[token]
            sums = zeros8(x)
            for slot in range(first, full, 8):
                sums = fma(load8(values, slot, x), gather8(activations, columns, slot), sums)
            filled = lanes
            for slot in range(full, last, 8):
                while np.int64(row_counts[slice_ * 8 + filled - 1]) * 8 <= slot - first:
                    filled -= 1
                sums = first_lanes(filled, fma(load8(values, slot, x), gather8(activations, columns, slot), sums), sums)
            store8(results, 0, sums)
            for lane in range(lanes):
                # adding +0.0 makes a zero result positive
                y[token, np.int64(row_permutation[slice_ * 8 + lane])] = results[lane] + zero
