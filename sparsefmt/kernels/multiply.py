"""A product: recipes for its tokens (`plans/`, `recipe.py`), each run over all rows, on threads if it is large."""

from __future__ import annotations

from array import array

import numpy as np

from sparsefmt.dtypes import SINGLE
from sparsefmt.kernels.job import BYTES, ODD, PIECES
from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.plans import FOR_ANY_ACTIVATIONS, PLANS
from sparsefmt.kernels.plans.contract import Across
from sparsefmt.kernels.recipe import Recipe, fill_job, run_alone
from sparsefmt.kernels.scratch import room
from sparsefmt.kernels.simd import BF16, F16, F32, F64, summed_kind
from sparsefmt.kernels.team import has_team, run_on_threads, scratch_bytes
from sparsefmt.kernels.widening import run_widened
from sparsefmt.threads import num_threads

WORTH_A_THREAD = 1 << 19
"""Multiply-adds for one token for each thread below which handing work over, some 30 microseconds, costs more than it
saves (tools/bench/overhead.py)."""

WORTH_IN_A_TEAM = 1 << 15
"""The same on threads of an OpenMP runtime, which takes some 5 microseconds (`team.py`)."""

UNITS_PER_THREAD = 3
"""Units of work for each thread, so that one that was interrupted does not hold up the rest for long."""

MOST_RECIPES = 256
"""An operand remembers recipes for so many numbers of tokens."""

_KINDS = {"F32": F32, "BF16": BF16, "F16": F16, "F64": F64}
"""Element types that kernels widen in registers. Others are widened in memory, tile by tile, which is slower."""


def multiply(x: np.ndarray, w: Operand, y: np.ndarray, threads: int | None) -> None:
    """Fill y (tokens, rows), of the dtype of the sums, with x (tokens, cols) times the rows of w.

    y or its transpose is C-contiguous; x is anything.
    """
    tokens = x.shape[0]
    if not tokens or not w.tiles:
        y[...] = 0
        return
    if x.dtype != y.dtype:
        x = x.astype(y.dtype)
    x_rows, y_rows, across = x, y, _NOT_ACROSS
    # C-contiguous, aligned, and of a type that is not read-only, which numba takes for another
    if not (x.flags.carray and y.flags.carray):
        x_rows, y_rows, across = _laid_out(x, w, y)
    key = tokens, across, y.dtype
    recipes = w.recipes.get(key)
    if recipes is None:
        recipes = _recipes(w, tokens, across, y.dtype)
        if len(w.recipes) >= MOST_RECIPES:
            w.recipes.clear()
        w.recipes[key] = recipes
    result = y if across.y else y_rows
    for recipe in recipes:
        if _run(recipe, x_rows, y_rows, w, threads):
            these = slice(recipe.plan.first, recipe.plan.first + recipe.plan.tokens)
            _multiply_any(x[these], w, result[these], threads)
    if result is not y:
        y[...] = result


_NOT_ACROSS = Across(False, False)


def _laid_out(x: np.ndarray, w: Operand, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, Across]:
    """x and y, or other arrays for them, such that kernels take them."""
    x_across = y_across = False
    if not x.flags.carray:
        x_across = w.layout == "permuted" and x.flags.f_contiguous and x.flags.behaved
        x = x.T if x_across else np.array(x, order="C")
    if not y.flags.carray:
        y_across = w.layout == "permuted"
        y = y.T if y_across else np.empty(y.shape, y.dtype)
    return x, y, Across(x_across, y_across)


def _recipes(w: Operand, tokens: int, across: Across, dtype: np.dtype) -> tuple[Recipe, ...]:
    """For sums of a dtype."""
    kind, widened = _kind(w, dtype)
    return tuple(Recipe(plan, w, kind, (tokens, across), widened) for plan in PLANS[w.layout](w, kind, tokens, across))


def _kind(w: Operand, dtype: np.dtype) -> tuple[int, bool]:
    """The kind of the values that kernels read, and whether they must be widened for that."""
    summed = F32 if dtype == SINGLE else F64
    kind = _KINDS.get(w.dtype.name)
    # float32 and narrower are widened to float32 only
    return (summed, True) if kind is None or summed_kind(kind) != summed else (kind, False)


def _multiply_any(x: np.ndarray, w: Operand, y: np.ndarray, threads: int | None) -> None:
    """For x with Inf or NaN: slow."""
    kind, widened = _kind(w, y.dtype)
    tokens, result = x.shape[0], np.empty(y.shape, y.dtype)
    plan = FOR_ANY_ACTIVATIONS[w.layout](w, kind, tokens)
    _run(Recipe(plan, w, kind, (tokens, _NOT_ACROSS), widened), np.array(x, order="C"), result, w, threads)
    y[...] = result


def _run(recipe: Recipe, x: np.ndarray, y: np.ndarray, w: Operand, threads: int | None) -> bool:
    """Run a recipe on as many threads as there is work for. Return whether x has Inf or NaN: then y is not filled."""
    count = recipe.multiply_adds // min(WORTH_A_THREAD, WORTH_IN_A_TEAM)
    if count > 1 and (recipe.widened or not has_team()):
        count = recipe.multiply_adds // WORTH_A_THREAD
    if count > 1:
        count = min(count, num_threads(threads))
    if count <= 1 and not recipe.widened:
        memory = room("product", recipe.nbytes) if recipe.nbytes else _NO_ROOM
        return run_alone(recipe.address, x, y, memory[1])
    count = max(count, 1)
    memory = room("product", recipe.scratch_at + count * scratch_bytes(recipe))
    job = array("q", bytes(BYTES))
    address, _ = job.buffer_info()
    fill_job(recipe.address, address, x, y, memory[1])
    work = w.work(count * UNITS_PER_THREAD) if count > 1 else w.whole
    job[PIECES // 8] = work.address
    if recipe.widened:
        run_widened(recipe, job, w, work, (y.dtype, count))
    else:
        run_on_threads(recipe, address, work, count, memory[1])
    return bool(job[ODD // 8])


_NO_ROOM = (None, 0)
