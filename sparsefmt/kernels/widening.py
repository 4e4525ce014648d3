"""Values of types that kernels do not widen in registers, widened in memory. Exact, except for integers of 64 bits."""

from __future__ import annotations

import numpy as np

from sparsefmt.dtypes import DOUBLE, DType, unpack
from sparsefmt.errors import UnsupportedError
from sparsefmt.kernels.job import PIECES, TABLE
from sparsefmt.kernels.operand import VALUES, Operand
from sparsefmt.kernels.plans.contract import Plan
from sparsefmt.kernels.scratch import room
from sparsefmt.layouts.memory import empty


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


def run_widened(plan: Plan, w: Operand, units: tuple[np.ndarray, int, int], accumulator: np.dtype) -> None:
    """Run a plan over pieces `lo` to `hi` of some, (pieces, lo, hi), one tile after the other, whose values are first
    widened in memory. Slower."""
    pieces, lo, hi = units
    memory = room("weights", plan.scratch, DOUBLE)
    for tile, begin, end in pieces[lo:hi].tolist():
        values = widened_values(w.tiles[tile]["values"], w.dtype, w.height(tile) * w.cols, accumulator)
        line, piece = w.table[tile].copy(), np.array([0, begin, end], np.int64)
        line[VALUES] = values.ctypes.data
        job = plan.job[:]
        job[TABLE // 8], job[PIECES // 8] = line.ctypes.data, piece.ctypes.data
        plan.kernel(job.buffer_info()[0], 0, 1, memory.address)
