"""Kinds of values: what kernels know of an element type."""

from __future__ import annotations

F32, BF16, F16, F64, INT8, UINT8, E4M3, E5M2, DOTS = range(9)
"""Kinds of stored values. Sums are float32, or float64 for F64. E4M3 and E5M2 are floats of eight bits.

DOTS are values of INT8 that are multiplied by activations of INT8, four columns at once, and whose sums are integers of
32 bits; kernels keep those in vectors of float32, as bits.
"""

WIDTH = {F32: 4, BF16: 2, F16: 2, F64: 8, INT8: 1, UINT8: 1, E4M3: 1, E5M2: 1, DOTS: 1}
"""Bytes of a value of each kind."""

ONE_BYTE = (INT8, UINT8, E4M3, E5M2)
"""Kinds whose values have one byte."""


DOT_COLUMNS = 4
"""Columns whose values of DOTS lie side by side, and are multiplied at once."""


def columns_at_once(kind: int) -> int:
    """Columns whose values take as much room in a panel as a sum."""
    return DOT_COLUMNS if kind == DOTS else 1


def summed_kind(kind: int) -> int:
    """Kind of the sums, and of the activations, for values of a kind."""
    return F64 if kind == F64 else F32
