"""Section 6 of SPEC.md: y = W x for one tile, to the bit."""

from __future__ import annotations

import math

import numpy as np
from dtypes import DType, numbers
from layouts import Tile, dense_bytes

SUMMED_IN_DOUBLE = {"F64", "I32", "U32", "I64", "U64"}


def type_of_sums(dtype: DType, x: np.dtype) -> np.dtype:
    """A"""
    if dtype.name == "C64" or x.kind == "c":
        raise ValueError(f"{dtype.name} times {x} has no product")
    wide = dtype.name in SUMMED_IN_DOUBLE or x == np.float64 or (x.kind in "iu" and x.itemsize >= 4)
    return np.dtype(np.float64 if wide else np.float32)


def multiply_tile(dtype: DType, tile: Tile, x: np.ndarray) -> np.ndarray:
    """The elements of y of the rows of a tile, whatever its layout; x is of type A."""
    elements = np.frombuffer(dense_bytes(dtype, tile), f"<u{dtype.width}")
    with np.errstate(all="ignore"):
        w = numbers(dtype, elements, x.dtype)[: math.prod(tile.shape)].reshape(tile.shape)
        return multiply(w, x)


def multiply(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """One chain for each row: its first element that is not zero, its second, …, at once for all rows that have one."""
    counts, columns = (w != 0).sum(axis=1), np.nonzero(w)[1]
    first = np.cumsum(counts) - counts  # of each row, among the elements that are not zero
    s = np.zeros(len(w), x.dtype)
    for k in range(counts.max(initial=0)):
        rows = np.flatnonzero(counts > k)
        here = columns[first[rows] + k]
        s[rows] = fma(w[rows, here], x[here], s[rows])
    return s + x.dtype.type(0)


# --------------------------------------------------------------------------------------------------------------- fma


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c with one rounding, element by element."""
    if a.dtype == np.float64:
        return fma64(a, b, c).astype(np.float64)
    # binary32: the product is exact in binary64. The sum is rounded to odd there (an inexact one to the neighbour whose
    # last bit is 1); of that, the rounding to binary32 makes what it would make of the exact sum.
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    outwards = np.where((error > 0) == (total > 0), 1, -1)
    to_odd = np.where(np.isfinite(total) & (error != 0) & (bits % 2 == 0), outwards, 0)
    return (bits + to_odd).view(np.float64).astype(np.float32)


def fma64_of(a: float, b: float, c: float) -> float:
    """binary64: exactly, in integers, whose quotient Python rounds once, to nearest, ties to even."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return a * b + c
    if not math.isfinite(c):
        return c
    (an, ad), (bn, bd), (cn, cd) = a.as_integer_ratio(), b.as_integer_ratio(), c.as_integer_ratio()
    numerator, denominator = an * bn * cd + cn * ad * bd, ad * bd * cd
    if numerator == 0:
        return a * b + c  # exact, and has the right sign
    try:
        return numerator / denominator
    except OverflowError:
        return math.inf if numerator > 0 else -math.inf


fma64 = np.frompyfunc(fma64_of, 3, 1)
