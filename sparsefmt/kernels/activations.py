"""Activations arranged for kernels that multiply many tokens at once, and their results put back.

A kernel finds arranged activations in the order in which it reads them, one line of the cache after the other. The
caller's x is (tokens, cols) and its y (tokens, rows). With `across` they lie the other way round, as `w @ x` has them:
x is (cols, tokens) and y (rows, tokens). Both are C-contiguous.

Each is a function (job, lo, hi, scratch) as kernels are (`job.py`), but that `lo` and `hi` count units of its own, and
that it needs no scratch. Whoever finds an activation that is Inf or NaN notes it in the job.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba.extending import overload

from sparsefmt.isa import NEON
from sparsefmt.jit import jit
from sparsefmt.kernels.dots import flip_signs_of_bytes
from sparsefmt.kernels.job import (
    COLS,
    FIRST,
    RESULT,
    RESULT_PITCH,
    ROWS,
    SOURCE,
    SOURCE_PITCH,
    TOKENS,
    X,
    Y,
    note_odd,
    own,
)
from sparsefmt.kernels.kinds import F32, WIDTH
from sparsefmt.kernels.raw_memory import load_scalar, load_u32, load_u64, store_scalar
from sparsefmt.kernels.simd import all_zero, fma, fma_all, load, load_rows, plus_zero, store, transpose, zeros

CHAINS = 2
"""Sums of eight lanes that show on ARM whether an activation is odd: fewer are waited for, more do not fit into the
registers beside a square."""

WHOLE_COLUMNS = 8
"""Kernels with rows in the lanes read activations up to a multiple of so many columns."""


def padded(cols: int) -> int:
    """Columns of activations arranged for kernels with rows in the lanes."""
    return -(-cols // WHOLE_COLUMNS) * WHOLE_COLUMNS


def _nothing(kind: int) -> Any:
    """A zero of the type of activations."""
    return np.float64(0) if WIDTH[kind] == 8 else np.float32(0)


@cache
def check(kind: int) -> Callable[..., Any]:
    """For activations that are taken as they are, one unit: note whether any is odd."""
    size, zero = WIDTH[kind], _nothing(kind)

    @jit
    def check(job, lo, hi, scratch):
        begin = load_u64(job + X)
        end = begin + load_u64(job + TOKENS) * load_u64(job + COLS) * size
        odd = 0
        for at in range(begin, end, size):
            value = load_scalar(at, zero)
            odd |= value - value != zero
        if odd != 0:
            note_odd(job)

    return check


def arrange_group(kind, lanes, count, x, pitch, last, cols, to):
    """Arrange a group of `count` tokens, the first of which begins at x, the others `pitch` bytes apart: column by
    column, side by side, with zeros where columns end. Behind token `last`, that one stands again. Return whether all
    are finite. Nothing is written behind the group, since another thread may have arranged the next one.

    `lanes`: 8, or a power of two that is not below `count`.
    """
    raise NotImplementedError("jitted code only")


@overload(arrange_group, prefer_literal=True)
def _make_arrange_group(kind, lanes, count, x, pitch, last, cols, to):
    size, zero, tokens, whole = (
        WIDTH[kind.literal_value],
        _nothing(kind.literal_value),
        count.literal_value,
        WHOLE_COLUMNS,
    )

    chains = CHAINS if NEON else 1

    def arrange(kind, lanes, count, x, pitch, last, cols, to):
        poison, nothing = zeros(kind, lanes, chains), zeros(kind, lanes, 1)
        # at least one column is left for the loop below, and so are eight columns of the group
        whole_cols = max(cols - 1, 0) // lanes * lanes
        for col in range(0, whole_cols, lanes):
            values = load_rows(x + col * size, pitch, last, kind, lanes, count)
            poison = fma_all(values, nothing, poison)
            # each is stored with more lanes than there are tokens: what follows in the group comes later
            store(to + col * tokens * size, tokens * size, transpose(values))
        finite, at = all_zero(poison), to + whole_cols * tokens * size
        for col in range(whole_cols, (cols + whole - 1) // whole * whole):
            for token in range(tokens):
                value = zero
                if col < cols:
                    value = load_scalar(x + min(token, last) * pitch + col * size, zero)
                finite &= value - value == zero
                store_scalar(at, value)
                at += size
        return finite

    return arrange


@cache
def in_groups(kind: int, wide: int, narrow: int) -> Callable[..., Any]:
    """Arranges activations for kernels with rows in the lanes (`panel.py`, `bitmask.py`, `dense.py`).

    A unit is a group.
    There are groups of `wide` tokens, as many as the first of the kernel's own numbers says, then groups of `narrow`
    tokens; or `wide` is 0, and all are narrow. Where tokens end, the last one stands again.
    """
    size, any_wide, wide_tokens, narrow_tokens = WIDTH[kind], int(wide > 0), max(wide, 1), narrow
    wide_lanes, narrow_lanes = (max(8, 1 << (count - 1).bit_length()) for count in (wide_tokens, narrow))

    @jit
    def arrange(job, lo, hi, scratch):
        cols, pitch, tokens = load_u64(job + COLS), load_u64(job + SOURCE_PITCH) * size, load_u64(job + TOKENS)
        source, to = load_u64(job + SOURCE) + load_u64(job + FIRST) * pitch, load_u64(job + X)
        group_cols = (cols + WHOLE_COLUMNS - 1) // WHOLE_COLUMNS * WHOLE_COLUMNS
        wides = own(job, 0) if any_wide else 0
        for group in range(lo, hi):
            token = min(group, wides) * wide_tokens + max(group - wides, 0) * narrow_tokens
            x, last, arranged = source + token * pitch, tokens - 1 - token, to + token * group_cols * size
            if any_wide and group < wides:
                finite = arrange_group(kind, wide_lanes, wide_tokens, x, pitch, last, cols, arranged)
            else:
                finite = arrange_group(kind, narrow_lanes, narrow_tokens, x, pitch, last, cols, arranged)
            if not finite:
                note_odd(job)

    return arrange


@cache
def in_dots(wide: int, narrow: int, biased: bool) -> Callable[..., Any]:
    """Like `in_groups`, for activations of eight bits: four columns of a token stand together.

    The caller's rows end with zeros up to a multiple of four columns. `biased`: 128 is added, and they are unsigned.
    """
    any_wide, wide_tokens, narrow_tokens, as_unsigned = int(wide > 0), max(wide, 1), narrow, int(biased)
    wide_lanes, narrow_lanes = (max(8, 1 << (count - 1).bit_length()) for count in (wide_tokens, narrow))

    @jit
    def arrange(job, lo, hi, scratch):
        pitch, tokens = load_u64(job + SOURCE_PITCH), load_u64(job + TOKENS)
        source, to = load_u64(job + SOURCE) + load_u64(job + FIRST) * pitch, load_u64(job + X)
        words, group_words = pitch // 4, (load_u64(job + COLS) + WHOLE_COLUMNS - 1) // WHOLE_COLUMNS * 2
        wides = own(job, 0) if any_wide else 0
        for group in range(lo, hi):
            first = min(group, wides) * wide_tokens + max(group - wides, 0) * narrow_tokens
            x, last, arranged = source + first * pitch, tokens - 1 - first, to + 4 * first * group_words
            if any_wide and group < wides:
                _arrange_words(wide_lanes, wide_tokens, as_unsigned, x, pitch, last, words, arranged)
            else:
                _arrange_words(narrow_lanes, narrow_tokens, as_unsigned, x, pitch, last, words, arranged)

    return arrange


def _arrange_words(lanes, count, as_unsigned, x, pitch, last, words, to):
    """Like `arrange_group`, for words of four activations. `as_unsigned`: 128 is added to each of these."""
    raise NotImplementedError("jitted code only")


@overload(_arrange_words, prefer_literal=True)
def _make_arrange_words(lanes, count, as_unsigned, x, pitch, last, words, to):
    tokens, flips, kind = count.literal_value, int(as_unsigned.literal_value), F32
    in_squares = int(2 * tokens >= lanes.literal_value)
    flipped = 0x80808080 if flips else 0

    def arrange(lanes, count, as_unsigned, x, pitch, last, words, to):
        # at least one word is left for the loop below, and so are `lanes` words of the group
        whole = max(words - 1, 0) // lanes * lanes if in_squares else 0
        for word in range(0, whole, lanes):
            columns = transpose(load_rows(x + 4 * word, pitch, last, kind, lanes, count))
            if flips:
                columns = flip_signs_of_bytes(columns)
            store(to + 4 * word * tokens, 4 * tokens, columns)
        for token in range(tokens):
            at = x + min(token, last) * pitch
            for word in range(whole, words):
                store_scalar(to + 4 * (word * tokens + token), np.uint32(load_u32(at + 4 * word) ^ flipped))

    return arrange


@cache
def in_tokens(kind: int, lanes: int, count: int, across: bool) -> Callable[..., Any]:
    """Arranges activations for `permuted.many_tokens_kernel` and `permuted_in_blocks.blocked_kernel`.

    A unit is `lanes` tokens. For each `lanes * count` tokens, for each column, these tokens' activations, with zeros
    where x ends.
    """
    size, one, zero, transposed = WIDTH[kind], 1, _nothing(kind), int(across)
    width, square, vector_bytes = lanes * count, lanes, lanes * size
    row_bytes = width * size
    chains = CHAINS if NEON else lanes

    @jit
    def arrange(job, lo, hi, scratch):
        cols, pitch, tokens = load_u64(job + COLS), load_u64(job + SOURCE_PITCH) * size, load_u64(job + TOKENS)
        to, token_bytes, col_bytes = load_u64(job + X), size if transposed else pitch, pitch if transposed else size
        source = load_u64(job + SOURCE) + load_u64(job + FIRST) * token_bytes
        finite = True
        for part in range(lo, hi):
            # a part of the tokens of a block
            present = max(0, min(lanes, tokens - part * lanes))
            x = source + part * lanes * token_bytes
            arranged = to + (part // count * cols * width + part % count * lanes) * size
            done = 0
            if present == lanes and transposed:
                poison1, zero1 = zeros(kind, lanes, one), zeros(kind, lanes, one)
                for col in range(cols):
                    values = load(x + col * pitch, vector_bytes, kind, lanes, one)
                    poison1 = fma(values, zero1, poison1)
                    store(arranged + col * row_bytes, vector_bytes, values)
                done = cols
                finite &= all_zero(poison1)
            elif present == lanes:
                poison, nothing = zeros(kind, lanes, chains), zeros(kind, lanes, one)
                for col in range(0, cols - lanes + 1, lanes):
                    values = load(x + col * size, pitch, kind, lanes, square)
                    poison = fma_all(values, nothing, poison)
                    store(arranged + col * row_bytes, row_bytes, transpose(values))
                done = cols // lanes * lanes
                finite &= all_zero(poison)
            for col in range(done, cols):
                for lane in range(lanes):
                    value = zero
                    if lane < present:
                        value = load_scalar(x + lane * token_bytes + col * col_bytes, zero)
                        finite &= value - value == zero
                    store_scalar(arranged + col * row_bytes + lane * size, value)
        if not finite:
            note_odd(job)

    return arrange


@cache
def from_tokens(kind: int, lanes: int, count: int, across: bool) -> Callable[..., Any]:
    """The way back, for the results; + 0.0, which makes zero results positive. A unit is `lanes` tokens."""
    size, one, zero, transposed = WIDTH[kind], 1, _nothing(kind), int(across)
    width, square, vector_bytes = lanes * count, lanes, lanes * size
    row_bytes = width * size

    @jit
    def put_back(job, lo, hi, scratch):
        rows, pitch, tokens = load_u64(job + ROWS), load_u64(job + RESULT_PITCH) * size, load_u64(job + TOKENS)
        sums, token_bytes, row_pitch = load_u64(job + Y), size if transposed else pitch, pitch if transposed else size
        result = load_u64(job + RESULT) + load_u64(job + FIRST) * token_bytes
        for part in range(lo, hi):
            present = max(0, min(lanes, tokens - part * lanes))
            y = result + part * lanes * token_bytes
            arranged = sums + (part // count * rows * width + part % count * lanes) * size
            done = 0
            if present == lanes and transposed:
                for row in range(rows):
                    values = load(arranged + row * row_bytes, vector_bytes, kind, lanes, one)
                    store(y + row * pitch, vector_bytes, plus_zero(values))
                done = rows
            elif present == lanes:
                for row in range(0, rows - lanes + 1, lanes):
                    values = plus_zero(load(arranged + row * row_bytes, row_bytes, kind, lanes, square))
                    store(y + row * size, pitch, transpose(values))
                done = rows // lanes * lanes
            for row in range(done, rows):
                for lane in range(present):
                    value = load_scalar(arranged + row * row_bytes + lane * size, zero) + zero
                    store_scalar(y + lane * token_bytes + row * row_pitch, value)

    return put_back
