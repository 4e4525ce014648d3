"""Plans for layout `permuted`: one token as it is, more of them packed side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from sparsefmt.kernels import activations, permuted, permuted_in_blocks
from sparsefmt.kernels.activations import all_finite
from sparsefmt.kernels.job import address, block
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
    if not all_finite(x):
        return _any_activations(x, w, y, kind)
    make = permuted.one_token_kernel_of_gaps if _has_gaps(w) else permuted.one_token_kernel
    kernel = make(kind, w.cols > MAX_U16_COLS)
    return Plan(1, kernel, block(w.address, 0, address(x), address(y), w.cols, 1, w.rows), 0, (x, y))


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
    across = not x.flags.c_contiguous
    packed = room("activations", blocks * lanes * vectors * w.cols, y.dtype)
    pack = activations.in_tokens(summed, lanes, vectors, across)
    if not pack(x.T if across else x, first, tokens, packed.array):
        return _any_activations(x[first : first + tokens], w, y[first : first + tokens], kind)
    sums = room("sums", blocks * lanes * vectors * w.rows, y.dtype)
    wide, gaps = w.cols > MAX_U16_COLS, _has_gaps(w)
    own: tuple[int, ...] = (blocks,)
    if in_blocks:
        kernel = permuted_in_blocks.blocked_kernel(kind, wide, gaps, vectors)
        density = w.work(1).multiply_adds / (w.rows * w.cols)
        own = (blocks, *permuted_in_blocks.block_columns(w.cols, vectors, density))
    else:
        kernel = permuted.many_tokens_kernel(kind, wide, gaps, lanes, vectors)

    def finish() -> None:
        across = not y.flags.c_contiguous
        activations.from_tokens(summed, lanes, vectors, across)(sums.array, y.T if across else y, first, tokens)

    job = block(w.address, 0, packed.address, sums.address, w.cols, tokens, w.rows, *own)
    return Plan(tokens, kernel, job, 0, (packed, sums), finish)


def _any_activations(x: np.ndarray, w: Operand, y: np.ndarray, kind: int) -> Plan:
    """For x with Inf or NaN: slow."""
    kernel = permuted.skipping_kernel(kind, w.cols > MAX_U16_COLS, _has_gaps(w))
    x, result = contiguous(x), np.empty(y.shape, y.dtype)

    def finish() -> None:
        y[...] = result

    job = block(w.address, 0, address(x), address(result), w.cols, x.shape[0], w.rows)
    return Plan(x.shape[0], kernel, job, 1, (x, result), finish)


def _has_gaps(w: Operand) -> bool:
    """Whether it is of the form that has `gaps`."""
    return w.tiling.layout.form == "gaps"
