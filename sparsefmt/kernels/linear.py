"""`linear` and `@`: the arguments checked, the dtypes of sums and result, the bias."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from sparsefmt.dtypes import DOUBLE, SINGLE, SUMMED_IN_DOUBLE, DType
from sparsefmt.kernels.multiply import multiply
from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.scaled import expect_eight_bits, multiply_scaled
from sparsefmt.kernels.widening import expect_product
from sparsefmt.scales import Scaling
from sparsefmt.threads import num_threads

_HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def linear(
    x: Any,
    w: Operand,
    bias: Any = None,
    out: np.ndarray | None = None,
    threads: int | None = None,
    scaling: Scaling | None = None,
) -> np.ndarray:
    """The product behind `sparsefmt.linear`, which documents it."""
    x = np.asarray(x)
    shape = x.shape
    if not shape or shape[-1] != w.cols:
        raise ValueError(f"x has shape {shape}; its last dimension must be the {w.cols:,} columns of the weights")
    accumulator, result_dtype = product_dtypes(w.dtype, x.dtype)
    if scaling is not None and scaling.eight_bits:
        expect_eight_bits(w.dtype)
        # sums are integers, whatever x is
        accumulator, result_dtype = SINGLE, x.dtype if x.dtype in _HALVES else SINGLE
    if len(shape) == 2 and result_dtype is accumulator and bias is out is threads is scaling is None:
        # small products take about as long as all that is below
        y = np.empty((shape[0], w.rows), accumulator)
        multiply(x, w, y, None)
        return y
    shape = (*shape[:-1], w.rows)
    if bias is not None:
        bias = np.asarray(bias)
        if bias.shape != (w.rows,):
            raise ValueError(f"bias has shape {bias.shape}; the weights have {w.rows:,} rows")
    if out is not None:
        _check_out(out, x, bias, shape, result_dtype)
    if threads is not None:
        threads = num_threads(threads)

    if x.ndim != 2:
        x = x.reshape(math.prod(shape[:-1]), w.cols)
    rounded = result_dtype != accumulator
    y = np.empty((x.shape[0], w.rows), accumulator) if out is None or rounded else out.reshape(x.shape[0], w.rows)
    if scaling is None:
        multiply(x, w, y, threads)
    else:
        multiply_scaled(x, w, y, scaling, threads)
    if bias is not None:
        y += bias.astype(accumulator, copy=False)
    if out is None:
        result = y.reshape(shape)
        return result.astype(result_dtype) if rounded else result
    if rounded:
        out[...] = y.reshape(shape)
    return out


def matmul(w: Operand, x: np.ndarray) -> np.ndarray:
    """w @ x for x (cols, n): (rows, n), each column with the bits that it would have alone."""
    accumulator, result_dtype = product_dtypes(w.dtype, x.dtype)
    y = np.empty((w.rows, x.shape[1]), accumulator)
    multiply(x.T, w, y.T, None)
    return y.astype(result_dtype, copy=False)


@cache
def product_dtypes(weights: DType, x: np.dtype) -> tuple[np.dtype, np.dtype]:
    """dtypes of the sums and of the result.

    Sums: float64 if either side is float64 or an integer of 32 bits or more, else float32. Result: the same; or the
    dtype of x, if that is float16 or bfloat16 and the weights are neither a wider float nor the other of the two.
    """
    expect_product(weights)
    if x.kind == "c" or (x.kind not in "biuf" and x.name not in _extended_floats()):
        raise ValueError(f"x has dtype {x}; it must be real numbers")
    wide = weights.name in SUMMED_IN_DOUBLE
    wide |= x.kind in "iuf" and x.itemsize * 8 > 16 and x.newbyteorder("=") != SINGLE
    if not wide and x in _HALVES and weights.name != "F32" and weights.numpy not in set(_HALVES) - {x}:
        return SINGLE, x
    return (DOUBLE, DOUBLE) if wide else (SINGLE, SINGLE)


def _extended_floats() -> tuple[str, ...]:
    return ("bfloat16", *(name for name in dir(ml_dtypes) if name.startswith("float")))


def _check_out(
    out: np.ndarray, x: np.ndarray, bias: np.ndarray | None, shape: tuple[int, ...], dtype: np.dtype
) -> None:
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype:
        got = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out must be a numpy array {dtype} {shape}, not {got}")
    if not (out.flags.c_contiguous and out.flags.writeable and out.flags.aligned):
        raise ValueError("out must be C-contiguous, aligned and writable")
    if np.may_share_memory(out, x) or (bias is not None and np.may_share_memory(out, bias)):
        raise ValueError("out must not share memory with x or bias")
