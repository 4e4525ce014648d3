"""From stored bits to what a kernel multiplies. Exact, except for integers of 64 bits."""

from __future__ import annotations

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.errors import UnsupportedError
from sparsefmt.layouts.memory import empty

_KERNEL_VIEWS = {"F32": np.float32, "F64": np.float64, "BF16": np.uint16, "F16": np.int16}
"""Types that kernels widen in registers, and the array type by which they know them (`simd.load8`)."""


def expect_product(dtype: DType) -> None:
    """Refuse complex64, which has no product here. Raises UnsupportedError."""
    if dtype.name == "C64":
        raise UnsupportedError("dtype-product", "complex64 weights can be stored but not multiplied")


def kernel_values(values: np.ndarray, dtype: DType, accumulator: np.dtype) -> np.ndarray:
    """A tile's `values` as a kernel takes them.

    float32, float64, bfloat16 and float16 are views. Others are converted to the accumulator's dtype by numpy and
    ml_dtypes, in memory of their own. Bits 0 give 0.0 in every prunable type.
    """
    if dtype.name in _KERNEL_VIEWS:
        return values.view(_KERNEL_VIEWS[dtype.name])
    converted = empty(values.size, accumulator)
    converted[:] = values.view(dtype.numpy)
    return converted
