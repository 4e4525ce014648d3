"""A plan made ready: a block of integers from which native code runs it, for any matrix of its kind.

`run_alone` does all of a small product in one call from Python. Threads share the steps of a large one (`team.py`).
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sparsefmt.jit import jit
from sparsefmt.kernels.job import BYTES, ODD, PIECES, RESULT, SOURCE, TABLE, X, Y
from sparsefmt.kernels.kinds import BF16, DOT_COLUMNS, DOTS, E4M3, E5M2, F16, F32, F64, INT8, UINT8, WIDTH, summed_kind
from sparsefmt.kernels.native import call_kernel, native
from sparsefmt.kernels.operand import Matrix
from sparsefmt.kernels.plans import FOR_ANY_ACTIVATIONS, PLANS
from sparsefmt.kernels.plans.contract import NOT_ACROSS, Across, Kernel, Plan, Step
from sparsefmt.kernels.raw_memory import load_u64, memory, store_scalar

ARRANGES, PUTS_BACK, SCRATCH_AT, STEPS, STEP, JOB = 0, 8, 16, 24, 32, 80
"""Where numbers stand in a block: whether activations are arranged and results put back, in memory that both share with
the scratch; where in it the scratch begins; how many steps there are; each of them, an address and its units; the job.
"""

STEP_BYTES = 16

_LINE = 64
"""Bytes of a line of the cache: arranged activations, sums and scratch begin with one."""

_KINDS = {
    **{"F32": F32, "BF16": BF16, "F16": F16, "F64": F64},
    **{"I8": INT8, "U8": UINT8, "F8_E4M3": E4M3, "F8_E5M2": E5M2},
}
"""Element types that kernels widen in registers. Others are widened in memory, tile by tile, which is slower."""


class Recipe:
    """A plan made ready for matrices of one kind.

    Attributes:
        plan: the plan.
        widened: whether values must be widened before the kernel reads them.
        nbytes: of the memory that it needs on one thread.
        scratch_at: where in it the kernel's scratch begins.
        address: of its block.
        steps: (kernel, address of its code, bounds of its units): before the kernel, the kernel, without bounds, and
            behind it.
    """

    __slots__ = ("_block", "address", "nbytes", "plan", "scratch_at", "steps", "widened")

    def __init__(self, plan: Plan, matrix: Matrix, kind: Kind, shape: tuple[int, Across]) -> None:
        """`shape`: tokens of all plans of a product, and how its arrays lie."""
        tokens, across = shape
        size, sums_at = WIDTH[summed_kind(kind.values)], _whole_lines(plan.arranged)
        pitch = tokens if across.x else matrix.cols
        if kind.values == DOTS:
            pitch = rows_of_dots(matrix.cols)
        self.plan, self.widened = plan, kind.widened
        self.scratch_at = sums_at + _whole_lines(plan.sums)
        self.nbytes = self.scratch_at + plan.scratch
        self.steps: list[tuple[Kernel, int, np.ndarray | None]] = []
        numbers = []
        for step in (plan.before, Step(plan.kernel, 0), plan.behind):
            if step is not None:
                bounds = np.arange(step.units + 1, dtype=np.int64) if step.units else None
                self.steps.append((step.run, native(step.run), bounds))
                numbers += [native(step.run), step.units]
        job = [
            *(0, 0),
            0 if plan.arranged else plan.first * matrix.cols * size,
            sums_at if plan.sums else plan.first * matrix.rows * size,
            *(matrix.cols, plan.tokens, matrix.rows),
            *(0, pitch, 0, tokens if across.y else matrix.rows, plan.first, 0),
            *plan.own,
        ]
        # as many as there may be, each
        numbers += [0] * ((JOB - STEP) // 8 - len(numbers))
        job += [0] * (BYTES // 8 - len(job))
        head = [int(plan.arranged > 0), int(plan.sums > 0), self.scratch_at, len(self.steps)]
        self._block = array("q", (*head, *numbers, *job))
        self.address, _ = self._block.buffer_info()


class Kind(NamedTuple):
    """The kind of the values that kernels read (`kinds.py`), and whether stored ones must be widened for that."""

    values: int
    widened: bool


def rows_of_dots(cols: int) -> int:
    """Bytes of a row of activations of eight bits, with zeros at its end."""
    return -(-cols // DOT_COLUMNS) * DOT_COLUMNS


def kind_of(dtype: str, summed: int) -> Kind:
    """For stored values of a type, and sums of a kind, or DOTS."""
    if summed == DOTS:
        return Kind(DOTS, False)
    kind = _KINDS.get(dtype)
    # float32 and narrower are widened to float32 only
    return Kind(summed, True) if kind is None or summed_kind(kind) != summed else Kind(kind, False)


@lru_cache(maxsize=1 << 12)
def recipes(matrix: Matrix, summed: int, tokens: int, across: Across) -> tuple[Recipe, ...]:
    """For so many tokens, and sums of a kind: together they take all tokens."""
    kind = kind_of(matrix.dtype, summed)
    plans = PLANS[matrix.layout](matrix, kind.values, tokens, across)
    return tuple(Recipe(plan, matrix, kind, (tokens, across)) for plan in plans)


@lru_cache(maxsize=1 << 8)
def recipe_for_any_activations(matrix: Matrix, summed: int, tokens: int) -> Recipe:
    """For x with Inf or NaN: slow."""
    kind = kind_of(matrix.dtype, summed)
    plan = FOR_ANY_ACTIVATIONS[matrix.layout](matrix, kind.values, tokens)
    return Recipe(plan, matrix, kind, (tokens, NOT_ACROSS))


def _whole_lines(nbytes: int) -> int:
    return -(-nbytes // _LINE) * _LINE


@jit
def fill_job(recipe, job, source, result, room):
    """Write the job of a recipe, but for the weights, given the addresses of x and y, C-contiguous, and of memory for
    what is arranged."""
    for at in range(0, BYTES, 8):
        store_scalar(job + at, load_u64(recipe + JOB + at))
    store_scalar(job + SOURCE, source)
    store_scalar(job + RESULT, result)
    store_scalar(job + X, load_u64(job + X) + (room if load_u64(recipe + ARRANGES) else source))
    store_scalar(job + Y, load_u64(job + Y) + (room if load_u64(recipe + PUTS_BACK) else result))


@jit
def run_at(recipe, table, pieces, count, source, result, room):
    """Run a recipe on this thread for all pieces, given the addresses of x and y, C-contiguous. Return whether x has
    Inf or NaN: then y is not filled."""
    job = memory(BYTES)
    fill_job(recipe, job, source, result, room)
    store_scalar(job + TABLE, table)
    store_scalar(job + PIECES, pieces)
    scratch = room + load_u64(recipe + SCRATCH_AT)
    for number in range(load_u64(recipe + STEPS)):
        at = recipe + STEP + number * STEP_BYTES
        units = load_u64(at + 8)
        call_kernel(load_u64(at), job, 0, units if units > 0 else count, scratch)
        if load_u64(job + ODD) != 0:
            break
    return load_u64(job + ODD) != 0


@jit
def run_alone(recipe, table, pieces, count, x, y, room):
    """The same, given x and y."""
    return run_at(recipe, table, pieces, count, np.int64(x.ctypes.data), np.int64(y.ctypes.data), room)
