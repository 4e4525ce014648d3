"""Activations rounded to integers of eight bits before a product.

SPEC.md, "Activations in eight bits", says how.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.dtypes import SINGLE
from sparsefmt.jit import jit
from sparsefmt.kernels.recipe import rows_of_dots

LARGEST = 127
"""Activations are -127 to 127."""

_MOST = np.float32(LARGEST)
_FINITE = np.int32(0x7F800000)
"""Bits of the magnitude of what is finite are below this."""


def round_activations(
    x: np.ndarray, input_scale: float | None, dtype: np.dtype = SINGLE
) -> tuple[np.ndarray, np.ndarray]:
    """Activations (tokens, cols) as integers of -127 to 127, and the scale of each token, float32.

    Args:
        dtype: float32; or int8, whose rows end with zeros up to `rows_of_dots`.

    A token with NaN or Inf is all zeros, and its scale is NaN. Two reads and one write.
    """
    x = np.ascontiguousarray(x, SINGLE)
    cols = x.shape[1] if dtype == SINGLE else rows_of_dots(x.shape[1])
    rounded, scales = np.empty((x.shape[0], cols), dtype), np.empty(x.shape[0], SINGLE)
    _round(x.view(np.int32).reshape(x.shape), x, rounded, scales, np.float32(input_scale or 0))
    return rounded, scales


@jit
def _round(bits, x, rounded, scales, input_scale):
    """`bits`: x as integers. input_scale: 0 for one of each token."""
    tokens, cols = x.shape
    for token in range(tokens):
        largest = np.int32(0)
        for col in range(cols):
            largest = max(largest, bits[token, col] & np.int32(0x7FFFFFFF))
        if largest >= _FINITE:
            scales[token] = np.float32(np.nan)
            for col in range(rounded.shape[1]):
                rounded[token, col] = 0
            continue
        scale = input_scale
        if scale == np.float32(0):
            scale = np.int32(largest).view(np.float32) / _MOST
        scales[token] = scale
        divisor = scale if scale > np.float32(0) else np.float32(np.inf)
        for col in range(cols):
            value = x[token, col] / divisor
            value = value if value < _MOST else _MOST
            value = value if value > -_MOST else -_MOST
            rounded[token, col] = np.rint(value)
        for col in range(cols, rounded.shape[1]):
            rounded[token, col] = 0
