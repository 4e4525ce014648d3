"""The geometry of tensors: what shapes there can be, and how a tensor is seen as a matrix. No I/O."""

from __future__ import annotations

from math import prod

from sparsefmt.dtypes import DType
from sparsefmt.errors import LimitError
from sparsefmt.limits import MAX_NDIM, MAX_TENSOR_BITS


def matrix_view(shape: tuple[int, ...], row_dims: int = 1) -> tuple[int, int]:
    """(rows, cols) of a tensor: the product of the first `row_dims` dimensions, and of the rest. (1, 1) for 0-d."""
    if row_dims == 1:
        return (shape[0], prod(shape[1:])) if shape else (1, 1)
    return prod(shape[:row_dims]), prod(shape[row_dims:])


def check_shape(shape: tuple[int, ...], dtype: DType) -> None:
    """Refuse a shape with too many dimensions or whose sizes do not fit 63 bits."""
    if len(shape) > MAX_NDIM:
        raise LimitError("shape-ndim", f"{len(shape)} dimensions; the limit is {MAX_NDIM}")
    if (prod(shape) or prod([size or 1 for size in shape])) * dtype.nbits > MAX_TENSOR_BITS:
        raise LimitError("shape-size", f"shape {list(shape)} of {dtype.name} is over {MAX_TENSOR_BITS:,} bits")
