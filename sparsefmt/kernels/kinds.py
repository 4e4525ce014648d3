"""Kinds of values: what kernels know of an element type."""

from __future__ import annotations

F32, BF16, F16, F64 = range(4)
"""Kinds of stored values. Sums are float32, or float64 for F64."""

WIDTH = {F32: 4, BF16: 2, F16: 2, F64: 8}
"""Bytes of a value of each kind."""


def summed_kind(kind: int) -> int:
    """Kind of the sums, and of the activations, for values of a kind."""
    return F64 if kind == F64 else F32
