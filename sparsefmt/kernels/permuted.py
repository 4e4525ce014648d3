"""Product with layout `permuted`: eight rows in eight lanes, one chain of fused multiply-adds per row."""

from __future__ import annotations

import numpy as np
from numba import njit

from sparsefmt.kernels.simd import extract, fma, gather8, load8, zeros8
from sparsefmt.kernels.widening import widen


@njit(nogil=True, cache=True)
def product(
    values: np.ndarray,
    columns: np.ndarray,
    row_permutation: np.ndarray,
    row_counts: np.ndarray,
    slice_offsets: np.ndarray,
    kind: int,
    table: np.ndarray,
    begin: int,
    end: int,
    x: np.ndarray,
    y: np.ndarray,
) -> None:
    """y[t, r] = sum over stored (r, c) of values * x[t, c], for the rows of slices `begin` to `end`.

    Args:
        values, columns: (slots * 8,).
        x: activations (tokens, at least cols).
        y: (tokens, rows of the tile), any strides.
    """
    rows = row_permutation.shape[0]
    weights = np.empty(8 * np.int64(slice_offsets[1] if slice_offsets.shape[0] > 1 else 0), x.dtype)
    zero = x.dtype.type(0)
    for slice_ in range(begin, end):
        first = np.int64(slice_offsets[slice_]) * 8
        slots = np.int64(slice_offsets[slice_ + 1]) - np.int64(slice_offsets[slice_])
        for index in range(slots * 8):
            weights[index] = widen(values[first + index], kind, table)
        lanes = min(8, rows - slice_ * 8)
        # rows are sorted by count: up to the last one's, no lane is padding
        full = np.int64(row_counts[slice_ * 8 + 7]) if lanes == 8 else 0
        for token in range(x.shape[0]):
            activations = x[token]
            sums = zeros8(x)
            for slot in range(full):
                sums = fma(load8(weights, slot * 8), gather8(activations, columns, first + slot * 8), sums)
            for lane in range(lanes):
                total = extract(sums, lane)
                for slot in range(full, np.int64(row_counts[slice_ * 8 + lane])):
                    total = fma(
                        weights[slot * 8 + lane], activations[np.int64(columns[first + slot * 8 + lane])], total
                    )
                # adding +0.0 makes a zero result positive
                y[token, np.int64(row_permutation[slice_ * 8 + lane])] = total + zero
