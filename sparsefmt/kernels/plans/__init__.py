"""Which kernel multiplies how many tokens, and what it gets. `contract.py` says what a plan is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sparsefmt.kernels.operand import Matrix
from sparsefmt.kernels.plans import bitmask_and_dense, permuted
from sparsefmt.kernels.plans.contract import Across, Plan

PLANS: dict[str, Callable[[Matrix, int, int, Across], Iterator[Plan]]] = {
    "dense": bitmask_and_dense.plans,
    "bitmask": bitmask_and_dense.plans,
    "permuted": permuted.plans,
}
"""By layout, plans(matrix, kind, tokens, across): together they take all tokens. `kind` is that of the values that
kernels read (`kinds.py`); only those of `permuted` take arrays that lie across."""

FOR_ANY_ACTIVATIONS: dict[str, Callable[[Matrix, int, int], Plan]] = {
    "dense": bitmask_and_dense.any_activations,
    "bitmask": bitmask_and_dense.any_activations,
    "permuted": permuted.any_activations,
}
"""By layout, plan(matrix, kind, tokens) for x with Inf or NaN, which skips what other kernels multiply by zero."""
