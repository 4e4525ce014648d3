"""Several products at once, each of some tokens with a matrix of its own: the experts that a model's tokens chose.

A thread takes one product after the other, and does all of it. So it arranges activations once, and nothing is handed
over. A product that takes much of a thread's time is shared by all of them: where nothing is arranged, threads take
rows of it, as if these were products, too; else it is multiplied by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sparsefmt.kernels.job import PIECE
from sparsefmt.kernels.multiply import (
    UNITS_PER_THREAD,
    WORTH_IN_SHARES,
    multiply,
    recipes_of,
    thread_count,
    work_of,
)
from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.parts import Part, run_parts
from sparsefmt.kernels.plans.contract import NOT_ACROSS
from sparsefmt.kernels.recipe import Recipe


class Product(NamedTuple):
    """Tokens `begin` to `end` times the rows of w."""

    w: Operand
    begin: int
    end: int


class _Ready(NamedTuple):
    """A product, its recipes, and how much work it is."""

    product: Product
    recipes: tuple[Recipe, ...]
    work: int

    @property
    def arranges(self) -> bool:
        return any(recipe.plan.arranged for recipe in self.recipes)


def multiply_grouped(products: Sequence[Product], x: np.ndarray, y: np.ndarray, threads: int | None) -> None:
    """Fill y (tokens, rows), of the dtype of the sums, with x (tokens, cols) times the matrix of each token's product.

    Each token has the bits that `multiply` gives it. y is C-contiguous, x is anything. No token is in two products, and
    no product is empty; tokens of none are left as they are.
    """
    x = np.ascontiguousarray(x, y.dtype)
    alone, together = [], []
    for product in products:
        recipes = recipes_of(product.w, product.end - product.begin, y, NOT_ACROSS) if product.w.tiles else ()
        if not recipes or recipes[0].widened:
            alone.append(product)
        else:
            together.append(_Ready(product, recipes, work_of(product.w, product.end - product.begin)))
    total = sum(each.work for each in together)
    count = thread_count(total, WORTH_IN_SHARES, threads)
    if count > 1:
        # more than two thirds of what a thread has to do if all have the same
        alone += [each.product for each in together if each.arranges and 3 * count * each.work > 2 * total]
        together = [each for each in together if not each.arranges or 3 * count * each.work <= 2 * total]
        # the largest first, so that all threads end at about the same time
        together.sort(key=lambda each: each.work, reverse=True)
    if together:
        alone += _multiply_together(together, x, y, count)
    for w, begin, end in alone:
        multiply(x[begin:end], w, y[begin:end], threads)


def _multiply_together(products: list[_Ready], x: np.ndarray, y: np.ndarray, count: int) -> list[Product]:
    """On `count` threads. Return products that have Inf or NaN among their activations: these are not filled."""
    most = sum(each.work for each in products) // (count * UNITS_PER_THREAD) + 1 if count > 1 else 0
    parts: list[Part] = []
    of_part: list[Product] = []
    units = [0]
    (x_at, y_at), (x_pitch, y_pitch) = (x.ctypes.data, y.ctypes.data), (x.strides[0], y.strides[0])
    for each in products:
        begin = each.product.begin
        for some in _parts_of(each, x_at + begin * x_pitch, y_at + begin * y_pitch, most):
            parts += some
            of_part += [each.product] * len(some)
            units.append(len(parts))
    odd = run_parts(parts, np.array(units, np.int64), count)
    return list({product.begin: product for product, is_odd in zip(of_part, odd, strict=True) if is_odd}.values())


def _parts_of(ready: _Ready, x: int, y: int, most: int) -> Iterator[list[Part]]:
    """The parts of a product, as threads take them: with work of about `most` each, or all at once if it is 0.

    x, y: addresses of the first activation and result.
    """
    w, recipes = ready.product.w, ready.recipes
    cut = w.work(-(-ready.work // most)) if most and not ready.arranges else w.whole
    bounds = cut.units.tolist()
    for lo, hi in pairwise(bounds):
        yield [Part(recipe, w, cut.address + PIECE * lo, hi - lo, x, y) for recipe in recipes]
