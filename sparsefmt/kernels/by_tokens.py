"""A product whose threads take some tokens each, with all rows, and not some rows with all tokens.

Threads that share the rows of a matrix arrange all activations each, or wait for each other until they are arranged,
and put back sums that others wrote. With many tokens for the size of the matrix, that takes longer than to read the
weights once for each thread.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.parts import Part, run_parts
from sparsefmt.kernels.plans.contract import NOT_ACROSS
from sparsefmt.kernels.recipe import Recipe, recipes

LEAST_TOKENS = 64
"""Tokens of a thread, at least: fewer of them do not fill the registers, and each weight is read for fewer."""

TOGETHER = 16
"""Tokens of a thread are a multiple of so many, but for the last ones."""

ARRANGING_COST, READING_COST = 8, 4
"""What it costs to arrange an activation, and to read a weight and spread it."""

EXPANDING_COST = 12
"""The same for a position of a panel that is expanded, as it was found on two threads."""


class TokenPart(NamedTuple):
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
    """

    parts: tuple[TokenPart, ...]
    units: np.ndarray


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
    parts, units = [], [0]
    for base in range(0, tokens, each):
        for recipe in recipes(w.matrix, summed, min(each, tokens - base), NOT_ACROSS):
            if recipe.widened:
                return None
            parts.append(TokenPart(base, recipe))
        units.append(len(parts))
    return Shares(tuple(parts), np.array(units, np.int64))


def multiply_shares(shares: Shares, x: np.ndarray, w: Operand, y: np.ndarray) -> list[slice]:
    """Fill y (tokens, rows) with x (tokens, cols) times the rows of w, both C-contiguous and of the type of the sums.

    Returns:
        The tokens of parts that have Inf or NaN: these are not filled.
    """
    pieces, x_at, y_at = (w.whole.address, len(w.whole.pieces)), x.ctypes.data, y.ctypes.data
    odd = run_parts(
        [
            Part(part.recipe, w, *pieces, x_at + part.base * x.strides[0], y_at + part.base * y.strides[0])
            for part in shares.parts
        ],
        shares.units,
        len(shares.units) - 1,
    )
    return [part.tokens for part, is_odd in zip(shares.parts, odd, strict=True) if is_odd]
