"""Whether products use the instruction that loads what lies at sixteen columns at once (`gathered.py`).

On Intel's newer processors it is twice as fast as loads that are inserted one by one; on AMD's it is slower, and on
some of Intel's, from Skylake to Ice Lake, microcode made it slow. The name of a processor does not tell. So the first
product of a process that could use it times both, in a third of a millisecond. The bits are the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from sparsefmt.isa import ISA
from sparsefmt.jit import jit
from sparsefmt.kernels.gathered import fma_gathered, load_columns
from sparsefmt.kernels.kinds import F32
from sparsefmt.kernels.permuted_slots import fma_rows
from sparsefmt.kernels.simd import all_zero, zeros
from sparsefmt.layouts.memory import empty
from sparsefmt.positions.masks import SLICE_ROWS

ENVIRONMENT_VARIABLE = "SPARSEFMT_GATHER"
"""1 or 0: use the instruction, or do not, without timing it."""

WORTH = 0.95
"""It is used if it takes less than this part of the time of inserted loads."""

_SLOTS, _PASSES, _TURNS = 256, 8, 9
"""What is timed: slots of sixteen columns, which stay in the first-level cache, so many times; and how often."""


def exists() -> bool:
    """Whether this process may use it."""
    return ISA != "portable"


@cache
def is_fast() -> bool:
    """Whether kernels use it.

    Raises:
        ValueError: SPARSEFMT_GATHER is neither 0 nor 1.
    """
    setting = os.environ.get(ENVIRONMENT_VARIABLE) or None
    if setting not in (None, "0", "1"):
        raise ValueError(f"{ENVIRONMENT_VARIABLE} must be 0 or 1, not {setting!r}")
    if not exists():
        return False
    return share_of_time() < WORTH if setting is None else setting == "1"


@cache
def share_of_time() -> float:
    """The time that it takes over that of inserted loads. Measured once."""
    random = np.random.default_rng(0)
    x = random.standard_normal(1 << 12).astype(np.float32)
    columns = random.integers(0, x.size, _SLOTS * SLICE_ROWS).astype(np.uint16)
    values = empty(columns.size, x.dtype)
    values[:] = 1
    fastest = [np.inf, np.inf]
    for turn in range(2 * _TURNS):
        start = time.perf_counter()
        _pass(turn % 2 == 1)(values.ctypes.data, columns.ctypes.data, x.ctypes.data, _SLOTS, _PASSES)
        fastest[turn % 2] = min(fastest[turn % 2], time.perf_counter() - start)
    return fastest[1] / fastest[0]


@cache
def _pass(instruction: bool) -> Callable[..., Any]:
    """What is timed: a slice is multiplied `passes` times, with the instruction or by inserted loads."""
    by_instruction = int(instruction)

    @jit
    def multiply(values, columns, x, slots, passes):
        sums = zeros(F32, 16, 1)
        for _ in range(passes):
            for slot in range(slots):
                weights, where = values + 4 * SLICE_ROWS * slot, columns + 2 * SLICE_ROWS * slot
                if by_instruction:
                    sums = fma_gathered(weights, F32, load_columns(where), x, sums)
                else:
                    sums = fma_rows(weights, F32, where, 0, 1, x, sums)
        return all_zero(sums)

    return multiply
