"""Plans for layouts `bitmask` and `dense`: a few tokens side by side, more of them in blocks that stay in cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparsefmt.dtypes import DOUBLE
from sparsefmt.kernels import activations, bitmask_and_dense, expand
from sparsefmt.kernels.bitmask_and_dense import PADDING, TOKENS, WORD
from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.plans.contract import Plan, contiguous
from sparsefmt.kernels.scratch import scratch
from sparsefmt.kernels.simd import WIDTH, summed_kind

FEW = 8
"""Tokens up to which values are expanded in registers, where that can be, for each of them anew."""

MAX_TOKENS = 128
"""Tokens that are multiplied at once: their sums and a block of activations share the L2 cache."""

BLOCK_BYTES = 1 << 19
"""Activations that stay in the L2 cache while all rows pass by."""


def plans(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Iterator[Plan]:
    """See `PLANS`."""
    for first in range(0, x.shape[0], MAX_TOKENS):
        yield _plan(x[first : first + MAX_TOKENS], w, y[first : first + MAX_TOKENS], kind)


def _plan(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Plan:
    """For at most `MAX_TOKENS` tokens. Kernels write tokens by rows; what `w @ x` wants by columns is copied."""
    pruned = w.layout == "bitmask"
    few = x.shape[0] <= FEW and (expand.in_registers(kind) or not pruned)
    make = _few_tokens if few else _many_tokens
    if y.flags.c_contiguous:
        return make(x, w, y, kind)
    result = scratch("result", y.size, y.dtype).reshape(y.shape)
    plan = make(x, w, result, kind)

    def finish() -> None:
        y[...] = result

    return Plan(plan.tokens, plan.run, finish)


def _few_tokens(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Plan:
    """Each token is filled up with zeros to whole words."""
    tokens, present, pruned = 1 << (x.shape[0] - 1).bit_length(), x.shape[0], w.layout == "bitmask"
    cols = _whole_words(w.cols)
    if tokens == 1 and cols == w.cols:
        laid_out = contiguous(x)
    else:
        laid_out = np.zeros((tokens, cols + PADDING), x.dtype)
        laid_out[:present, : w.cols] = x
    if pruned:
        finite = activations.all_finite(laid_out)
        if not finite:
            return _any_activations(x, w, y, kind)
    kernel, tables = bitmask_and_dense.few_tokens_kernel(pruned, kind, tokens), expand.tables(kind)

    def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> None:
        kernel(table, pieces, lo, hi, laid_out, w.cols, tables, np.empty(2 * WORD, y.dtype), y)

    return Plan(present, run)


def _many_tokens(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Plan:
    """Tokens are packed in blocks of columns."""
    tokens, pruned, summed, cols = x.shape[0], w.layout == "bitmask", summed_kind(kind), _whole_words(w.cols)
    padded_tokens = -(-tokens // TOKENS) * TOKENS
    fitting = BLOCK_BYTES // (padded_tokens * WIDTH[summed]) // WORD * WORD
    block = min(max(fitting, WORD), cols)
    packed = scratch("activations", padded_tokens * (-(-cols // block) * block), y.dtype)
    pack = activations.in_columns(summed, TOKENS)
    finite = pack(contiguous(x).reshape(-1), tokens, w.cols, block, packed)
    if pruned and not finite:
        return _any_activations(x, w, y, kind)
    kernel, tables = bitmask_and_dense.many_tokens_kernel(pruned, kind), expand.tables(kind)
    weights_size = bitmask_and_dense.scratch_bytes(kind, tokens, block) // 8 + 1

    def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> None:
        kernel(table, pieces, lo, hi, packed, w.cols, block, tables, scratch("weights", weights_size, DOUBLE), y)

    return Plan(tokens, run)


def _any_activations(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Plan:
    """For x with Inf or NaN and layout `bitmask`: slow."""
    kernel, x = bitmask_and_dense.skipping_kernel(kind), contiguous(x)

    def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> None:
        kernel(table, pieces, lo, hi, x, w.cols, np.empty(17, y.dtype), y)

    return Plan(x.shape[0], run)


def _whole_words(cols: int) -> int:
    """Columns rounded up to whole words of a mask."""
    return -(-cols // WORD) * WORD
