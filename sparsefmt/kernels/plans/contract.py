"""What a plan is: one kernel, and its job: the activations laid out for it, and the place of its results.

Whoever makes a plan lays x out and asks whether it is finite, before any thread starts. Kernels multiply zero weights,
pruned positions and padding, too, which changes no bit unless x has Inf or NaN. Such x gets a plan with a slow kernel
that skips them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Kernel = Callable[[int, int, int, int], object]
"""kernel(job, lo, hi, scratch), compiled (`job.py`)."""


def _nothing() -> None:
    """The kernel wrote into y."""


@dataclass(slots=True)
class Plan:
    """How some tokens are multiplied by all rows of an operand.

    Attributes:
        tokens: their number.
        kernel: Threads may call it at once, each with rows and scratch of its own.
        job: what it gets, without the pieces, which the caller puts in.
        scratch: elements of 8 bytes that it needs.
        holds: arrays whose addresses are in the job.
        finish: puts the results into y, once all rows were run.
    """

    tokens: int
    kernel: Kernel
    job: array[int]
    scratch: int
    holds: tuple[Any, ...]
    finish: Callable[[], None] = _nothing


def contiguous(x: np.ndarray) -> np.ndarray:
    """x as kernels take it: C-contiguous, aligned, of a type that is not read-only, which numba takes for another."""
    flags = x.flags
    return x if flags.c_contiguous and flags.writeable and flags.aligned else np.array(x, order="C")
