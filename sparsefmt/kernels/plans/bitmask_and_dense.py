"""Plans for layouts `bitmask` and `dense`: few tokens multiply columns in registers, more of them multiply panels, or
rows that are taken out of the mask where that is faster."""

from __future__ import annotations

from collections.abc import Iterator

from sparsefmt.kernels import activations, bitmask, bitmask_by_rows, dense, expand, panel
from sparsefmt.kernels.dots import SIGNS, is_biased
from sparsefmt.kernels.kinds import DOTS, WIDTH, summed_kind
from sparsefmt.kernels.native import native
from sparsefmt.kernels.operand import Matrix
from sparsefmt.kernels.plans import permuted
from sparsefmt.kernels.plans.contract import Across, Plan, Step
from sparsefmt.kernels.simd import VECTOR_BYTES
from sparsefmt.kernels.transposed import SCRATCH_BYTES

MAX_TOKENS = 240 if panel.WIDE == 12 else 264
"""Tokens that are multiplied at once: their sums and a block of activations share the second-level cache."""

MAX_TOKENS_BY_ROWS = 512
"""The same where rows are taken out of the mask: once for all of them."""

LEAST_BY_ROWS = 20
"""Tokens of a group for which rows are taken out of the mask, at least."""

FEW = {"bitmask": bitmask.FEW, "dense": dense.FEW}
"""Most tokens that multiply columns in registers, by layout."""

PANEL_COST, ENTRY_COST, TAKEN_OUT_COST = (0.84, 1.3, 50) if VECTOR_BYTES == 64 else (0.88, 1.7, 30)
"""What panels cost for each element and token; rows taken out of the mask for each element that is not pruned and each
token, and for each such element once; in multiply-adds of a dense product. So rows are faster with AVX2 for 21 tokens
at 70 % zeros, for 60 at 60 %, for 500 at 50 %; with AVX-512 for 34, 63 and 132 (Zen 4;
`python -m tools.bench.map --layout bitmask`)."""

_GROUPS = (1, 2, 4, 6, 8, 12)
"""Numbers of tokens that there are kernels for."""


PANEL_COST_OF_DOTS = 0.66
"""What panels cost if weights and activations have eight bits, without an instruction for that (AVX2)."""

MOST_COLS_OF_DOTS = 2**24 // 128
"""Columns whose products of eight bits have a sum of 32 bits, and whose weights have one that float32 has. With
activations that are 128 too large the first may overflow, and is right again once 128 times the weights are taken away:
both wrap around."""

MOST_GROUP_COLS = panel.BLOCK
"""Columns of a group with scales of its own, at most."""


def plans(matrix: Matrix, kind: int, tokens: int, across: Across) -> Iterator[Plan]:
    """See `PLANS`. The matrix may have scales in groups of MOST_GROUP_COLS columns at most."""
    if kind == DOTS:
        for first in range(0, tokens, MAX_TOKENS):
            yield _of_dots(matrix, first, min(tokens - first, MAX_TOKENS))
        return
    done = 0
    in_blocks = matrix.groups > 1 or permuted.blocks_pay(matrix.cols, kind)
    for group in permuted.token_groups(tokens, kind, MAX_TOKENS_BY_ROWS, in_blocks=in_blocks):
        if group.in_blocks < in_blocks or group.tokens < LEAST_BY_ROWS or not rows_are_faster(matrix, group.tokens):
            break
        yield _by_rows(matrix, kind, group, across)
        done = group.first + group.tokens
    for first in range(done, tokens, MAX_TOKENS):
        yield _plan(matrix, kind, first, min(tokens - first, MAX_TOKENS))


def _plan(matrix: Matrix, kind: int, first: int, tokens: int) -> Plan:
    """A token that needs no padding is not arranged: small matrices are multiplied in less time than that takes."""
    of_bitmask, summed, cols = matrix.layout == "bitmask", summed_kind(kind), matrix.cols
    tables, scaled, group_cols = expand.tables(kind) if of_bitmask else 0, matrix.groups > 1, cols // matrix.groups
    is_few = tokens <= FEW[matrix.layout] and (not of_bitmask or expand.in_registers(kind))
    if is_few and scaled:
        is_few = of_bitmask and group_cols % expand.COLUMNS == 0
    if is_few:
        # all in one group, of the next larger size that there is a kernel for
        wide, narrow = 0, next(size for size in _GROUPS if size >= tokens)
        wides, narrows = 0, 1
        if of_bitmask:
            kernel, scratch = bitmask.few_tokens_kernel(kind, narrow), bitmask.scratch_bytes(cols)
            own: tuple[int, ...] = (tables,)
            if scaled:
                kernel, own = bitmask.scaled_kernel(kind, narrow), (tables, group_cols // expand.COLUMNS)
        else:
            kernel, scratch, own = dense.few_tokens_kernel(kind, narrow), SCRATCH_BYTES, ()
    else:
        # a single token is a group of its own: the kernel takes it for a wide one
        wide, narrow = (0, 1) if tokens == 1 else (panel.WIDE, panel.NARROW)
        wides, narrows, padded = (1, 0, 1) if tokens == 1 else panel.groups_of(tokens)
        kernel, scratch = (
            panel.many_tokens_kernel(of_bitmask, kind, tokens == 1, scaled),
            panel.scratch_bytes(kind, cols, padded),
        )
        own = (wides, narrows, tables, group_cols) if scaled else (wides, narrows, tables)
    if tokens == 1 and activations.padded(cols) == cols:
        return Plan(first, tokens, kernel, Step(activations.check(summed), 1), scratch=scratch, own=own)
    before = Step(activations.in_groups(summed, wide, narrow), wides + narrows)
    length = (wides * max(wide, narrow) + narrows * narrow) * activations.padded(cols)
    return Plan(first, tokens, kernel, before, length * WIDTH[summed], scratch=scratch, own=own)


def _of_dots(matrix: Matrix, first: int, tokens: int) -> Plan:
    """Weights and activations of eight bits, whose products are added up as integers."""
    way = panel.dots_way()
    if way is None:
        raise TypeError("no way to multiply DOTS: see dots_are_faster")
    wide, narrow = (0, 1) if tokens == 1 else (panel.WIDE, panel.NARROW)
    wides, narrows, padded = (1, 0, 1) if tokens == 1 else panel.groups_of(tokens)
    if way == SIGNS and tokens > 1:
        # weights without their signs take registers, too
        wides, narrows = 0, -(-tokens // panel.NARROW)
        padded = narrows * panel.NARROW
    own: tuple[int, ...] = wides, narrows, expand.tables(DOTS)
    if matrix.groups > 1:
        own = (*own, matrix.cols // matrix.groups)
    if tokens == 1 and matrix.groups == 1:
        kernel = bitmask.one_token_of_dots(way)
    else:
        kernel = panel.many_tokens_kernel(True, DOTS, tokens == 1, matrix.groups > 1, way)
    before = Step(activations.in_dots(wide, narrow, is_biased(way)), wides + narrows)
    arranged = padded * activations.padded(matrix.cols)
    return Plan(
        first, tokens, kernel, before, arranged, scratch=panel.scratch_bytes(DOTS, matrix.cols, padded), own=own
    )


def dots_are_faster(matrix: Matrix, tokens: int) -> bool:
    """Whether weights and activations of eight bits should be multiplied as integers, and not as float32."""
    way = panel.dots_way()
    if matrix.layout != "bitmask" or way is None or matrix.cols > MOST_COLS_OF_DOTS:
        return False
    if matrix.groups > 1 and matrix.cols // matrix.groups % expand.COLUMNS:
        return False
    if way != SIGNS:
        return True
    if tokens == 1:
        return matrix.groups == 1
    return tokens > FEW["bitmask"] and not rows_are_faster(matrix, tokens, PANEL_COST_OF_DOTS)


def rows_are_faster(matrix: Matrix, tokens: int, panel_cost: float | None = None) -> bool:
    """Whether so many tokens, at least 25 or so, should multiply rows that are taken out of the mask.

    `panel_cost`: by default PANEL_COST.
    """
    if matrix.layout != "bitmask" or matrix.cols > bitmask_by_rows.MOST_COLS:
        return False
    return (
        matrix.density * (ENTRY_COST * tokens + TAKEN_OUT_COST)
        < (PANEL_COST if panel_cost is None else panel_cost) * tokens
    )


def _by_rows(matrix: Matrix, kind: int, group: permuted.TokenGroup, across: Across) -> Plan:
    inner = permuted.multiplier_of(matrix, kind, group, (False, False))
    multiplier = permuted.Multiplier(
        bitmask_by_rows.many_tokens_kernel(kind, not group.in_blocks),
        (*inner.own, native(inner.kernel)),
        bitmask_by_rows.scratch_bytes(kind, matrix.cols),
    )
    return permuted.in_groups(matrix, kind, group, across, multiplier)


def any_activations(matrix: Matrix, kind: int, tokens: int) -> Plan:
    """For x with Inf or NaN: slow."""
    kernel = (bitmask if matrix.layout == "bitmask" else dense).skipping_kernel(kind)
    return Plan(0, tokens, kernel, None, scratch=2 * matrix.cols + 80)
