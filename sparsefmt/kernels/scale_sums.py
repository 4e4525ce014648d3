"""Sums multiplied by the scales of rows and of tokens, with the roundings that SPEC.md fixes."""

from __future__ import annotations

import numpy as np

from sparsefmt.jit import jit
from sparsefmt.kernels.simd import fma


@jit
def scale(y, factors):
    """y = y * factors + 0 in place; (tokens, rows), (rows)."""
    for token in range(y.shape[0]):
        for row in range(y.shape[1]):
            y[token, row] = y[token, row] * factors[row] + np.float32(0)


@jit
def scale_eight_bits(sums, factors, token_scales, y):
    """y = (sums * factors) * token_scales + 0, sums being integers.

    sums, y: (tokens, rows); factors: (rows); token_scales: (tokens).
    """
    for token in range(sums.shape[0]):
        of_token = token_scales[token]
        for row in range(sums.shape[1]):
            y[token, row] = np.float32(sums[token, row]) * factors[row] * of_token + np.float32(0)


@jit
def add_scaled(sums, factors, totals):
    """totals = fma(sums, factors, totals) with one rounding; (tokens, rows), (rows), (tokens, rows)."""
    for token in range(sums.shape[0]):
        for row in range(sums.shape[1]):
            totals[token, row] = fma(sums[token, row], factors[row], totals[token, row])


@jit
def multiply_rows(weights, x, scales, rows, y):
    """Some rows of y (tokens, all rows), element after element, without the last addition of 0.

    weights: (rows, cols), of the type of the sums, as x and scales (groups, all rows) are.
    """
    width = weights.shape[1] // scales.shape[0]
    for token in range(x.shape[0]):
        for number, row in enumerate(rows):
            total = y.dtype.type(0)
            for group in range(scales.shape[0]):
                sum_of_group = y.dtype.type(0)
                for col in range(group * width, (group + 1) * width):
                    if weights[number, col] != 0:
                        sum_of_group = fma(weights[number, col], x[token, col], sum_of_group)
                total = fma(sum_of_group, scales[group, row], total)
            y[token, row] = total
