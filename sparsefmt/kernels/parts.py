"""Parts of products, each what one thread does in one go: a recipe for some tokens, and some rows of a matrix.

Threads take them from one list, so that what each does need not be the same matrix, nor the same tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparsefmt.jit import jit
from sparsefmt.kernels.job import BYTES, OWN, own
from sparsefmt.kernels.native import native
from sparsefmt.kernels.operand import Operand, Work
from sparsefmt.kernels.plans.contract import Kernel, Plan
from sparsefmt.kernels.raw_memory import load_u64, store_scalar
from sparsefmt.kernels.recipe import Recipe, run_at
from sparsefmt.kernels.scratch import room
from sparsefmt.kernels.team import nbytes_of, run_on_threads

_RECIPE, _TABLE, _PIECES, _COUNT, _X, _Y, _ODD = (8 * number for number in range(7))
"""Where numbers of a part stand: addresses of its recipe, of the table and the pieces of its matrix, how many pieces
there are, addresses of activations and results; whether an activation is Inf or NaN, which is 0 before it is run."""

_PART = 56
"""Bytes of a part."""


class Part(NamedTuple):
    """What a recipe multiplies by pieces of an operand.

    It holds the recipe: native code runs that by its address, and nobody else may remember it.

    Attributes:
        pieces, piece_count: address of the first piece, and how many follow each other.
        x, y: addresses that the recipe counts its tokens from, C-contiguous.
    """

    recipe: Recipe
    w: Operand
    pieces: int
    piece_count: int
    x: int
    y: int


class _AllParts(NamedTuple):
    """A `team.Steps`."""

    plan: Plan
    steps: list[tuple[Kernel, int, np.ndarray | None]]
    scratch_at: int = 0


@jit
def _run_parts(job, lo, hi, scratch):
    """Units are parts."""
    for number in range(lo, hi):
        at = own(job, 0) + _PART * number
        odd = run_at(
            load_u64(at + _RECIPE),
            load_u64(at + _TABLE),
            load_u64(at + _PIECES),
            load_u64(at + _COUNT),
            load_u64(at + _X),
            load_u64(at + _Y),
            scratch,
        )
        store_scalar(at + _ODD, np.int64(odd))


def run_parts(parts: Sequence[Part], units: np.ndarray, threads: int) -> array[int]:
    """Run all parts on up to so many threads, this one included.

    Args:
        units: int64, bounds in `parts` of what a thread takes at once.

    Returns:
        Those of which activations are Inf or NaN, as 1 and not 0: their results are not filled.
    """
    numbers: list[int] = []
    scratch = 0
    for recipe, w, pieces, count, x, y in parts:
        numbers += (recipe.address, w.address, pieces, count, x, y, 0)
        scratch = max(scratch, recipe.nbytes)
    block, job = array("q", numbers), array("q", bytes(BYTES))
    job[OWN // 8], _ = block.buffer_info()
    if threads > 1 and len(units) > 2:
        plan = Plan(0, 0, _run_parts, None, scratch=scratch)
        all_parts = _AllParts(plan, [(_run_parts, native(_run_parts), None)])
        memory = room("product", nbytes_of(all_parts, threads))
        # only the units are looked at
        work = Work(0, units, 0, units)
        run_on_threads(all_parts, job, work, threads, memory.address)
    else:
        _run_parts(job.buffer_info()[0], 0, len(parts), room("product", scratch).address)
    return block[_ODD // 8 :: _PART // 8]
