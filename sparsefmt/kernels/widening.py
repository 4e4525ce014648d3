"""Values of types that kernels do not widen in registers, widened in memory. Exact, except for integers of 64 bits."""

from __future__ import annotations

from array import array
from functools import partial

import numpy as np

from sparsefmt.dtypes import DType, unpack
from sparsefmt.errors import UnsupportedError
from sparsefmt.kernels.job import PIECES, TABLE
from sparsefmt.kernels.operand import VALUES, Operand, Work
from sparsefmt.kernels.plans.contract import Kernel
from sparsefmt.kernels.recipe import Recipe
from sparsefmt.kernels.scratch import room
from sparsefmt.layouts.memory import empty
from sparsefmt.threads import share


def expect_product(dtype: DType) -> None:
    """Refuse complex64, which has no product here. Raises UnsupportedError."""
    if dtype.name == "C64":
        raise UnsupportedError("dtype-product", "complex64 weights can be stored but not multiplied")


def widened_values(values: np.ndarray, dtype: DType, positions: int, accumulator: np.dtype) -> np.ndarray:
    """A tile's `values` in the accumulator's dtype, in memory of their own. Bits 0 give 0.0 in every prunable type.

    Args:
        positions: rows * cols of the tile; that many elements lie in `values` if they are packed below a byte.
    """
    if dtype.packed:
        values = unpack(values, dtype, positions)
    wide = empty(values.size, accumulator)
    wide[:] = values.view(dtype.numpy)
    return wide


def run_widened(recipe: Recipe, job: array[int], w: Operand, work: Work, how: tuple[np.dtype, int]) -> None:
    """Run a recipe, one tile after the other, whose values are first widened in memory. Slower.

    Args:
        how: what they are widened to, and on how many threads.
    """
    accumulator, threads = how
    whole, _ = job.buffer_info()
    pieces, bounds = work.pieces.tolist(), work.units.tolist()

    def run_unit(kernel: Kernel, unit: int) -> None:
        scratch = room("scratch", recipe.plan.scratch)
        for tile, begin, end in pieces[bounds[unit] : bounds[unit + 1]]:
            values = widened_values(w.tiles[tile]["values"], w.dtype, w.height(tile) * w.cols, accumulator)
            line, piece = w.table[tile].copy(), np.array([0, begin, end], np.int64)
            line[VALUES] = values.ctypes.data
            part = job[:]
            part[TABLE // 8], part[PIECES // 8] = line.ctypes.data, piece.ctypes.data
            kernel(part.buffer_info()[0], 0, 1, scratch.address)

    for kernel, _, units in recipe.steps:
        if units is not None:
            kernel(whole, 0, len(units) - 1, 0)
        else:
            share(partial(run_unit, kernel), len(bounds) - 1, threads)
