"""What a plan is: one kernel, the activations laid out for it, and the place of its results.

Whoever makes a plan lays x out and asks whether it is finite, before any thread starts. Kernels multiply zero weights,
pruned positions and padding, too, which changes no bit unless x has Inf or NaN. Such x gets a plan with a slow kernel
that skips them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Run = Callable[[np.ndarray, np.ndarray, int, int], None]
"""run(table, pieces, lo, hi) multiplies by the rows `pieces[lo:hi]` (`operand.Work`) of the tiles in `table`."""


def _nothing() -> None:
    """The kernel wrote into y."""


@dataclass(slots=True)
class Plan:
    """How some tokens are multiplied by all rows of an operand.

    Attributes:
        tokens: their number.
        run: Threads may call it at once, each with rows of its own.
        finish: puts the results into y, once all rows were run.
    """

    tokens: int
    run: Run
    finish: Callable[[], None] = _nothing


def contiguous(x: np.ndarray) -> np.ndarray:
    """x as kernels take it: C-contiguous, aligned, of a type that is not read-only, which numba takes for another."""
    flags = x.flags
    return x if flags.c_contiguous and flags.writeable and flags.aligned else np.array(x, order="C")
