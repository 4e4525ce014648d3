"""Plans for layouts `bitmask` and `dense`: few tokens multiply columns in registers, more of them multiply panels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from sparsefmt.dtypes import DOUBLE, SINGLE
from sparsefmt.kernels import bitmask, dense, expand, panel
from sparsefmt.kernels.activations import OVERFLOW, all_finite, in_groups
from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.plans.contract import Plan, contiguous
from sparsefmt.kernels.scratch import room, scratch
from sparsefmt.kernels.simd import F32, F64

MAX_TOKENS = 240 if panel.WIDE == 12 else 264
"""Tokens that are multiplied at once: their sums and a block of activations share the second-level cache."""

FEW = {"bitmask": bitmask.FEW, "dense": dense.FEW}
"""Most tokens that multiply columns in registers, by layout."""

_GROUPS = (1, 2, 4, 6, 8, 12)
"""Numbers of tokens that there are kernels for."""

_WHOLE_COLUMNS = 8
"""Kernels read activations up to a multiple of so many columns."""


def plans(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Iterable[Plan]:
    """See `PLANS`."""
    if x.shape[0] == 1 and not w.cols % _WHOLE_COLUMNS and _in_registers(w, kind):
        return (_one_token(contiguous(x), w, y, kind),)
    return _plans_of_packed(x, w, y, kind)


def _one_token(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Plan:
    """For a token that kernels can read as it is: small matrices are multiplied in less time than packing it takes.

    y of one token is C-contiguous, and so is its transpose.
    """
    return _few_tokens_plan(x.reshape(-1), 1, w, y, kind) if all_finite(x) else _any_activations(x, w, y, kind)


def _plans_of_packed(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Iterator[Plan]:
    for first in range(0, x.shape[0], MAX_TOKENS):
        yield _plan(contiguous(x[first : first + MAX_TOKENS]), w, y[first : first + MAX_TOKENS], kind)


def _plan(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Plan:
    """For at most `MAX_TOKENS` tokens. Kernels write tokens by rows; what `w @ x` wants by columns is copied."""
    make = _few_tokens if x.shape[0] <= FEW[w.layout] and _in_registers(w, kind) else _many_tokens
    if y.flags.c_contiguous:
        return make(x, w, y, kind)
    result = scratch("result", y.size, y.dtype).reshape(y.shape)
    plan = make(x, w, result, kind)

    def finish() -> None:
        y[...] = result

    return Plan(plan.tokens, plan.run, finish)


def _in_registers(w: Operand, kind: int) -> bool:
    return w.layout == "dense" or expand.in_registers(kind)


def _few_tokens(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Plan:
    """All tokens in one group, of the next larger size that there is a kernel for."""
    group = next(size for size in _GROUPS if size >= x.shape[0])
    packed, finite = _packed(x, y.dtype, (group, 1), (group, 0))
    return _few_tokens_plan(packed, group, w, y, kind) if finite else _any_activations(x, w, y, kind)


def _few_tokens_plan(packed: np.ndarray, group: int, w: Operand, y: np.ndarray, kind: int) -> Plan:
    """The plan for finite activations in a group of so many tokens, column by column."""
    cols, tokens = w.cols, y.shape[0]
    if w.layout == "dense":
        of_dense = dense.few_tokens_kernel(kind, group)

        def run_dense(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> None:
            of_dense(table, pieces, lo, hi, packed, cols, room("weights", dense.SCRATCH_BYTES), y)

        return Plan(tokens, run_dense)
    of_bitmask, tables = bitmask.few_tokens_kernel(kind, group), expand.tables(kind)
    nbytes = bitmask.scratch_bytes(cols)

    def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> None:
        of_bitmask(table, pieces, lo, hi, packed, cols, tables, room("weights", nbytes), y)

    return Plan(tokens, run)


def _many_tokens(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Plan:
    """Tokens in groups, one behind the other."""
    tokens, masked = x.shape[0], w.layout == "bitmask"
    alone = tokens == 1
    wides, narrows, padded = (1, 0, 1) if alone else panel.groups_of(tokens)
    wide, narrow = (1, 1) if alone else (panel.WIDE, panel.NARROW)
    packed, finite = _packed(x, y.dtype, (wide, wides), (narrow, narrows))
    if not finite:
        return _any_activations(x, w, y, kind)
    kernel, tables = panel.many_tokens_kernel(masked, kind, alone), expand.tables(kind)
    size = panel.scratch_bytes(kind, w.cols, padded)

    def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> None:
        kernel(table, pieces, lo, hi, packed, w.cols, wides, narrows, tables, room("weights", size), y)

    return Plan(tokens, run)


def _packed(x: np.ndarray, dtype: np.dtype, wide: tuple[int, int], narrow: tuple[int, int]) -> tuple[np.ndarray, bool]:
    """x in groups, given as (tokens of a group, groups), and whether it is finite."""
    padded_cols = -(-x.shape[1] // _WHOLE_COLUMNS) * _WHOLE_COLUMNS
    if wide == (1, 1) and padded_cols == x.shape[1]:
        return x.reshape(-1), all_finite(x)
    in_wide = wide[0] * wide[1]
    packed = scratch("activations", (in_wide + narrow[0] * narrow[1]) * padded_cols + OVERFLOW, dtype)
    if wide == (1, 1):
        packed[: x.shape[1]], packed[x.shape[1] : padded_cols] = x[0], 0
        return packed, all_finite(x)
    kind, finite = F32 if dtype == SINGLE else F64, True
    for first, (count, groups) in ((0, wide), (in_wide, narrow)):
        if groups:
            finite &= in_groups(kind, count)(x, first, groups, padded_cols, packed, first * padded_cols)
    return packed, finite


def _any_activations(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Plan:
    """For x with Inf or NaN: slow."""
    make: Callable[[int], Callable[..., None]] = (
        bitmask.skipping_kernel if w.layout == "bitmask" else dense.skipping_kernel
    )
    kernel = make(kind)

    def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> None:
        kernel(table, pieces, lo, hi, x, w.cols, np.empty((2 * w.cols + 64) // 8 + 2, DOUBLE), y)

    return Plan(x.shape[0], run)
