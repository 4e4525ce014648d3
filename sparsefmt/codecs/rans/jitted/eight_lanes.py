"""Eight lanes of 16 bits, some of which are moved side by side, or back: the instruction `pshufb` of x86, by tables."""

from __future__ import annotations

import numpy as np
from llvmlite import ir

LANES = 8

NOTHING = 0x80
"""What `pshufb` makes a zero of."""


def _make_shuffles() -> tuple[np.ndarray, np.ndarray]:
    together, apart = np.full((2, 256, LANES, 2), NOTHING, np.uint8)
    for mask in range(256):
        lanes = [lane for lane in range(LANES) if mask >> lane & 1]
        for place, lane in enumerate(lanes):
            together[mask, LANES - len(lanes) + place] = 2 * lane, 2 * lane + 1
            apart[mask, lane] = 2 * place, 2 * place + 1
    return together.ravel(), apart.ravel()


TOGETHER, APART = _make_shuffles()
"""For each mask of eight lanes, how 16 bytes are moved: these lanes side by side, at the end; and as many first ones
to these lanes. Other lanes become zeros."""


def byte_shuffled(builder: ir.IRBuilder, data: ir.Value, order: ir.Value) -> ir.Value:
    """16 bytes in another order."""
    kind = ir.FunctionType(data.type, [data.type, data.type])
    return builder.call(builder.module.declare_intrinsic("llvm.x86.ssse3.pshuf.b.128", (), kind), [data, order])
