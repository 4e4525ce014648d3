"""Many tokens with layouts `bitmask` and `dense`: panels of weights, and the microkernel that multiplies them.

A panel holds some columns of a few rows as a BLAS would arrange them: column by column, the rows side by side. It stays
in the first-level cache. `bitmask.py` makes it by expanding a slice, `transposed.py` by transposing one. The
microkernel keeps the sums of all rows of a panel and of a group of tokens in registers. For each column it loads the
rows once and multiplies them by the activation of each token.

A row has one sum for each token, and adds its columns in ascending order. Sums are carried from one block of columns to
the next. Pruned positions are multiplied by zero, which changes no bit as long as x is finite.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from sparsefmt.bits_of_words import popcount
from sparsefmt.isa import DOTS as INSTRUCTION
from sparsefmt.isa import ISA
from sparsefmt.jit import jit
from sparsefmt.kernels.bitmask import expand_columns, last_columns, widen_mask
from sparsefmt.kernels.dots import SIGNS, dot_panel, from_dots, is_biased, less_dots, way_of
from sparsefmt.kernels.expand import (
    COLUMNS,
    begin_dots,
    dot_and_expand,
    end_dots,
    expand_and_dot,
    in_registers,
    values_of_word,
)
from sparsefmt.kernels.job import COLS, ROWS, TOKENS, X, Y, field, own, piece
from sparsefmt.kernels.kinds import DOTS, WIDTH, columns_at_once, summed_kind
from sparsefmt.kernels.operand import FIRST_ROW, HEIGHT, MASK, ROW_SUMS, SCALES, SLICE_OFFSETS, VALUES
from sparsefmt.kernels.raw_memory import load_u32, load_u64, prefetch, store_scalar
from sparsefmt.kernels.simd import VECTOR_BYTES, fma_by_rows, fma_panel, load, store, store_sums, zeros
from sparsefmt.kernels.transposed import SCRATCH_BYTES, transpose_columns
from sparsefmt.positions.masks import SLICE_ROWS

VECTORS = 2
"""Vectors of rows in the microkernel."""

WIDE, NARROW = (12, 8) if VECTOR_BYTES == 64 else (6, 4)
"""Tokens of a group. The sums of the wide one, the rows and an activation are what 32 or 16 registers hold. With narrow
groups at the end, few tokens are made up."""

PANEL = 8
"""Slices whose sums are carried from one block of columns to the next, so that a block of activations is read once for
all of them. The sums stay in the second-level cache."""


BLOCK = 256
"""Columns of a panel."""


class Groups(NamedTuple):
    """Tokens in groups: some of WIDE tokens, then up to two of NARROW ones. `tokens` counts those made up, too."""

    wide: int
    narrow: int
    tokens: int


def groups_of(tokens: int) -> Groups:
    """The groups that take so many tokens with the fewest made up. WIDE is three units, NARROW is two."""
    units = max(2, -(-tokens // (WIDE - NARROW)))
    narrow = -units % 3
    return Groups((units - 2 * narrow) // 3, narrow, units * (WIDE - NARROW))


def dots_way() -> int | None:
    """How this processor multiplies DOTS; None if it does not."""
    return way_of(INSTRUCTION, ISA)


def shape(kind: int) -> tuple[int, int]:
    """Rows that the microkernel multiplies at once, and rows of a panel, for values of a kind."""
    at_once = VECTORS * VECTOR_BYTES // WIDTH[summed_kind(kind)]
    return at_once, max(at_once, SLICE_ROWS)


def scratch_bytes(kind: int, cols: int, tokens: int) -> int:
    """Size of the scratch of `many_tokens_kernel`: a panel, sums that are carried, edges, where slices go on, a widened
    mask. `tokens` with those made up."""
    size, (_, rows) = WIDTH[summed_kind(kind)], shape(kind)
    panel, sums = rows * (BLOCK + 8) * size, (PANEL * SLICE_ROWS + rows) * tokens * size
    return panel + sums + SCRATCH_BYTES + 8 * PANEL + 2 * cols + 128


def _fill(masked, vectorised, kind, tables, values, mask, next_values, stride, rows, columns, to, pitch, edge):
    """Make the part of a panel that is a slice's; return where its values go on. next_values: needed after these."""
    raise NotImplementedError("jitted code only")


@overload(_fill, prefer_literal=True)
def _make_fill(masked, vectorised, kind, tables, values, mask, next_values, stride, rows, columns, to, pitch, edge):
    width = WIDTH[kind.literal_value]

    def of_bitmask(masked, vectorised, kind, tables, values, mask, next_values, stride, rows, columns, to, pitch, edge):
        ahead, mask_ahead = next_values - values, 2 * stride // width
        return expand_columns(vectorised, kind, tables, values, mask, columns, ahead, mask_ahead, to, pitch)

    def of_dense(masked, vectorised, kind, tables, values, mask, next_values, stride, rows, columns, to, pitch, edge):
        return transpose_columns(kind, values, stride, rows, columns, to, pitch, edge)

    return of_bitmask if masked.literal_value else of_dense


def _how(kind: int, scaled: bool, way: int) -> int:
    """How the microkernel multiplies, as one number, which kernels can have as a constant.

    Args:
        kind: that of the sums, or DOTS.
        scaled: whether the panel's sums are multiplied by the scales of its rows, and added to those that are carried.
        way: how DOTS are multiplied.
    """
    return (kind * 2 + scaled) * 8 + way


def _parts_of_how(how: int) -> tuple[int, bool, int]:
    return how // 16, bool(how // 8 % 2), how % 8


def _multiply(how, tokens, groups, weights, columns, x, x_stride, sums_at, carried, scales, row_sums):
    """The microkernel: a panel times groups of `tokens` tokens. Sums begin with zero unless they are `carried`.

    how: see `_how`. Of DOTS, four columns count as one.
    """
    raise NotImplementedError("jitted code only")


@overload(_multiply, prefer_literal=True)
def _make_multiply(how, tokens, groups, weights, columns, x, x_stride, sums_at, carried, scales, row_sums):
    kind, scaled, way = _parts_of_how(how.literal_value)
    of_dots = int(kind == DOTS)
    # their sums are bits of vectors of float32
    kind = summed_kind(kind)
    size, (at_once, rows) = WIDTH[kind], shape(kind)
    lanes, count, parts = VECTOR_BYTES // size, VECTORS * tokens.literal_value, rows // at_once
    part_bytes, pitch, vector_bytes = at_once * size, rows * size, VECTOR_BYTES
    by_scales = int(scaled)

    def multiply(how, tokens, groups, weights, columns, x, x_stride, sums_at, carried, scales, row_sums):
        for group in range(groups):
            for number in range(parts):
                sums = zeros(kind, lanes, count)
                if carried:
                    sums = load(sums_at, vector_bytes, kind, lanes, count)
                x_at = x + group * x_stride
                weights_at = weights + number * part_bytes
                for _ in range(columns):
                    sums = fma_panel(weights_at, x_at, tokens, sums)
                    weights_at += pitch
                    x_at += tokens * size
                store(sums_at, vector_bytes, sums)
                sums_at += count * vector_bytes

    def multiply_and_scale(how, tokens, groups, weights, columns, x, x_stride, sums_at, carried, scales, row_sums):
        for group in range(groups):
            for number in range(parts):
                sums, totals = zeros(kind, lanes, count), zeros(kind, lanes, count)
                x_at = x + group * x_stride
                weights_at = weights + number * part_bytes
                for _ in range(columns):
                    sums = fma_panel(weights_at, x_at, tokens, sums)
                    weights_at += pitch
                    x_at += tokens * size
                if carried:
                    totals = load(sums_at, vector_bytes, kind, lanes, count)
                store(sums_at, vector_bytes, fma_by_rows(sums, scales + number * part_bytes, tokens, totals))
                sums_at += count * vector_bytes

    def multiply_dots(how, tokens, groups, weights, columns, x, x_stride, sums_at, carried, scales, row_sums):
        for number in range(parts):
            for group in range(groups):
                at = sums_at + (group * parts + number) * count * vector_bytes
                sums = zeros(kind, lanes, count)
                if carried and not by_scales:
                    sums = load(at, vector_bytes, kind, lanes, count)
                x_at = x + group * x_stride
                weights_at = weights + number * part_bytes
                for _ in range(columns):
                    sums = dot_panel(weights_at, x_at, tokens, way, sums)
                    weights_at += pitch
                    x_at += tokens * size
                offset = number * part_bytes
                _put_dots(how, tokens, sums, at, carried, scales + offset, row_sums + offset)

    if of_dots:
        return multiply_dots
    return multiply_and_scale if scaled else multiply


def _put_dots(how, tokens, sums, sums_at, carried, scales, row_sums):
    """Integer sums of some tokens go to where those of the panel are kept."""
    raise NotImplementedError("jitted code only")


@overload(_put_dots, prefer_literal=True)
def _make_put_dots(how, tokens, sums, sums_at, carried, scales, row_sums):
    kind, scaled, way = _parts_of_how(how.literal_value)
    kind, biased, by_scales = summed_kind(kind), int(is_biased(way)), int(scaled)
    lanes, vector_bytes, vectors, count = sums.lanes, VECTOR_BYTES, VECTORS, sums.count

    def put(how, tokens, sums, sums_at, carried, scales, row_sums):
        if biased and (by_scales or not carried):
            # activations are 128 too large: so many times the weights are taken away again
            sums = less_dots(sums, tokens, load(row_sums, vector_bytes, kind, lanes, vectors))
        if by_scales:
            totals = zeros(kind, lanes, count)
            if carried:
                totals = load(sums_at, vector_bytes, kind, lanes, count)
            sums = fma_by_rows(from_dots(sums), scales, tokens, totals)
        store(sums_at, vector_bytes, sums)

    return put


def _expand_and_multiply(
    how, tokens, resume, following, mask, mask_pitch, tables, columns, weights, x, sums_at, carried, scales, row_sums
):
    """Like `_multiply` for one group and DOTS, while two slices are expanded to the panel at `weights`: neither waits
    for the other.

    resume: where the addresses of their values lie; they are left where the next columns begin. following: where those
    lie that are needed afterwards. mask_pitch: bytes from the mask of one slice to that of the next.
    """
    raise NotImplementedError("jitted code only")


@overload(_expand_and_multiply, prefer_literal=True)
def _make_expand_and_multiply(
    how, tokens, resume, following, mask, mask_pitch, tables, columns, weights, x, sums_at, carried, scales, row_sums
):
    dots, scaled, way = _parts_of_how(how.literal_value)
    kind, by_scales, one, two = summed_kind(dots), int(scaled), 1, 2
    size, lanes, count, vector_bytes = 4, VECTOR_BYTES // 4, VECTORS * tokens.literal_value, VECTOR_BYTES
    pitch = VECTORS * VECTOR_BYTES

    def run(
        how,
        tokens,
        resume,
        following,
        mask,
        mask_pitch,
        tables,
        columns,
        weights,
        x,
        sums_at,
        carried,
        scales,
        row_sums,
    ):
        values0, values1 = load_u64(resume), load_u64(resume + 8)
        ahead0, ahead1 = load_u64(following) - values0, load_u64(following + 8) - values1
        mask0, mask1 = mask, mask + mask_pitch
        sums = zeros(kind, lanes, count)
        if carried and not by_scales:
            sums = load(sums_at, vector_bytes, kind, lanes, count)
        to, x_at = weights, x
        whole = columns // COLUMNS
        if whole > 0:
            state = begin_dots((values0, values1), (mask0, mask1), dots, tables, to, sums)
            for _ in range(whole - 1):
                values0 += values_of_word(mask0)
                values1 += values_of_word(mask1)
                mask0, mask1, to = mask0 + 8, mask1 + 8, to + pitch
                prefetch(values0 + ahead0, one, two)
                prefetch(values1 + ahead1, one, two)
                prefetch(mask0 + 2 * mask_pitch, one, two)
                prefetch(mask1 + 2 * mask_pitch, one, two)
                state = dot_and_expand((values0, values1), (mask0, mask1), dots, tables, to, x_at, way, state)
                x_at += tokens * size
            values0 += values_of_word(mask0)
            values1 += values_of_word(mask1)
            sums = end_dots(x_at, way, state)
            to, x_at = to + pitch, x_at + tokens * size
        if columns % COLUMNS:
            # the place of what is expanded holds its mask until then
            bits0 = last_columns(mask, columns)
            bits1 = last_columns(mask + mask_pitch, columns)
            store_scalar(to, bits0)
            store_scalar(to + 8, bits1)
            sums = expand_and_dot((values0, values1), (to, to + 8), dots, tables, to, x_at, way, sums)
            values0 += popcount(bits0)
            values1 += popcount(bits1)
        store_scalar(resume, values0)
        store_scalar(resume + 8, values1)
        _put_dots(how, tokens, sums, sums_at, carried, scales, row_sums)

    return run


@cache
def many_tokens_kernel(
    masked: bool, kind: int, alone: bool = False, scaled: bool = False, way: int = SIGNS
) -> Callable[..., Any]:
    """Kernel for layout `bitmask` (`masked`) or `dense`, x being finite, with three numbers of its own.

    y (tokens, rows). x is as `activations.in_groups` makes it, for so many groups of WIDE tokens and so many of NARROW
    ones, the first two numbers, or of one token (`alone`) and none. The third is `expand.tables(kind)`; scratch is
    `scratch_bytes`. `scaled`: columns are in groups that have scales of their own, of as many columns as a fourth
    number says, BLOCK at most. `way`: how DOTS are multiplied, whose activations `activations.in_dots` arranges.
    """
    is_masked, vectorised, by_scales = int(masked), int(masked and in_registers(kind)), int(scaled)
    width, sums_kind, per_step, of_dots = WIDTH[kind], summed_kind(kind), columns_at_once(kind), int(kind == DOTS)
    how = _how(DOTS if of_dots else sums_kind, scaled, way)
    size, (at_once, rows) = WIDTH[sums_kind], shape(kind)
    wide, narrow = (1, 1) if alone else (WIDE, NARROW)
    slices, parts, pitch, slice_bytes = rows // SLICE_ROWS, rows // at_once, rows * size, SLICE_ROWS * size
    part_bytes, one = at_once * size, 1
    # a vector of sums is a slice
    fused = int(of_dots and masked and at_once == VECTORS * SLICE_ROWS)

    @jit
    def product(job, lo, hi, scratch):
        x_begin, weights, cols = load_u64(job + X), scratch, load_u64(job + COLS)
        wides, narrows, tables = own(job, 0), own(job, 1), own(job, 2)
        rows_in_all = load_u64(job + ROWS)
        y_begin, y_stride, y_count = load_u64(job + Y), rows_in_all * size, load_u64(job + TOKENS)
        padded_cols = (cols + 7) // 8 * 8 // per_step
        tokens = wides * wide + narrows * narrow
        unit_bytes = tokens * pitch
        sums = weights + (BLOCK + 8) * pitch
        edge = sums + (PANEL // slices + 1) * unit_bytes
        resume = edge + SCRATCH_BYTES
        widened = resume + 8 * PANEL
        stride, block = cols * width, BLOCK * per_step
        if by_scales:
            block = own(job, 3)
        for number_of_piece in range(lo, hi):
            line, first_slice, end = piece(job, number_of_piece)
            values, height = field(line, VALUES), field(line, HEIGHT)
            mask = np.int64(0)
            if is_masked:
                mask = field(line, MASK)
                last = (height - 1) // SLICE_ROWS
                if end > last and height - SLICE_ROWS * last <= 8:
                    widen_mask(mask + 2 * cols * last, cols, widened)
            for begin in range(first_slice, end, PANEL):
                panel_end = min(begin + PANEL, end)
                for slice_ in range(begin, panel_end):
                    at = values + SLICE_ROWS * slice_ * stride
                    if is_masked:
                        at = values + load_u32(field(line, SLICE_OFFSETS) + 4 * slice_) * width
                    store_scalar(resume + 8 * (slice_ - begin), at)
                for col in range(0, cols, block):
                    columns = min(block, cols - col)
                    steps, done = (columns + per_step - 1) // per_step, col // per_step
                    x_wide = x_begin + done * wide * size
                    x_narrow = x_begin + (wides * wide * padded_cols + done * narrow) * size
                    wide_stride, narrow_stride = wide * padded_cols * size, narrow * padded_cols * size
                    for unit in range(begin, panel_end, slices):
                        unit_sums = sums + (unit - begin) // slices * unit_bytes
                        narrow_sums = unit_sums + wides * wide * pitch
                        scales, row_sums = field(line, SCALES) + SLICE_ROWS * unit * size, np.int64(0)
                        if of_dots:
                            row_sums = field(line, ROW_SUMS) + SLICE_ROWS * unit * size
                        if by_scales:
                            scales += col // block * rows_in_all * size
                            row_sums += col // block * rows_in_all * size
                        if fused and unit + 2 <= panel_end and height - SLICE_ROWS * unit > SLICE_ROWS + 8:
                            at = resume + 8 * (unit - begin)
                            following = resume if unit + 4 > panel_end else at + 16
                            unit_mask = mask + 2 * cols * unit + 2 * col
                            if wides > 0:
                                _expand_and_multiply(
                                    how, wide, at, following, unit_mask, 2 * cols, tables, columns, weights,
                                    x_wide, unit_sums, col > 0, scales, row_sums,
                                )  # fmt: skip
                            else:
                                _expand_and_multiply(
                                    how, narrow, at, following, unit_mask, 2 * cols, tables, columns, weights,
                                    x_narrow, unit_sums, col > 0, scales, row_sums,
                                )  # fmt: skip
                            first_wide, first_narrow = min(wides, 1), 1 - min(wides, 1)
                        else:
                            first_wide, first_narrow = 0, 0
                            for slice_ in range(unit, unit + slices):
                                to = weights + (slice_ - unit) * slice_bytes
                                if slice_ >= panel_end:
                                    for number in range(steps):
                                        store(to + number * pitch, slice_bytes, zeros(kind, SLICE_ROWS, one))
                                    continue
                                rows_left = height - SLICE_ROWS * slice_
                                slice_mask = mask + 2 * cols * slice_ if rows_left > 8 else widened
                                at = resume + 8 * (slice_ - begin)
                                following = resume if slice_ + 1 == panel_end else at + 8
                                after = _fill(
                                    is_masked, vectorised, kind, tables, load_u64(at), slice_mask + 2 * col,
                                    load_u64(following), stride, rows_left, columns, to, pitch, edge,
                                )  # fmt: skip
                                store_scalar(at, after)
                        _multiply(
                            how, wide, wides - first_wide, weights, steps, x_wide + first_wide * wide_stride,
                            wide_stride, unit_sums + first_wide * wide * pitch, col > 0, scales, row_sums,
                        )  # fmt: skip
                        _multiply(
                            how, narrow, narrows - first_narrow, weights, steps,
                            x_narrow + first_narrow * narrow_stride, narrow_stride,
                            narrow_sums + first_narrow * narrow * pitch, col > 0, scales, row_sums,
                        )  # fmt: skip
                y_tile = y_begin + field(line, FIRST_ROW) * size
                # a token's rows one after the other: they are in one page, and tokens are not
                for group in range(wides + narrows):
                    first = wide * group if group < wides else wides * wide + narrow * (group - wides)
                    group_tokens = wide if group < wides else narrow
                    for token in range(first, min(first + group_tokens, y_count)):
                        for unit in range(begin, panel_end, slices):
                            at = sums + (unit - begin) // slices * unit_bytes + first * pitch
                            at += (token - first) * part_bytes
                            for number in range(parts):
                                row = SLICE_ROWS * unit + at_once * number
                                if row < height:
                                    total = load(at, part_bytes, sums_kind, at_once, one)
                                    if of_dots and not by_scales:
                                        total = from_dots(total)
                                    y_at = y_tile + token * y_stride + row * size
                                    rows_here = min(height, SLICE_ROWS * panel_end) - row
                                    store_sums(y_at, y_stride, one, rows_here, total)
                                at += group_tokens * part_bytes

    return product
