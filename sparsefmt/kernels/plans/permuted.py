"""Plans for layout `permuted`: one token as it is, more of them packed side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from sparsefmt.kernels import activations, permuted, permuted_in_blocks
from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.plans.contract import Plan, contiguous
from sparsefmt.kernels.scratch import room
from sparsefmt.kernels.simd import VECTOR_BYTES, WIDTH, summed_kind
from sparsefmt.layouts.permuted import MAX_U16_COLS

MAX_PACKED_TOKENS = 1024
"""Tokens that are packed at once."""

BLOCKED = {8: 5, 4: 3}
"""Vectors of tokens of the groups that are multiplied in blocks of columns, and how many of them must be full."""


def plans(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Iterable[Plan]:
    """See `PLANS`."""
    if x.shape[0] == 1:
        return (_one_token(contiguous(x), w, y, kind),)
    flags = x.flags
    if not (flags.c_contiguous or flags.f_contiguous) or not flags.aligned or not flags.writeable:
        x = np.array(x, order="K")
    return (_many_tokens(x, group, w, y, kind) for group in token_groups(x.shape[0], kind))


def _one_token(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Plan:
    finite = activations.all_finite(x)
    if not finite:
        return _any_activations(x, w, y, kind)
    make = permuted.one_token_kernel_of_gaps if _has_gaps(w) else permuted.one_token_kernel
    kernel = make(kind, w.cols > MAX_U16_COLS)

    def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> None:
        kernel(table, pieces, lo, hi, x, y)

    return Plan(1, run)


class TokenGroup(NamedTuple):
    """Tokens `first` to `first + tokens`, packed in groups of `vectors` vectors of `lanes` tokens.

    `in_blocks`: they are multiplied by one block of columns after the other (`permuted_in_blocks.py`).
    """

    first: int
    tokens: int
    lanes: int
    vectors: int
    in_blocks: bool


def token_groups(tokens: int, kind: int) -> Iterator[TokenGroup]:
    """All tokens: in the widest groups as long as more than `least` are left, then in narrower ones."""
    first = 0
    for lanes, vectors, least, in_blocks in token_shapes(kind):
        width = lanes * vectors
        while tokens - first > least:
            left = tokens - first
            # what is left of the last group fills another one, or is left to narrower ones
            taken = left if left < width or left % width > least else left // width * width
            taken = min(taken, MAX_PACKED_TOKENS)
            yield TokenGroup(first, taken, lanes, vectors, in_blocks)
            first += taken


@cache
def token_shapes(kind: int) -> tuple[tuple[int, int, int, bool], ...]:
    """(lanes, vectors, least, in_blocks) of groups, the widest first. They take more tokens than `least`."""
    lanes = VECTOR_BYTES // WIDTH[summed_kind(kind)]
    in_blocks = [(lanes, vectors, lanes * full, True) for vectors, full in BLOCKED.items()]
    others = permuted.token_shapes(kind)
    least = [lanes * vectors // 2 for lanes, vectors in others[:-1]]
    return *in_blocks, *((*shape, more, False) for shape, more in zip(others, [*least, 0], strict=True))


def _many_tokens(x: np.ndarray, group: TokenGroup, w: Operand, y: np.ndarray, kind: int) -> Plan:
    """For a group of the tokens of x. Both x and y are C- or F-contiguous."""
    first, tokens, lanes, vectors, in_blocks = group
    summed, blocks = summed_kind(kind), -(-tokens // (lanes * vectors))
    packed = room("activations", blocks * lanes * vectors * w.cols, y.dtype)
    across = not x.flags.c_contiguous
    finite = activations.in_tokens(summed, lanes, vectors, across)(x.T if across else x, first, tokens, packed)
    if not finite:
        return _any_activations(x[first : first + tokens], w, y[first : first + tokens], kind)
    wide, gaps = w.cols > MAX_U16_COLS, _has_gaps(w)
    sums = room("sums", blocks * lanes * vectors * w.rows, y.dtype)

    if in_blocks:
        blocked = permuted_in_blocks.blocked_kernel(kind, wide, gaps, vectors)
        density = w.work(1).multiply_adds / (w.rows * w.cols)
        step, typical = permuted_in_blocks.block_columns(w.cols, vectors, density)

        def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> None:
            blocked(table, pieces, lo, hi, packed, w.cols, w.rows, step, typical, blocks, sums)

    else:
        kernel = permuted.many_tokens_kernel(kind, wide, gaps, lanes, vectors)

        def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> None:
            kernel(table, pieces, lo, hi, packed, w.cols, w.rows, blocks, sums)

    def finish() -> None:
        across = not y.flags.c_contiguous
        activations.from_tokens(summed, lanes, vectors, across)(sums, y.T if across else y, first, tokens)

    return Plan(tokens, run, finish)


def _any_activations(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Plan:
    """For x with Inf or NaN: slow."""
    kernel = permuted.skipping_kernel(kind, w.cols > MAX_U16_COLS, _has_gaps(w))
    x, result = contiguous(x), np.empty(y.shape, y.dtype)

    def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> None:
        kernel(table, pieces, lo, hi, x, np.empty(1, y.dtype), result)

    def finish() -> None:
        y[...] = result

    return Plan(x.shape[0], run, finish)


def _has_gaps(w: Operand) -> bool:
    """Whether it is of the form that has `gaps`."""
    return w.tiling.layout.form == "gaps"
