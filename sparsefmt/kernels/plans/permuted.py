"""Plans for layout `permuted`: one token as it is, more of them arranged side by side."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from sparsefmt.kernels import activations, gather, permuted, permuted_by_gather, permuted_in_blocks
from sparsefmt.kernels.kinds import WIDTH, summed_kind
from sparsefmt.kernels.operand import Matrix
from sparsefmt.kernels.plans.contract import Across, Kernel, Plan, Step
from sparsefmt.kernels.simd import VECTOR_BYTES
from sparsefmt.layouts.permuted import MAX_U16_COLS

MAX_ARRANGED_TOKENS = 128
"""Tokens that are arranged at once: they and their sums stay in caches. More of them gain little from reading the
weights once."""

BLOCKED = {8: 5, 4: 3}
"""Vectors of tokens of the groups that are multiplied in blocks of columns, and how many of them must be full."""


MOST_ACTIVATION_BYTES = 2 << 20
"""Activations of a group of tokens up to which AVX-512 needs no blocks of columns."""


def plans(matrix: Matrix, kind: int, tokens: int, across: Across) -> Iterator[Plan]:
    """See `PLANS`."""
    if matrix.groups > 1:
        for group in _groups_in_blocks(tokens, kind):
            yield _many_tokens(matrix, kind, group, across)
        return
    if tokens == 1:
        yield _one_token(matrix, kind)
        return
    for group in token_groups(tokens, kind, in_blocks=blocks_pay(matrix.cols, kind)):
        yield _many_tokens(matrix, kind, group, across)


def _one_token(matrix: Matrix, kind: int) -> Plan:
    wide, gaps = matrix.cols > MAX_U16_COLS, _has_gaps(matrix)
    if not wide and gather.is_fast():
        kernel = permuted_by_gather.one_token_kernel(kind, gaps)
    else:
        kernel = (permuted.one_token_kernel_of_gaps if gaps else permuted.one_token_kernel)(kind, wide)
    return Plan(0, 1, kernel, Step(activations.check(summed_kind(kind)), 1))


class TokenGroup(NamedTuple):
    """Tokens `first` to `first + tokens`, arranged in groups of `vectors` vectors of `lanes` tokens.

    `in_blocks`: they are multiplied by one block of columns after the other (`permuted_in_blocks.py`).
    """

    first: int
    tokens: int
    lanes: int
    vectors: int
    in_blocks: bool

    @property
    def blocks(self) -> int:
        """Groups of so many vectors that the tokens fill."""
        return -(-self.tokens // (self.lanes * self.vectors))


def token_groups(
    tokens: int, kind: int, most: int = MAX_ARRANGED_TOKENS, *, in_blocks: bool = True
) -> Iterator[TokenGroup]:
    """All tokens: in the widest groups as long as more than `least` are left, then in narrower ones; at most `most`
    tokens in each. `in_blocks`: whether wide groups are multiplied in blocks of columns."""
    first = 0
    for lanes, vectors, least, blocked in token_shapes(kind, in_blocks):
        width = lanes * vectors
        while tokens - first > least:
            left = tokens - first
            # what is left of the last group fills another one, or is left to narrower ones
            taken = left if left < width or left % width > least else left // width * width
            taken = min(taken, most)
            yield TokenGroup(first, taken, lanes, vectors, blocked)
            first += taken


def _groups_in_blocks(tokens: int, kind: int) -> Iterator[TokenGroup]:
    """All tokens, in groups that are all multiplied in blocks of columns."""
    lanes = VECTOR_BYTES // WIDTH[summed_kind(kind)]
    for first in range(0, tokens, MAX_ARRANGED_TOKENS):
        taken = min(tokens - first, MAX_ARRANGED_TOKENS)
        vectors = next(count for count in (1, 2, 4, 8) if taken <= lanes * count or count == 8)
        yield TokenGroup(first, taken, lanes, vectors, True)


def blocks_pay(cols: int, kind: int) -> bool:
    """Whether many tokens should be multiplied in blocks of columns.

    With 32 registers, `permuted.many_tokens_kernel` multiplies two vectors of tokens by eight rows that go through the
    columns side by side, so that their activations mostly are in the first-level cache. That is faster, unless the
    second one is too small for all of them.
    """
    lanes, vectors = permuted.token_shapes(kind)[0]
    return vectors == 1 or cols * lanes * vectors * WIDTH[summed_kind(kind)] > MOST_ACTIVATION_BYTES


@cache
def token_shapes(kind: int, in_blocks: bool = True) -> tuple[tuple[int, int, int, bool], ...]:
    """(lanes, vectors, least, in_blocks) of groups, the widest first. They take more tokens than `least`."""
    lanes = VECTOR_BYTES // WIDTH[summed_kind(kind)]
    blocked = [(lanes, vectors, lanes * full, True) for vectors, full in BLOCKED.items() if in_blocks]
    others = permuted.token_shapes(kind)
    least = [lanes * vectors // 2 for lanes, vectors in others[:-1]]
    return *blocked, *((*shape, more, False) for shape, more in zip(others, [*least, 0], strict=True))


class Multiplier(NamedTuple):
    """A kernel for tokens arranged in groups, the numbers of its own, the number of groups being the first, and its
    bytes of scratch."""

    kernel: Kernel
    own: tuple[int, ...]
    scratch: int = 0


def _many_tokens(matrix: Matrix, kind: int, group: TokenGroup, across: Across) -> Plan:
    multiplier = multiplier_of(matrix, kind, group, (matrix.cols > MAX_U16_COLS, _has_gaps(matrix)))
    return in_groups(matrix, kind, group, across, multiplier)


def multiplier_of(matrix: Matrix, kind: int, group: TokenGroup, form: tuple[bool, bool]) -> Multiplier:
    """The kernel for a group. `form`: wide, gaps."""
    if not group.in_blocks:
        kernel = permuted.many_tokens_kernel(kind, *form, group.lanes, group.vectors)
        return Multiplier(kernel, (group.blocks, permuted.slots_at_once(matrix.density), 0))
    kernel = permuted_in_blocks.blocked_kernel(kind, *form, group.vectors, matrix.groups > 1)
    if matrix.groups > 1:
        return Multiplier(kernel, (group.blocks, matrix.cols // matrix.groups, 0))
    return Multiplier(
        kernel, (group.blocks, *permuted_in_blocks.block_columns(matrix.cols, group.vectors, matrix.density))
    )


def in_groups(matrix: Matrix, kind: int, group: TokenGroup, across: Across, multiplier: Multiplier) -> Plan:
    """A plan that arranges a group of tokens for a kernel, and puts its sums in place."""
    first, tokens, lanes, vectors, _ = group
    summed = summed_kind(kind)
    token_bytes = group.blocks * lanes * vectors * WIDTH[summed]
    # zeros fill the last block
    before = Step(activations.in_tokens(summed, lanes, vectors, across.x), group.blocks * vectors)
    behind = Step(activations.from_tokens(summed, lanes, vectors, across.y), -(-tokens // lanes))
    kernel, own, scratch = multiplier
    arranged, sums = token_bytes * matrix.cols, token_bytes * matrix.rows
    return Plan(first, tokens, kernel, before, arranged, behind, sums, scratch, own)


def any_activations(matrix: Matrix, kind: int, tokens: int) -> Plan:
    """For x with Inf or NaN: slow."""
    kernel = permuted.skipping_kernel(kind, matrix.cols > MAX_U16_COLS, _has_gaps(matrix))
    return Plan(0, tokens, kernel, None, scratch=8)


def _has_gaps(matrix: Matrix) -> bool:
    """Whether it is of the form that has `gaps`."""
    return matrix.form == "gaps"
