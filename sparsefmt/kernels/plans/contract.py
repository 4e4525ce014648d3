"""What a plan is: one kernel, what is done before and behind it, and the memory that they share.

Kernels multiply zero weights, pruned positions and padding, too, which changes no bit unless x has Inf or NaN. What
comes before a kernel notes such activations, and then a kernel that skips those positions, slowly, does all again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Kernel = Callable[[int, int, int, int], object]
"""kernel(job, lo, hi, scratch), compiled (`job.py`)."""


class Step(NamedTuple):
    """What is done to activations or results, in so many units (`activations.py`)."""

    run: Kernel
    units: int


class Plan(NamedTuple):
    """How some tokens are multiplied by all rows of an operand.

    Attributes:
        first, tokens: which they are.
        kernel: Threads may call it at once, each with rows and scratch of its own.
        before: checks or arranges activations; None: nobody looks whether they are finite.
        arranged: bytes of arranged activations; 0 if the kernel reads the caller's.
        behind: puts the kernel's sums into the caller's result.
        sums: their bytes; 0 if the kernel writes the caller's result.
        scratch: bytes that the kernel needs.
        own: the kernel's own numbers.
    """

    first: int
    tokens: int
    kernel: Kernel
    before: Step | None
    arranged: int = 0
    behind: Step | None = None
    sums: int = 0
    scratch: int = 0
    own: tuple[int, ...] = ()


class Across(NamedTuple):
    """Whether activations, or results, lie the other way round: tokens in columns."""

    x: bool
    y: bool


NOT_ACROSS = Across(False, False)
