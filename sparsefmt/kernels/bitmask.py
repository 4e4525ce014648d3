"""Product with layout `bitmask`: sixteen partial sums per row.

Values are expanded to their columns in registers where the processor has an instruction for it and there are few
tokens, else in cache, a few rows at a time. Both add in the same order, so the bits of a result do not depend on which
was used.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from sparsefmt.kernels.simd import expand16, fma, load16, popcount16, tree_sum, where_nonzero, zeros16


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


@njit(nogil=True, cache=True)
def product_in_registers(
    mask: np.ndarray,
    row_offsets: np.ndarray,
    values: np.ndarray,
    begin: int,
    end: int,
    x: np.ndarray,
    finite: bool,
    y: np.ndarray,
    nothing: int,
) -> None:
    """The same as `product`, to the bit, expanding anew for each token. `nothing` is 0: see `simd.expand16`."""
    padded = x.shape[1]
    flat = x.reshape(-1)
    zero = x.dtype.type(0)
    for token in range(x.shape[0]):
        base = token * padded
        for first in range(begin, end, 4):
            # four rows at once, since each sum alone would wait for its last addition; the last rows are done twice
            row1, row2, row3 = min(first + 1, end - 1), min(first + 2, end - 1), min(first + 3, end - 1)
            stored0, stored1 = np.int64(row_offsets[first]), np.int64(row_offsets[row1])
            stored2, stored3 = np.int64(row_offsets[row2]), np.int64(row_offsets[row3])
            sum0, sum1, sum2, sum3 = zeros16(x), zeros16(x), zeros16(x), zeros16(x)
            for block in range(padded // 16):
                shift, word = np.uint64(16 * (block & 3)), block >> 2
                mask0, mask1 = mask[first, word] >> shift, mask[row1, word] >> shift
                mask2, mask3 = mask[row2, word] >> shift, mask[row3, word] >> shift
                activations = load16(flat, base + block * 16, x)
                weights0, weights1 = (
                    expand16(values, stored0, mask0, nothing, x),
                    expand16(values, stored1, mask1, nothing, x),
                )
                weights2, weights3 = (
                    expand16(values, stored2, mask2, nothing, x),
                    expand16(values, stored3, mask3, nothing, x),
                )
                if finite:
                    sum0, sum1 = fma(weights0, activations, sum0), fma(weights1, activations, sum1)
                    sum2, sum3 = fma(weights2, activations, sum2), fma(weights3, activations, sum3)
                else:
                    sum0, sum1 = _fma_stored(weights0, activations, sum0), _fma_stored(weights1, activations, sum1)
                    sum2, sum3 = _fma_stored(weights2, activations, sum2), _fma_stored(weights3, activations, sum3)
                stored0, stored1 = stored0 + popcount16(mask0), stored1 + popcount16(mask1)
                stored2, stored3 = stored2 + popcount16(mask2), stored3 + popcount16(mask3)
            # adding +0.0 makes a zero result positive
            y[token, first - begin] = tree_sum(sum0) + zero
            y[token, row1 - begin] = tree_sum(sum1) + zero
            y[token, row2 - begin] = tree_sum(sum2) + zero
            y[token, row3 - begin] = tree_sum(sum3) + zero
