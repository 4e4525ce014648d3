"""Products of scaled weights, and of activations rounded to eight bits: SPEC.md, "Scaled weights".

Sums of a group of columns are made by the same kernels as other products, then multiplied by the scales of their rows.
Products of activations and weights of eight bits are integers. Their sums are exact in float32 up to 2**24, so kernels
for float32 make them, or else in float64.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.dtypes import DOUBLE, SINGLE, DType
from sparsefmt.errors import UnsupportedError
from sparsefmt.jit import jit
from sparsefmt.kernels.multiply import multiply
from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.simd import fma
from sparsefmt.scales import Scaling

LARGEST = 127
"""Activations of eight bits are -127 to 127."""

_EXACT_IN_SINGLE = 1 << 24
"""Integers up to this are exact in float32."""


def expect_eight_bits(dtype: DType) -> None:
    """Refuse weights that are not int8, for activations in eight bits. Raises UnsupportedError."""
    if dtype.name != "I8":
        raise UnsupportedError(
            "dtype-product", f"activations='int8' needs weights of int8; these are {dtype.name}: quantize them first"
        )


def multiply_scaled(x: np.ndarray, w: Operand, y: np.ndarray, scaling: Scaling, threads: int | None) -> None:
    """Like `multiply`, with scales; y is C-contiguous, and float32 for activations in eight bits.

    Raises:
        UnsupportedError: activations in eight bits, but weights of another type.
    """
    tokens = x.shape[0]
    if scaling.eight_bits:
        expect_eight_bits(w.dtype)
        rounded, token_scales = round_to_eight_bits(x, scaling.input_scale)
        sums_dtype = SINGLE if sums_are_exact(w) else DOUBLE
        x = rounded.astype(sums_dtype, copy=False)
    else:
        token_scales, sums_dtype = None, y.dtype
        x = x.astype(sums_dtype, copy=False)
    scales = scaling.scales
    groups = 1 if scales is None else scales.groups
    y[...] = 0
    width = w.cols // groups if w.cols else 0
    for group in range(groups):
        part = x
        if groups > 1:
            # zeros elsewhere change no bit of the sums of these columns
            part = np.zeros_like(x)
            these = slice(group * width, (group + 1) * width)
            part[:, these] = x[:, these]
        sums = np.empty((tokens, w.rows), sums_dtype)
        multiply(part, w, sums, threads)
        factors = np.ones(w.rows, y.dtype) if scales is None else scales.values[group].astype(y.dtype)
        _add_group(sums.astype(y.dtype, copy=False), factors, y)
    if token_scales is not None:
        with np.errstate(all="ignore"):
            y *= token_scales[:, None]
    y += y.dtype.type(0)


@jit
def _add_group(sums, factors, totals):
    """totals = fma(sums, factors, totals) with one rounding; (tokens, rows), (rows), (tokens, rows)."""
    for token in range(sums.shape[0]):
        for row in range(sums.shape[1]):
            totals[token, row] = fma(sums[token, row], factors[row], totals[token, row])


def round_to_eight_bits(x: np.ndarray, input_scale: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Activations (tokens, cols) as integers of -127 to 127, in float32, and the scale of each token, float32.

    A token with NaN or Inf is all zeros, and its scale is NaN.
    """
    x = x.astype(SINGLE, copy=False)
    largest = np.abs(x).max(axis=1, initial=0)
    finite = np.isfinite(largest)
    # Inf is no scale: what it belongs to is NaN
    scales = largest / SINGLE.type(LARGEST) if input_scale is None else np.full(x.shape[0], input_scale, SINGLE)
    divisors = np.where(finite & (scales > 0), scales, SINGLE.type(np.inf))
    with np.errstate(all="ignore"):
        rounded = np.rint(x / divisors[:, None])
    rounded = np.clip(rounded, -LARGEST, LARGEST)
    rounded[~finite] = 0
    return rounded, np.where(finite, scales, SINGLE.type(np.nan))


def sums_are_exact(w: Operand) -> bool:
    """Whether sums of weights of eight bits times activations of eight bits are exact in float32, for any activations.

    Cost: one read of the weights, made dense tile by tile, the first time.
    """
    if w.sums_are_exact is None:
        largest = 0
        for tile in w.tiles:
            magnitudes = np.abs(tile.to_dense(0, tile.rows).view(np.int8).astype(np.int16))
            largest = max(largest, int(magnitudes.sum(axis=1, dtype=np.int64).max(initial=0)))
        w.sums_are_exact = largest * LARGEST <= _EXACT_IN_SINGLE
    return w.sums_are_exact
