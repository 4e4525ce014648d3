"""Which kernel multiplies how many tokens, and what it gets. `contract.py` says what a plan is."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.plans import bitmask_and_dense, permuted
from sparsefmt.kernels.plans.contract import Plan

PLANS: dict[str, Callable[[np.ndarray, Operand, np.ndarray, int], Iterable[Plan]]] = {
    "dense": bitmask_and_dense.plans,
    "bitmask": bitmask_and_dense.plans,
    "permuted": permuted.plans,
}
"""By layout, plans(x, w, y, kind): one plan after the other, which together fill y (tokens, rows) with the products of
x (tokens, cols) and w.

x and y have the dtype of the sums; y or its transpose is C-contiguous. `kind` is that of the values that kernels read
(`simd.py`). Run and finish each plan before asking for the next one: it takes the same memory.
"""
