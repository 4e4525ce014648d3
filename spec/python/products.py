"""Section 6 of SPEC.md: y = W x for one tile, to the bit."""

from __future__ import annotations

import math

import numpy as np
from dtypes import DType, numbers
from layouts import Tile

SUMMED_IN_DOUBLE = {"F64", "I32", "U32", "I64", "U64"}


def type_of_sums(dtype: DType, x: np.dtype) -> np.dtype:
    """A"""
    if dtype.name == "C64" or x.kind == "c":
        raise ValueError(f"{dtype.name} times {x} has no product")
    wide = dtype.name in SUMMED_IN_DOUBLE or x == np.float64 or (x.kind in "iu" and x.itemsize >= 4)
    return np.dtype(np.float64 if wide else np.float32)


def multiply_tile(layout: str, dtype: DType, tile: Tile, x: np.ndarray) -> np.ndarray:
    """The elements of y of the rows of a tile; x is of type A."""
    with np.errstate(all="ignore"):
        values = numbers(dtype, tile.arrays["values"], x.dtype)
        return (multiply_permuted if layout == "permuted" else multiply_sixteen)(tile, values, x)


def multiply_permuted(tile: Tile, values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """One chain for each row: slot by slot, at once for all rows that have so many elements."""
    counts, position = tile.arrays["row_counts"], np.arange(tile.shape[0])
    first = tile.arrays["slice_offsets"].astype(np.int64)[position // 8] * 8 + position % 8
    s = np.zeros(len(counts), x.dtype)
    for k in range(int(counts[0])):
        rows = int((counts > k).sum())  # counts never ascend: it is the first rows
        lanes = first[:rows] + 8 * k
        s[:rows] = fma(values[lanes], x[tile.arrays["columns"][lanes]], s[:rows])
    y = np.empty_like(s)
    y[tile.arrays["row_permutation"]] = s + x.dtype.type(0)
    return y


def multiply_sixteen(tile: Tile, values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`bitmask` and `dense`: sixteen partial sums for each row, sixteen columns at a time, then a tree."""
    r, c = tile.shape
    if tile.stored is None:
        matrix, stored = values[: r * c].reshape(r, c), np.ones((r, c), bool)
    else:
        matrix, stored = np.zeros((r, c), x.dtype), np.zeros((r, c), bool)
        matrix[tile.stored[:2]], stored[tile.stored[:2]] = values, True
    p = np.zeros((r, 16), x.dtype)
    for j in range(0, c, 16):
        here = np.nonzero(stored[:, j : j + 16])
        p[here] = fma(matrix[:, j : j + 16][here], x[j : j + 16][here[1]], p[here])
    for h in 8, 4, 2, 1:
        p[:, :h] = p[:, :h] + p[:, h : 2 * h]
    return p[:, 0] + x.dtype.type(0)


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
