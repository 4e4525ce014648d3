"""Product with layout `permuted`: one chain of fused multiply-adds per row, in ascending column order.

For few tokens the eight rows of a slice are the lanes of a vector; for more, sixteen tokens are. Both add in the same
order, so the bits of a result do not depend on which was used.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sparsefmt.kernels.simd import first_lanes, fma, gather8, load8, load16, spread16, store, zeros8, zeros16


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
            store(results, 0, sums)
            for lane in range(lanes):
                # adding +0.0 makes a zero result positive
                y[token, np.int64(row_permutation[slice_ * 8 + lane])] = results[lane] + zero


@njit(nogil=True, cache=True)
def product_of_many(
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
    """The same as `product`, to the bit, with the tokens in the lanes.

    Args:
        x: activations (ceil(tokens / 16), at least cols, 16): sixteen tokens at a time stay in cache for all rows.
        y: (tokens, rows of the tile), any strides.
    """
    rows = row_permutation.shape[0]
    block_size = x.shape[1] * 16
    activations = x.reshape(-1)
    results = np.empty(32, x.dtype)
    zero = x.dtype.type(0)
    for block in range(x.shape[0]):
        base = block * block_size
        token = block * 16
        tokens = min(16, y.shape[0] - token)
        for slice_ in range(begin, end):
            first = np.int64(slice_offsets[slice_]) * 8
            lanes = min(8, rows - slice_ * 8)
            # two rows at once, since one chain alone would wait for its last addition; the first has no fewer values
            for lane in range(0, lanes, 2):
                position = slice_ * 8 + lane
                count = np.int64(row_counts[position])
                both = np.int64(row_counts[position + 1]) if lane + 1 < lanes else 0
                sums, other_sums = zeros16(x), zeros16(x)
                for slot in range(first + lane, first + lane + both * 8, 8):
                    col, other_col = np.int64(columns[slot]) * 16, np.int64(columns[slot + 1]) * 16
                    sums = fma(spread16(values, slot, x), load16(activations, base + col, x), sums)
                    other_sums = fma(
                        spread16(values, slot + 1, x), load16(activations, base + other_col, x), other_sums
                    )
                for slot in range(first + lane + both * 8, first + lane + count * 8, 8):
                    col = np.int64(columns[slot]) * 16
                    sums = fma(spread16(values, slot, x), load16(activations, base + col, x), sums)
                store(results, 0, sums)
                store(results, 16, other_sums)
                row = np.int64(row_permutation[position])
                for index in range(tokens):
                    # adding +0.0 makes a zero result positive
                    y[token + index, row] = results[index] + zero
                if lane + 1 < lanes:
                    row = np.int64(row_permutation[position + 1])
                    for index in range(tokens):
                        y[token + index, row] = results[16 + index] + zero
