"""The instruction that loads what lies at sixteen columns at once, and whether it is fast here.

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
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.isa import ISA
from sparsefmt.jit import jit
from sparsefmt.kernels.kinds import F32, WIDTH
from sparsefmt.kernels.llvm import fused, stored_type, widened
from sparsefmt.kernels.permuted_slots import Columns, fma_rows
from sparsefmt.kernels.simd import Vectors, all_zero, packed, unpacked, zeros
from sparsefmt.layouts.memory import empty
from sparsefmt.llvm import I1, I8, I32, call, concatenated, constant_of, lanes_of, load_as
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


@intrinsic
def load_columns(typingctx, address):
    """The columns of a slot of `permuted`, of 16 bits."""
    result = Columns(False)

    def codegen(context, builder, signature, args):
        return load_as(builder, args[0], result.llvm, 2)

    return result(types.int64), codegen


@intrinsic(prefer_literal=True)
def fma_gathered(typingctx, values, kind, columns, x, sums):
    """A slot of `permuted` for one token: sums[row] + values[row] * x[columns[row]] in 16 lanes."""
    stored = constant_of(kind)

    def codegen(context, builder, signature, args):
        (total,) = unpacked(builder, args[4], sums)
        weights = widened(builder, load_as(builder, args[0], stored_type(stored, 16), WIDTH[stored]), stored)
        indices = builder.zext(args[2], ir.VectorType(I32, 16))
        return packed(builder, [fused(builder, weights, _gathered(builder, args[3], indices, sums), total)])

    return sums(types.int64, kind, columns, types.int64, sums), codegen


def _gathered(builder, x, indices, vectors: Vectors):
    """The activations at sixteen columns, each below 2 to the power of 31."""
    single, base = vectors.itemsize == 4, builder.inttoptr(x, I8.as_pointer())
    lanes = (16 if single else 8) if ISA == "avx512" else (8 if single else 4)
    result = ir.VectorType(vectors.llvm.element, lanes)
    parts = []
    for first in range(0, 16, lanes):
        part = builder.shuffle_vector(indices, indices, lanes_of(list(range(first, first + lanes))))
        nothing = ir.Constant(result, None)
        if ISA == "avx512":
            every, scale = ir.Constant(ir.VectorType(I1, lanes), [1] * lanes), I32(vectors.itemsize)
            name = f"llvm.x86.avx512.mask.gather.{'dps' if single else 'dpd'}.512"
        else:
            words = ir.VectorType(ir.IntType(8 * vectors.itemsize), lanes)
            every, scale = builder.bitcast(ir.Constant(words, [-1] * lanes), result), I8(vectors.itemsize)
            name = f"llvm.x86.avx2.gather.d.{'ps' if single else 'pd'}.256"
        parts.append(call(builder, name, result, [nothing, base, part, every, scale]))
    return concatenated(builder, parts)


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
