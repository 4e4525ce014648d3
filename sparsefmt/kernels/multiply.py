"""A product: plans for its tokens (`plans/`), each run over all rows, which threads share in units of equal work."""

from __future__ import annotations

import numpy as np

from sparsefmt.dtypes import DOUBLE, SINGLE
from sparsefmt.kernels.job import PIECES
from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.plans import PLANS
from sparsefmt.kernels.plans.contract import Plan
from sparsefmt.kernels.scratch import room
from sparsefmt.kernels.simd import BF16, F16, F32, F64, summed_kind
from sparsefmt.kernels.team import has_team, run_on_threads
from sparsefmt.kernels.widening import run_widened
from sparsefmt.threads import num_threads, share

WORTH_A_THREAD = 1 << 19
"""Multiply-adds for one token for each thread below which handing work over, some 30 microseconds, costs more than it
saves (tools/bench/overhead.py)."""

WORTH_IN_A_TEAM = 1 << 15
"""The same on threads of an OpenMP runtime, which takes some 5 microseconds (`team.py`)."""

TOKENS_LIKE_ONE = 10
"""Further tokens that cost as much as the first, for which the weights are loaded and spread."""

UNITS_PER_THREAD = 3
"""Units of work for each thread, so that one that was interrupted does not hold up the rest for long."""

_KINDS = {"F32": F32, "BF16": BF16, "F16": F16, "F64": F64}
"""Element types that kernels widen in registers. Others are widened in memory, tile by tile, which is slower."""


def multiply(x: np.ndarray, w: Operand, y: np.ndarray, threads: int | None) -> None:
    """Fill y (tokens, rows), of the dtype of the sums, with x (tokens, cols) times the rows of w.

    y or its transpose is C-contiguous; x is anything.

    A plan takes some of the tokens: it has laid them out and has a kernel for them. Its run over all rows fills in the
    sums, and `finish` puts them in place.
    """
    if not x.shape[0] or not w.tiles:
        y[...] = 0
        return
    if x.dtype != y.dtype:
        x = x.astype(y.dtype)
    summed = F32 if y.dtype == SINGLE else F64
    kind = _KINDS.get(w.dtype.name)
    # float32 and narrower are widened to float32 only
    in_registers = kind is not None and summed_kind(kind) == summed
    accumulator = None if in_registers else y.dtype
    for plan in PLANS[w.layout](x, w, y, summed if kind is None or not in_registers else kind):
        _run(plan, w, threads, accumulator)
        plan.finish()


def _run(plan: Plan, w: Operand, threads: int | None, accumulator: np.dtype | None) -> None:
    """Run a plan over all rows, cut into units of equal work, on as many threads as there is work for.

    Args:
        accumulator: what values are widened to in memory; None where the kernel does it in registers.
    """
    whole = w.whole
    multiply_adds = whole.multiply_adds * (TOKENS_LIKE_ONE + plan.tokens) // (TOKENS_LIKE_ONE + 1)
    useful = multiply_adds // min(WORTH_A_THREAD, WORTH_IN_A_TEAM)
    if useful > 1 and not (accumulator is None and has_team()):
        useful = multiply_adds // WORTH_A_THREAD
    if useful > 1:
        useful = min(useful, num_threads(threads))
    work = whole if useful <= 1 else w.work(useful * UNITS_PER_THREAD)
    if accumulator is None:
        plan.job[PIECES // 8] = work.address
        job, _ = plan.job.buffer_info()
        if useful <= 1:
            scratch = room("weights", plan.scratch, DOUBLE).address if plan.scratch else 0
            plan.kernel(job, 0, len(work.pieces), scratch)
        else:
            run_on_threads(plan.kernel, job, work.units, useful, plan.scratch)
        return

    def run_unit(number: int) -> None:
        run_widened(plan, w, (work.pieces, work.units[number], work.units[number + 1]), accumulator)

    share(run_unit, len(work.units) - 1, useful)
