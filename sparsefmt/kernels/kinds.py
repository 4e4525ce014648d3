"""Kinds of values: what kernels know of an element type."""

from __future__ import annotations

F32, BF16, F16, F64, INT8, UINT8, E4M3, E5M2 = range(8)
"""Kinds of stored values. Sums are float32, or float64 for F64. E4M3 and E5M2 are floats of eight bits."""

WIDTH = {F32: 4, BF16: 2, F16: 2, F64: 8, INT8: 1, UINT8: 1, E4M3: 1, E5M2: 1}
"""Bytes of a value of each kind."""

ONE_BYTE = (INT8, UINT8, E4M3, E5M2)
"""Kinds whose values have one byte."""


def summed_kind(kind: int) -> int:
    """Kind of the sums, and of the activations, for values of a kind."""
    return F64 if kind == F64 else F32
