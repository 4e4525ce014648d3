"""Product with layout `bitmask`: rows are expanded in cache, then multiplied in sixteen partial sums each."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from sparsefmt.kernels.simd import fma, load16, tree_sum, where_nonzero, zeros16


@intrinsic
def _lowest_bit(typingctx, word):
    """Position of the lowest set bit of a nonzero uint64, as int64."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


@njit(nogil=True, inline="always")
def _fma_stored(weights, activations, sums):
    """fma in the lanes that hold a stored value."""
    return where_nonzero(weights, fma(weights, activations, sums), sums)


@njit(nogil=True, cache=True)
def product(
    mask: np.ndarray,
    row_offsets: np.ndarray,
    values: np.ndarray,
    begin: int,
    end: int,
    x: np.ndarray,
    finite: bool,
    y: np.ndarray,
) -> None:
    """y[t, r - begin] = sum over stored (r, c) of values * x[t, c], for rows `begin` to `end`.

    Args:
        mask: uint64 words (rows, words).
        values: (nnz,), as `kernel_values` gives them.
        x: activations (tokens, cols rounded up to 16), zeros behind the columns.
        finite: whether x has neither Inf nor NaN. Then multiplying by the zeros in between changes no bit of the
            result; otherwise they are skipped.
        y: (tokens, end - begin), any strides.
    """
    padded = x.shape[1]
    # four rows at once, since each sum alone would wait for its last addition
    weights = np.empty(4 * padded, values.dtype)
    flat = x.reshape(-1)
    one = np.uint64(1)
    zero = x.dtype.type(0)
    for first in range(begin, end, 4):
        weights[:] = values.dtype.type(0)
        for row in range(first, min(first + 4, end)):
            start = (row - first) * padded
            stored = np.int64(row_offsets[row])
            for index in range(mask.shape[1]):
                word = mask[row, index]
                while word != 0:
                    weights[start + index * 64 + _lowest_bit(word)] = values[stored]
                    stored += 1
                    word &= word - one
        for token in range(x.shape[0]):
            base = token * padded
            sum0, sum1, sum2, sum3 = zeros16(x), zeros16(x), zeros16(x), zeros16(x)
            if finite:
                for col in range(0, padded, 16):
                    activations = load16(flat, base + col, x)
                    sum0 = fma(load16(weights, col, x), activations, sum0)
                    sum1 = fma(load16(weights, padded + col, x), activations, sum1)
                    sum2 = fma(load16(weights, 2 * padded + col, x), activations, sum2)
                    sum3 = fma(load16(weights, 3 * padded + col, x), activations, sum3)
            else:
                for col in range(0, padded, 16):
                    activations = load16(flat, base + col, x)
                    sum0 = _fma_stored(load16(weights, col, x), activations, sum0)
                    sum1 = _fma_stored(load16(weights, padded + col, x), activations, sum1)
                    sum2 = _fma_stored(load16(weights, 2 * padded + col, x), activations, sum2)
                    sum3 = _fma_stored(load16(weights, 3 * padded + col, x), activations, sum3)
            # adding +0.0 makes a zero result positive
            y[token, first - begin] = tree_sum(sum0) + zero
            if first + 1 < end:
                y[token, first + 1 - begin] = tree_sum(sum1) + zero
            if first + 2 < end:
                y[token, first + 2 - begin] = tree_sum(sum2) + zero
            if first + 3 < end:
                y[token, first + 3 - begin] = tree_sum(sum3) + zero
