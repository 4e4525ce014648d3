"""A plan made ready for one operand: a block of integers from which native code runs it, as often as wanted.

`run_alone` does all of a small product in one call from Python. Threads share the steps of a large one (`team.py`).
"""

from __future__ import annotations

from array import array
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from sparsefmt.jit import jit
from sparsefmt.kernels.job import BYTES, ODD, RESULT, SOURCE, X, Y
from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.plans.contract import Across, Kernel, Plan
from sparsefmt.kernels.simd import I8, I64, WIDTH, load_u64, memory, store_scalar, summed_kind

PACKS, UNPACKS, SCRATCH_AT, STEPS, STEP, JOB = 0, 8, 16, 24, 32, 80
"""Where numbers stand in a block: whether activations are packed and results unpacked, in memory that both share with
the scratch; where in it the scratch begins; how many steps there are; each of them, an address and its units; the job.
"""

STEP_BYTES = 16

_SIGNATURE = (types.int64,) * 4

_LINE = 64
"""Bytes of a line of the cache: packed activations, sums and scratch begin with one."""


class Recipe:
    """A plan for an operand.

    Attributes:
        plan: the plan.
        nbytes: of the memory that it needs on one thread.
        scratch_at: where in it the kernel's scratch begins.
        address: of its block.
        multiply_adds: about how many it takes.
        widened: whether values must be widened before the kernel reads them.
        steps: (kernel, address of its code, bounds of its units) before, of and behind the kernel; no bounds of itself.
    """

    __slots__ = ("_block", "address", "multiply_adds", "nbytes", "plan", "scratch_at", "steps", "widened")

    def __init__(self, plan: Plan, w: Operand, kind: int, shape: tuple[int, Across], widened: bool) -> None:
        """`shape`: tokens of all plans of a product, and how its arrays lie."""
        tokens, across = shape
        size, sums_at = WIDTH[summed_kind(kind)], _whole_lines(plan.packed)
        self.plan, self.widened = plan, widened
        self.scratch_at = sums_at + _whole_lines(plan.sums)
        self.nbytes = self.scratch_at + plan.scratch
        self.multiply_adds = w.whole.multiply_adds * (_TOKENS_LIKE_ONE + plan.tokens) // (_TOKENS_LIKE_ONE + 1)
        self.steps: list[tuple[Kernel, int, np.ndarray | None]] = []
        numbers = []
        for step in (plan.before, (plan.kernel, 0), plan.behind):
            if step is not None:
                kernel, units = step
                bounds = np.arange(units + 1, dtype=np.int64) if units else None
                self.steps.append((kernel, native(kernel), bounds))
                numbers += [native(kernel), units or len(w.whole.pieces)]
        x_pitch, y_pitch = tokens if across.x else w.cols, tokens if across.y else w.rows
        job = [
            w.address,
            w.whole.address,
            0 if plan.packed else plan.first * w.cols * size,
            sums_at if plan.sums else plan.first * w.rows * size,
            w.cols,
            plan.tokens,
            w.rows,
            *(0, x_pitch, 0, y_pitch, plan.first, 0),
            *plan.own,
        ]
        # as many as there may be, each
        numbers += [0] * ((JOB - STEP) // 8 - len(numbers))
        job += [0] * (BYTES // 8 - len(job))
        head = [int(plan.packed > 0), int(plan.sums > 0), self.scratch_at, len(self.steps)]
        self._block = array("q", (*head, *numbers, *job))
        self.address, _ = self._block.buffer_info()


_TOKENS_LIKE_ONE = 10
"""Further tokens that cost as much as the first, for which the weights are loaded and spread."""


def _whole_lines(nbytes: int) -> int:
    return -(-nbytes // _LINE) * _LINE


@cache
def native(kernel: Any) -> int:
    """Address of a kernel's machine code, which numba compiles to int32 (result, error, job, lo, hi, scratch)."""
    # LLVM has a lock of its own, which a child forked meanwhile could not take: no fork while this one is held (jit.py)
    with global_compiler_lock:
        kernel.compile(_SIGNATURE)
        compiled = kernel.overloads[_SIGNATURE]
        return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


@intrinsic
def call_kernel(typingctx, kernel, job, lo, hi, scratch):
    """Call the machine code of a kernel, which raises nothing."""

    def codegen(context, builder, signature, args):
        pointer = I8.as_pointer()
        function = ir.FunctionType(ir.IntType(32), [pointer.as_pointer(), pointer.as_pointer(), *[I64] * 4])
        result, error = cgutils.alloca_once(builder, pointer), cgutils.alloca_once(builder, pointer)
        builder.call(builder.inttoptr(args[0], function.as_pointer()), [result, error, *args[1:]])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@jit
def fill_job(recipe, job, x, y, room):
    """Write the job of a recipe, given x and y, C-contiguous, and memory for what is packed."""
    for at in range(0, BYTES, 8):
        store_scalar(job + at, load_u64(recipe + JOB + at))
    source, result = np.int64(x.ctypes.data), np.int64(y.ctypes.data)
    store_scalar(job + SOURCE, source)
    store_scalar(job + RESULT, result)
    store_scalar(job + X, load_u64(job + X) + (room if load_u64(recipe + PACKS) else source))
    store_scalar(job + Y, load_u64(job + Y) + (room if load_u64(recipe + UNPACKS) else result))


@jit
def run_alone(recipe, x, y, room):
    """Run a recipe on this thread, for x and y, C-contiguous. Return whether x has Inf or NaN: then y is not filled."""
    job = memory(BYTES)
    fill_job(recipe, job, x, y, room)
    scratch = room + load_u64(recipe + SCRATCH_AT)
    for number in range(load_u64(recipe + STEPS)):
        at = recipe + STEP + number * STEP_BYTES
        call_kernel(load_u64(at), job, 0, load_u64(at + 8), scratch)
        if load_u64(job + ODD) != 0:
            break
    return load_u64(job + ODD) != 0
