"""Plans for layouts `bitmask` and `dense`: few tokens multiply columns in registers, more of them multiply panels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sparsefmt.kernels import bitmask, dense, expand, panel
from sparsefmt.kernels.activations import OVERFLOW, all_finite, in_groups
from sparsefmt.kernels.job import address, block
from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.plans.contract import Kernel, Plan, contiguous
from sparsefmt.kernels.scratch import room, scratch
from sparsefmt.kernels.simd import summed_kind

MAX_TOKENS = 240 if panel.WIDE == 12 else 264
"""Tokens that are multiplied at once: their sums and a block of activations share the second-level cache."""

FEW = {"bitmask": bitmask.FEW, "dense": dense.FEW}
"""Most tokens that multiply columns in registers, by layout."""

_GROUPS = (1, 2, 4, 6, 8, 12)
"""Numbers of tokens that there are kernels for."""

_WHOLE_COLUMNS = 8
"""Kernels read activations up to a multiple of so many columns."""


class Recipe(NamedTuple):
    """How so many tokens are multiplied by matrices of so many columns, whatever their elements.

    Attributes:
        packers: (pack, first token, groups, begin) of `activations.in_groups`; none if x is taken as it is.
        padded_cols: columns of packed activations.
        length: elements of packed activations.
        own: the kernel's own numbers.
        scratch: elements of 8 bytes that it needs.
    """

    packers: tuple[tuple[Callable[..., bool], int, int, int], ...]
    padded_cols: int
    length: int
    kernel: Kernel
    own: tuple[int, ...]
    scratch: int


def plans(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Iterable[Plan]:
    """See `PLANS`."""
    if x.shape[0] <= MAX_TOKENS:
        return (_plan(contiguous(x), w, y, kind),)
    parts = (slice(first, first + MAX_TOKENS) for first in range(0, x.shape[0], MAX_TOKENS))
    return (_plan(contiguous(x[part]), w, y[part], kind) for part in parts)


def _plan(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Plan:
    """For at most `MAX_TOKENS` tokens. Kernels write tokens by rows; what `w @ x` wants by columns is copied."""
    tokens = x.shape[0]
    recipe = _recipe(w.layout, kind, w.cols, tokens)
    if not recipe.packers:
        packed, x_address, finite = x, address(x), all_finite(x)
    else:
        (packed, x_address), finite = room("activations", recipe.length, y.dtype), True
        for pack, first, groups, begin in recipe.packers:
            finite &= pack(x, first, groups, recipe.padded_cols, packed, begin)
    result = y if y.flags.c_contiguous else scratch("result", y.size, y.dtype).reshape(y.shape)
    kernel, own, nwords = recipe.kernel, recipe.own, recipe.scratch
    if not finite:
        packed, x_address = x, address(x)
        kernel, own = (bitmask if w.layout == "bitmask" else dense).skipping_kernel(kind), ()
        nwords = (2 * w.cols + 64) // 8 + 2
    job = block(w.address, 0, x_address, address(result), w.cols, tokens, w.rows, *own)
    if result is y:
        return Plan(tokens, kernel, job, nwords, (packed, y))

    def finish() -> None:
        y[...] = result

    return Plan(tokens, kernel, job, nwords, (packed, result), finish)


@lru_cache(maxsize=1 << 12)
def _recipe(layout: str, kind: int, cols: int, tokens: int) -> Recipe:
    """A token that needs no padding is not packed: small matrices are multiplied in less time than that takes."""
    padded_cols = -(-cols // _WHOLE_COLUMNS) * _WHOLE_COLUMNS
    of_bitmask = layout == "bitmask"
    tables = expand.tables(kind) if of_bitmask else 0
    if tokens <= FEW[layout] and (not of_bitmask or expand.in_registers(kind)):
        # all in one group, of the next larger size that there is a kernel for
        count = next(size for size in _GROUPS if size >= tokens)
        groups = [(count, 1)]
        if of_bitmask:
            kernel, nbytes = bitmask.few_tokens_kernel(kind, count), bitmask.scratch_bytes(cols)
            own: tuple[int, ...] = (tables,)
        else:
            kernel, own, nbytes = dense.few_tokens_kernel(kind, count), (), dense.SCRATCH_BYTES
    else:
        wides, narrows, padded = (1, 0, 1) if tokens == 1 else panel.groups_of(tokens)
        groups = [(1, 1)] if tokens == 1 else [(panel.WIDE, wides), (panel.NARROW, narrows)]
        kernel = panel.many_tokens_kernel(of_bitmask, kind, tokens == 1)
        own, nbytes = (wides, narrows, tables), panel.scratch_bytes(kind, cols, padded)
    packers, first = [], 0
    for count, number in groups:
        if number:
            packers.append((in_groups(summed_kind(kind), count), first, number, first * padded_cols))
        first += count * number
    as_it_is = tokens == 1 and padded_cols == cols
    length = first * padded_cols + OVERFLOW
    return Recipe(() if as_it_is else tuple(packers), padded_cols, length, kernel, own, nbytes // 8 + 1)
