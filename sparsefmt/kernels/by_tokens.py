"""A product whose threads take some tokens each, with all rows, and not some rows with all tokens.

Threads that share the rows of a matrix arrange all activations each, or wait for each other until they are arranged,
and put back sums that others wrote. With many tokens for the size of the matrix, that takes longer than to read the
weights once for each thread.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numpy as np

from sparsefmt.jit import jit
from sparsefmt.kernels.job import BYTES, OWN, PIECES, TABLE, own
from sparsefmt.kernels.native import native
from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.plans.contract import NOT_ACROSS, Kernel, Plan
from sparsefmt.kernels.raw_memory import load_u64, store_scalar
from sparsefmt.kernels.recipe import Recipe, recipes, run_at
from sparsefmt.kernels.scratch import room
from sparsefmt.kernels.team import nbytes_of, run_on_threads

LEAST_TOKENS = 64
"""Tokens of a thread, at least: fewer of them do not fill the registers, and each weight is read for fewer."""

TOGETHER = 16
"""Tokens of a thread are a multiple of so many, but for the last ones."""

ARRANGING_COST, READING_COST = 8, 4
"""What it costs to arrange an activation, and to read a weight and spread it."""

EXPANDING_COST = 12
"""The same for a position of a panel that is expanded, as it was found on two threads."""

_PART = 32
"""Bytes of a part: address of its recipe, of its activations and results; whether one is Inf or NaN."""

_ODD = 24
"""Where that stands."""


class Part(NamedTuple):
    """What a thread multiplies by one recipe, which counts its tokens from `base` on, the first one of the thread.

    It holds the recipe: native code runs that by its address, and nobody else may remember it.
    """

    base: int
    recipe: Recipe

    @property
    def tokens(self) -> slice:
        """Which they are, in the whole product."""
        first = self.base + self.recipe.plan.first
        return slice(first, first + self.recipe.plan.tokens)


class Shares(NamedTuple):
    """The tokens of a product, shared by threads.

    Attributes:
        parts: those of each thread after the other.
        units: int64: the first part of each thread, and the number of all.
        nbytes: memory that a thread needs.
    """

    parts: tuple[Part, ...]
    units: np.ndarray
    nbytes: int


class _AllParts(NamedTuple):
    """A `team.Steps`."""

    plan: Plan
    steps: list[tuple[Kernel, int, np.ndarray | None]]
    scratch_at: int = 0


def pays(w: Operand, tokens: int) -> bool:
    """Whether threads should take tokens rather than rows. Of `bitmask` and `dense`, each then expands all panels."""
    if w.layout == "permuted":
        repeated = w.whole.multiply_adds * READING_COST
    else:
        repeated = w.matrix.rows * w.matrix.cols * EXPANDING_COST
    return tokens >= 2 * LEAST_TOKENS and tokens * w.matrix.cols * ARRANGING_COST > repeated


def shares_of(w: Operand, summed: int, tokens: int, count: int) -> Shares | None:
    """The shares of up to `count` threads; None if values must be widened before kernels read them."""
    each = -(-tokens // (TOGETHER * count)) * TOGETHER
    parts, units, nbytes = [], [0], 0
    for base in range(0, tokens, each):
        for recipe in recipes(w.matrix, summed, min(each, tokens - base), NOT_ACROSS):
            if recipe.widened:
                return None
            parts.append(Part(base, recipe))
            nbytes = max(nbytes, recipe.nbytes)
        units.append(len(parts))
    return Shares(tuple(parts), np.array(units, np.int64), nbytes)


@jit
def _multiply_parts(job, lo, hi, scratch):
    """Units are parts."""
    for number in range(lo, hi):
        at = own(job, 0) + _PART * number
        odd = run_at(
            load_u64(at),
            load_u64(job + TABLE),
            load_u64(job + PIECES),
            own(job, 1),
            load_u64(at + 8),
            load_u64(at + 16),
            scratch,
        )
        store_scalar(at + _ODD, np.int64(odd))


def multiply_shares(shares: Shares, x: np.ndarray, w: Operand, y: np.ndarray) -> list[slice]:
    """Fill y (tokens, rows) with x (tokens, cols) times the rows of w, both C-contiguous and of the type of the sums.

    Returns:
        The tokens of parts that have Inf or NaN: these are not filled.
    """
    x_at, y_at, count = x.ctypes.data, y.ctypes.data, len(shares.units) - 1
    numbers: list[int] = []
    for part in shares.parts:
        numbers += [part.recipe.address, x_at + part.base * x.strides[0], y_at + part.base * y.strides[0], 0]
    parts, job = array("q", numbers), array("q", bytes(BYTES))
    job[TABLE // 8], job[PIECES // 8] = w.address, w.whole.address
    job[OWN // 8], job[OWN // 8 + 1] = parts.buffer_info()[0], len(w.whole.pieces)
    plan = Plan(0, len(x), _multiply_parts, None, scratch=shares.nbytes)
    all_parts = _AllParts(plan, [(_multiply_parts, native(_multiply_parts), None)])
    memory = room("product", nbytes_of(all_parts, count))
    run_on_threads(all_parts, job, w.whole._replace(units=shares.units), count, memory.address)
    found = zip(shares.parts, parts[_ODD // 8 :: _PART // 8], strict=True)
    return [part.tokens for part, is_odd in found if is_odd]
