"""Products of scaled weights, and of activations rounded to eight bits: SPEC.md, "Scaled weights".

Sums are made by the same kernels as other products. If there is one scale for each row, they are multiplied by it
afterwards. If columns are in groups, kernels do that at the end of each group.

Products of activations and weights of eight bits are integers. Their sums are exact in float32 up to 2**24, so kernels
for float32 make them, or else for float64.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.dtypes import DOUBLE, SINGLE, DType
from sparsefmt.errors import UnsupportedError
from sparsefmt.kernels import panel
from sparsefmt.kernels.dots import is_biased
from sparsefmt.kernels.eight_bits import LARGEST, round_activations
from sparsefmt.kernels.multiply import multiply
from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.plans.bitmask_and_dense import MOST_GROUP_COLS, dots_are_faster
from sparsefmt.kernels.recipe import rows_of_dots
from sparsefmt.kernels.scale_sums import add_scaled, multiply_rows, scale, scale_eight_bits
from sparsefmt.scales import Scales, Scaling

_EXACT = 1 << 24
"""Integers up to this are exact in float32."""

_MOST_EXACT_COLS = _EXACT // (LARGEST * 128)
"""Columns whose products of eight bits have such a sum, whatever they are."""


def expect_eight_bits(dtype: DType) -> None:
    """Refuse activations in eight bits for weights that are not int8.

    Raises:
        UnsupportedError: they are not (`activations-dtype`).
    """
    if dtype.name != "I8":
        raise UnsupportedError(
            "activations-dtype",
            f"activations='int8' needs weights of int8; these are {dtype.name}: quantize them first",
        )


def multiply_scaled(x: np.ndarray, w: Operand, y: np.ndarray, scaling: Scaling, threads: int | None) -> None:
    """Like `multiply`, with scales; y is C-contiguous, and float32 for activations in eight bits.

    Raises:
        UnsupportedError: activations in eight bits, but weights of another type.
    """
    scales, token_scales, sums_dtype, of_dots = scaling.scales, None, y.dtype, False
    if scaling.eight_bits:
        expect_eight_bits(w.dtype)
        groups = 1 if scales is None else scales.groups
        of_dots = dots_are_faster(w.matrix._replace(groups=groups), x.shape[0])
        of_dots &= groups == 1 or w.cols // groups <= MOST_GROUP_COLS
        x, token_scales = round_activations(x, scaling.input_scale, np.dtype(np.int8) if of_dots else SINGLE)
        if not of_dots and not sums_are_exact(w, groups):
            sums_dtype = DOUBLE
    if scales is not None and scales.groups > 1:
        has_kernels = w.layout == "permuted" or w.cols // scales.groups <= MOST_GROUP_COLS
        done = False
        if sums_dtype == y.dtype and has_kernels:
            grouped = w.with_groups(scales, y.dtype)
            done = multiply(x, with_row_sums(grouped, w) if of_dots else grouped, y, threads, of_dots)
        if not done:
            _multiply_by_group(x.astype(sums_dtype, copy=False), w, y, scales, threads)
        if token_scales is not None:
            with np.errstate(all="ignore"):
                y *= token_scales[:, None]
                y += np.float32(0)
        return
    sums = y if sums_dtype == y.dtype else np.empty(y.shape, sums_dtype)
    multiply(x, with_row_sums(w, w) if of_dots else w, sums, threads, of_dots)
    factors = np.ones(w.rows, y.dtype) if scales is None else scales.values[0].astype(y.dtype, copy=False)
    if token_scales is None:
        scale(y, factors)
    else:
        scale_eight_bits(sums, factors, token_scales, y)


def with_row_sums(w: Operand, whole: Operand) -> Operand:
    """The same matrix with what kernels for integers of eight bits need beside it: remembered.

    Args:
        whole: it without scales of groups.

    Cost: where activations are made 128 too large, a product with a token for each group of columns, the first time.
    """
    if not is_biased(panel.dots_way()):
        return w
    if w.with_sums is None:
        groups, nothing = w.matrix.groups, np.zeros((1, w.rows), np.int32)
        # 128 is added to activations: these are 1 in the columns of their group, and 0 elsewhere
        x = np.full((groups, rows_of_dots(w.cols)), -128, np.int8)
        for group in range(groups):
            x[group, group * (w.cols // groups) : (group + 1) * (w.cols // groups)] = -127
        sums = np.empty((groups, w.rows), SINGLE)
        multiply(x, whole.with_row_sums(nothing), sums, 1, True)
        # sums of 32 bits wrap around
        w.with_sums = w.with_row_sums((sums.astype(np.int64) * 128).astype(np.int32))
    return w.with_sums


def _multiply_by_group(x: np.ndarray, w: Operand, y: np.ndarray, scales: Scales, threads: int | None) -> None:
    """One group of columns after the other, for those that no kernel takes: slow. Sums have the dtype of x."""
    y[...] = 0
    width = w.cols // scales.groups
    for group in range(scales.groups):
        # zeros elsewhere change no bit of the sums of these columns, unless a weight there is infinite
        these, part, sums = slice(group * width, (group + 1) * width), np.zeros_like(x), np.empty(y.shape, x.dtype)
        part[:, these] = x[:, these]
        multiply(part, w, sums, threads)
        add_scaled(sums.astype(y.dtype, copy=False), scales.values[group].astype(y.dtype, copy=False), y)
    rows = rows_with_infinity(w)
    if rows.size:
        multiply_rows(dense_rows(w, rows).astype(y.dtype), x, scales.values.astype(y.dtype), rows, y)
    y += y.dtype.type(0)


def rows_with_infinity(w: Operand) -> np.ndarray:
    """int64: the rows that have an infinite weight.

    Cost: one read of the weights, made dense tile by tile, the first time; none for integers.
    """
    if w.infinite_rows is None:
        found = [np.empty(0, np.int64)]
        if w.dtype.numpy.kind not in "iub":
            for number, tile in enumerate(w.tiles):
                numbers = tile.to_dense(0, tile.rows).view(w.dtype.numpy).astype(np.float64)
                found.append(np.flatnonzero(np.isinf(numbers).any(axis=1)) + number * w.tiling.tile_rows)
        w.infinite_rows = np.concatenate(found)
    return w.infinite_rows


def dense_rows(w: Operand, rows: np.ndarray) -> np.ndarray:
    """Some rows of a matrix: (rows, cols)."""
    tiles, within = np.divmod(rows, w.tiling.tile_rows)
    found = [w.tiles[tile].to_dense(row, row + 1) for tile, row in zip(tiles.tolist(), within.tolist(), strict=True)]
    return np.concatenate(found).view(w.dtype.numpy)


def sums_are_exact(w: Operand, groups: int = 1) -> bool:
    """Whether sums of weights of eight bits times activations of eight bits are exact in float32, for any activations.

    `groups`: of columns, each of which has a sum.

    Cost: where there are many columns, one read of the weights, made dense tile by tile, the first time.
    """
    if w.cols // groups <= _MOST_EXACT_COLS:
        return True
    if w.sums_are_exact is None:
        largest = 0
        for tile in w.tiles:
            magnitudes = np.abs(tile.to_dense(0, tile.rows).view(np.int8).astype(np.int16))
            largest = max(largest, int(magnitudes.sum(axis=1, dtype=np.int64).max(initial=0)))
        w.sums_are_exact = largest * LARGEST <= _EXACT
    return w.sums_are_exact
