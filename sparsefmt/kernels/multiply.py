"""A product: recipes for its tokens (`plans/`, `recipe.py`), each run over all rows, on threads if it is large."""

from __future__ import annotations

from array import array

import numpy as np

from sparsefmt.dtypes import SINGLE
from sparsefmt.kernels import by_tokens
from sparsefmt.kernels.by_tokens import Shares
from sparsefmt.kernels.job import BYTES, ODD, PIECES, TABLE
from sparsefmt.kernels.kinds import DOTS, F32, F64
from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.plans.contract import NOT_ACROSS, Across
from sparsefmt.kernels.recipe import Recipe, fill_job, recipe_for_any_activations, recipes, run_alone
from sparsefmt.kernels.scratch import NO_ROOM, room
from sparsefmt.kernels.team import has_team, nbytes_of, run_on_threads
from sparsefmt.kernels.widening import run_widened
from sparsefmt.threads import num_threads

WORTH_A_THREAD = 3 << 18
"""Multiply-adds for one token for each thread below which handing work over, 30 to 100 microseconds, costs more than it
saves (tools/bench/overhead.py)."""

WORTH_IN_A_TEAM = 1 << 15
"""The same on threads of an OpenMP runtime, which takes some 5 microseconds (`team.py`)."""

WORTH_IN_SHARES = 1 << 16
"""The same where each thread takes tokens of its own (`by_tokens.py`)."""

WORTH_ARRANGING = 3 << 16
"""The same where each thread arranges the activations for itself, or waits until others have arranged them, and where
sums that one has written are read by another: two threads pay for 256 x 256, 50 % zeros, from 128 tokens on."""

TOKENS_LIKE_ONE = 10
"""Further tokens that cost as much as the first, for which the weights are loaded and spread."""

UNITS_PER_THREAD = 3
"""Units of work for each thread, so that one that was interrupted does not hold up the rest for long."""

MOST_RECIPES = 256
"""An operand remembers recipes for so many numbers of tokens."""


def multiply(x: np.ndarray, w: Operand, y: np.ndarray, threads: int | None, of_dots: bool = False) -> bool:
    """Fill y (tokens, rows), of the dtype of the sums, with x (tokens, cols) times the rows of w.

    y or its transpose is C-contiguous; x is anything. `of_dots`: x and w are int8 and multiplied as integers, and rows
    of x end with zeros up to `rows_of_dots`. Return whether y is filled: it is not if x has Inf or NaN, and columns of
    w are in groups.
    """
    tokens = x.shape[0]
    if not tokens or not w.tiles:
        y[...] = 0
        return True
    if x.dtype != y.dtype and not of_dots:
        x = x.astype(y.dtype)
    x_rows, y_rows, across = x, y, NOT_ACROSS
    # C-contiguous, aligned, and of a type that is not read-only, which numba takes for another
    if not (x.flags.carray and y.flags.carray):
        x_rows, y_rows, across = _laid_out(x, w, y)
    if across == NOT_ACROSS and not of_dots and by_tokens.pays(w, tokens):
        shares = _shares(w, y, tokens, threads)
        if shares is not None:
            odd = by_tokens.multiply_shares(shares, x_rows, w, y_rows)
            if y_rows is not y:
                y[...] = y_rows
            for these in odd if w.matrix.groups == 1 else ():
                _multiply_any(x[these], w, y[these], threads)
            return not odd or w.matrix.groups == 1
    found = recipes_of(w, tokens, y, across, of_dots)
    result = y if across.y else y_rows
    for recipe in found:
        if _run(recipe, x_rows, y_rows, w, threads):
            if w.matrix.groups > 1:
                return False
            these = slice(recipe.plan.first, recipe.plan.first + recipe.plan.tokens)
            _multiply_any(x[these], w, result[these], threads)
    if result is not y:
        y[...] = result
    return True


def recipes_of(w: Operand, tokens: int, y: np.ndarray, across: Across, of_dots: bool = False) -> tuple[Recipe, ...]:
    """Those for so many tokens, and sums of the dtype of y. w remembers them."""
    key = tokens, across, of_dots, y.dtype
    found: tuple[Recipe, ...] | None = w.recipes.get(key)
    if found is None:
        if len(w.recipes) >= MOST_RECIPES:
            w.recipes.clear()
        found = w.recipes[key] = recipes(w.matrix, DOTS if of_dots else _summed(y), tokens, across)
    return found


def thread_count(multiply_adds: int, least: int, threads: int | None) -> int:
    """How many threads there is work for, of those that may be used.

    Args:
        multiply_adds: of all the work, as `work_of` counts them.
        least: how many of them for each are worth a thread of an OpenMP runtime. WORTH_A_THREAD are, of any other.
    """
    count = multiply_adds // min(least, WORTH_A_THREAD)
    if count > 1 and not has_team():
        count = multiply_adds // WORTH_A_THREAD
    return min(count, num_threads(threads)) if count > 1 else 1


def work_of(w: Operand, tokens: int) -> int:
    """Multiply-adds for one token that take as long as those for so many."""
    return w.whole.multiply_adds * (TOKENS_LIKE_ONE + tokens) // (TOKENS_LIKE_ONE + 1)


def _shares(w: Operand, y: np.ndarray, tokens: int, threads: int | None) -> Shares | None:
    """The tokens for as many threads as there is work for, if threads should take tokens."""
    count = thread_count(work_of(w, tokens), WORTH_IN_SHARES, threads)
    return by_tokens.shares_of(w, _summed(y), tokens, count) if 1 < count <= tokens // by_tokens.LEAST_TOKENS else None


def _summed(y: np.ndarray) -> int:
    return F32 if y.dtype == SINGLE else F64


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


def _multiply_any(x: np.ndarray, w: Operand, y: np.ndarray, threads: int | None) -> None:
    """For x with Inf or NaN: slow."""
    result, recipe = np.empty(y.shape, y.dtype), recipe_for_any_activations(w.matrix, _summed(y), x.shape[0])
    _run(recipe, np.array(x, order="C"), result, w, threads)
    y[...] = result


def _run(recipe: Recipe, x: np.ndarray, y: np.ndarray, w: Operand, threads: int | None) -> bool:
    """Run a recipe on as many threads as there is work for. Return whether x has Inf or NaN: then y is not filled."""
    least = WORTH_ARRANGING if recipe.plan.arranged else WORTH_IN_A_TEAM
    count = thread_count(work_of(w, recipe.plan.tokens), WORTH_A_THREAD if recipe.widened else least, threads)
    if count == 1 and not recipe.widened:
        memory = room("product", recipe.nbytes) if recipe.nbytes else NO_ROOM
        whole = w.whole
        return run_alone(recipe.address, w.address, whole.address, len(whole.pieces), x, y, memory.address)
    memory = room("product", nbytes_of(recipe, count))
    job = array("q", bytes(BYTES))
    address, _ = job.buffer_info()
    fill_job(recipe.address, address, x.ctypes.data, y.ctypes.data, memory.address)
    work = w.work(count * UNITS_PER_THREAD) if count > 1 else w.whole
    job[TABLE // 8], job[PIECES // 8] = w.address, work.address
    if recipe.widened:
        run_widened(recipe, job, w, work, (y.dtype, count))
    else:
        run_on_threads(recipe, job, work, count, memory.address)
    return bool(job[ODD // 8])
