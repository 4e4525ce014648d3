"""Products with layout `bitmask`: the rows of a slice lie in the lanes of a vector, and values are expanded to them.

`few_tokens_kernel` expands column after column in registers, and multiplies each at once, for every token.
`expand_columns` expands a block of columns into a panel, for many tokens (`panel.py`). Both multiply pruned positions
by zero, which changes no bit as long as x is finite; for other x there is `skipping_kernel`. All add the columns of a
row in ascending order, so the bits of a result do not depend on which ran.

A slice of eight rows or fewer has masks of eight bits. They are widened first, so that all other code sees sixteen.

Kernels see arrays of checked tiles only, release the GIL, and are made by functions that fix what is constant in
them. `job.py` says what they get.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba.extending import overload

from sparsefmt.bits_of_words import lowest_bit, popcount
from sparsefmt.jit import jit
from sparsefmt.kernels.dots import from_dots, is_biased, less_dots, plus_dots
from sparsefmt.kernels.expand import COLUMNS, copy_value, dot_word, expand_dots, expand_word, fma_word, values_of_word
from sparsefmt.kernels.job import COLS, ROWS, TOKENS, X, Y, field, own, piece
from sparsefmt.kernels.kinds import DOTS, WIDTH, summed_kind
from sparsefmt.kernels.operand import FIRST_ROW, HEIGHT, MASK, ROW_SUMS, SCALES, SLICE_OFFSETS, VALUES
from sparsefmt.kernels.raw_memory import load_scalar, load_u16, load_u32, load_u64, prefetch, store_scalar
from sparsefmt.kernels.simd import VECTOR_BYTES, fma, fma_by_rows, load, store, store_sums, zeros
from sparsefmt.positions.masks import SLICE_ROWS

AHEAD = 2048
"""Bytes by which values are asked for before they are needed."""

MASK_AHEAD = 512
"""The same for the mask."""

FEW = 12 if VECTOR_BYTES == 64 else 6
"""Most tokens of `few_tokens_kernel`: their sums, a slice and an activation are what 32 or 16 registers hold."""


@jit
def widen_mask(mask, cols, to):
    """The masks of a slice of eight rows or fewer, made 16 bits each; four columns at a time, so perhaps some more."""
    for word in range((cols + 3) // 4):
        bits = load_u32(mask + 4 * word)
        bits = (bits | bits << 16) & 0x0000FFFF0000FFFF
        bits = (bits | bits << 8) & 0x00FF00FF00FF00FF
        store_scalar(to + 8 * word, bits)


@jit
def mask_of(line, slice_, cols, scratch):
    """Address of the mask of a slice, 16 bits for each column: in the tile, or widened in the scratch."""
    mask = field(line, MASK) + 2 * cols * slice_
    if field(line, HEIGHT) - SLICE_ROWS * slice_ > 8:
        return mask
    widen_mask(mask, cols, scratch)
    return scratch


@jit
def last_columns(mask, cols):
    """The word of the mask with the last columns, if their number is not a multiple of four; other bits are zero."""
    return load_u64(mask + 2 * (cols // COLUMNS * COLUMNS)) & ((1 << SLICE_ROWS * (cols % COLUMNS)) - 1)


def scratch_bytes(cols: int) -> int:
    """Size of the scratch of `few_tokens_kernel`: the last words of four slices, and a widened mask."""
    return 32 + 2 * cols + 64


@cache
def few_tokens_kernel(kind: int, tokens: int) -> Callable[..., Any]:
    """Kernel for at most `tokens` tokens, x being finite. Its own number: `expand.tables(kind)`.

    y (that many tokens or fewer, rows). x is flat, column by column, `tokens` activations each, with zeros up to a
    multiple of four columns; scratch is `scratch_bytes`.
    """
    width, summed = WIDTH[kind], summed_kind(kind)
    size = WIDTH[summed]
    sixteen, lines, one = SLICE_ROWS, max(1, SLICE_ROWS * COLUMNS * width // 128), 1
    step = COLUMNS * tokens * size

    @jit
    def product(job, lo, hi, scratch):
        x_begin, cols, tables = load_u64(job + X), load_u64(job + COLS), own(job, 0)
        last0, last1, widened = scratch, scratch + 8, scratch + 16
        y_begin, y_stride, y_count = load_u64(job + Y), load_u64(job + ROWS) * size, load_u64(job + TOKENS)
        words = cols // COLUMNS
        for number in range(lo, hi):
            line, begin, end = piece(job, number)
            values, offsets, height = field(line, VALUES), field(line, SLICE_OFFSETS), field(line, HEIGHT)
            y_tile = y_begin + field(line, FIRST_ROW) * size
            half = (end - begin + 1) // 2
            for slice0 in range(begin, begin + half):
                # two slices at once, so that none waits for its last addition; far apart, so that memory is read in
                # long runs; the last slice may be done twice
                slice1 = min(slice0 + half, end - 1)
                at0 = values + load_u32(offsets + 4 * slice0) * width
                at1 = values + load_u32(offsets + 4 * slice1) * width
                mask0 = mask_of(line, slice0, cols, widened)
                mask1 = mask_of(line, slice1, cols, widened)
                sums0, sums1 = zeros(kind, sixteen, tokens), zeros(kind, sixteen, tokens)
                x_at = x_begin
                for word in range(0, 8 * words, 8):
                    prefetch(at0 + AHEAD, lines, one)
                    prefetch(at1 + AHEAD, lines, one)
                    prefetch(mask0 + word + MASK_AHEAD, one, one)
                    prefetch(mask1 + word + MASK_AHEAD, one, one)
                    sums0 = fma_word(at0, mask0 + word, kind, tables, x_at, sums0)
                    sums1 = fma_word(at1, mask1 + word, kind, tables, x_at, sums1)
                    at0 += values_of_word(mask0 + word) * width
                    at1 += values_of_word(mask1 + word) * width
                    x_at += step
                if cols % COLUMNS:
                    store_scalar(last0, last_columns(mask0, cols))
                    store_scalar(last1, last_columns(mask1, cols))
                    sums0 = fma_word(at0, last0, kind, tables, x_at, sums0)
                    sums1 = fma_word(at1, last1, kind, tables, x_at, sums1)
                store_sums(y_tile + SLICE_ROWS * size * slice0, y_stride, y_count, height - SLICE_ROWS * slice0, sums0)
                store_sums(y_tile + SLICE_ROWS * size * slice1, y_stride, y_count, height - SLICE_ROWS * slice1, sums1)

    @jit
    def product_one_by_one(job, lo, hi, scratch):
        x_begin, cols, tables, last = load_u64(job + X), load_u64(job + COLS), own(job, 0), scratch
        y_begin, y_stride, y_count = load_u64(job + Y), load_u64(job + ROWS) * size, load_u64(job + TOKENS)
        words = cols // COLUMNS
        for number in range(lo, hi):
            line, begin, end = piece(job, number)
            offsets, height = field(line, SLICE_OFFSETS), field(line, HEIGHT)
            y_tile = y_begin + field(line, FIRST_ROW) * size
            at = field(line, VALUES) + load_u32(offsets + 4 * begin) * width
            for slice_ in range(begin, end):
                mask, sums, x_at = mask_of(line, slice_, cols, last + 16), zeros(kind, sixteen, tokens), x_begin
                for word in range(0, 8 * words, 8):
                    prefetch(at + AHEAD, lines, one)
                    prefetch(mask + word + MASK_AHEAD, one, one)
                    sums = fma_word(at, mask + word, kind, tables, x_at, sums)
                    at += values_of_word(mask + word) * width
                    x_at += step
                if cols % COLUMNS:
                    store_scalar(last, last_columns(mask, cols))
                    sums = fma_word(at, last, kind, tables, x_at, sums)
                    at += values_of_word(last) * width
                store_sums(y_tile + SLICE_ROWS * size * slice_, y_stride, y_count, height - SLICE_ROWS * slice_, sums)

    @jit
    def add_word(at, mask, tables, x_at, sums):
        prefetch(at + AHEAD, lines, one)
        prefetch(mask + MASK_AHEAD, one, one)
        return at + values_of_word(mask) * width, fma_word(at, mask, kind, tables, x_at, sums)

    @jit
    def add_last_word(at, mask, cols, word, tables, x_at, sums):
        store_scalar(word, last_columns(mask, cols))
        return fma_word(at, word, kind, tables, x_at, sums)

    @jit
    def product_of_four(job, lo, hi, scratch):
        # values are expanded in less time than two sums wait for
        x_begin, cols, tables = load_u64(job + X), load_u64(job + COLS), own(job, 0)
        y_begin, y_stride, y_count = load_u64(job + Y), load_u64(job + ROWS) * size, load_u64(job + TOKENS)
        words = cols // COLUMNS
        for number in range(lo, hi):
            line, begin, end = piece(job, number)
            values, offsets, height = field(line, VALUES), field(line, SLICE_OFFSETS), field(line, HEIGHT)
            y_tile = y_begin + field(line, FIRST_ROW) * size
            quarter = (end - begin + 3) // 4
            for slice0 in range(begin, begin + quarter):
                slice1, slice2 = min(slice0 + quarter, end - 1), min(slice0 + 2 * quarter, end - 1)
                slice3 = min(slice0 + 3 * quarter, end - 1)
                at0 = values + load_u32(offsets + 4 * slice0) * width
                at1 = values + load_u32(offsets + 4 * slice1) * width
                at2 = values + load_u32(offsets + 4 * slice2) * width
                at3 = values + load_u32(offsets + 4 * slice3) * width
                widened = scratch + 32
                mask0, mask1 = mask_of(line, slice0, cols, widened), mask_of(line, slice1, cols, widened)
                mask2, mask3 = mask_of(line, slice2, cols, widened), mask_of(line, slice3, cols, widened)
                sums0, sums1 = zeros(kind, sixteen, tokens), zeros(kind, sixteen, tokens)
                sums2, sums3 = zeros(kind, sixteen, tokens), zeros(kind, sixteen, tokens)
                x_at = x_begin
                for word in range(0, 8 * words, 8):
                    at0, sums0 = add_word(at0, mask0 + word, tables, x_at, sums0)
                    at1, sums1 = add_word(at1, mask1 + word, tables, x_at, sums1)
                    at2, sums2 = add_word(at2, mask2 + word, tables, x_at, sums2)
                    at3, sums3 = add_word(at3, mask3 + word, tables, x_at, sums3)
                    x_at += step
                if cols % COLUMNS:
                    sums0 = add_last_word(at0, mask0, cols, scratch, tables, x_at, sums0)
                    sums1 = add_last_word(at1, mask1, cols, scratch + 8, tables, x_at, sums1)
                    sums2 = add_last_word(at2, mask2, cols, scratch + 16, tables, x_at, sums2)
                    sums3 = add_last_word(at3, mask3, cols, scratch + 24, tables, x_at, sums3)
                store_sums(y_tile + SLICE_ROWS * size * slice0, y_stride, y_count, height - SLICE_ROWS * slice0, sums0)
                store_sums(y_tile + SLICE_ROWS * size * slice1, y_stride, y_count, height - SLICE_ROWS * slice1, sums1)
                store_sums(y_tile + SLICE_ROWS * size * slice2, y_stride, y_count, height - SLICE_ROWS * slice2, sums2)
                store_sums(y_tile + SLICE_ROWS * size * slice3, y_stride, y_count, height - SLICE_ROWS * slice3, sums3)

    # with more tokens, two slices have more sums and addresses than there are registers
    if tokens > 1:
        return product_one_by_one
    return product_of_four if VECTOR_BYTES == 64 else product


@cache
def scaled_kernel(kind: int, tokens: int) -> Callable[..., Any]:
    """Like `few_tokens_kernel`, for columns in groups of whole words that have scales of their own. Its second own
    number: words of a group."""
    width, summed = WIDTH[kind], summed_kind(kind)
    size = WIDTH[summed]
    sixteen, lines, one = SLICE_ROWS, max(1, SLICE_ROWS * COLUMNS * width // 128), 1
    step = COLUMNS * tokens * size

    @jit
    def product(job, lo, hi, scratch):
        x_begin, cols, tables, group_bytes = load_u64(job + X), load_u64(job + COLS), own(job, 0), 8 * own(job, 1)
        rows = load_u64(job + ROWS)
        y_begin, y_stride, y_count = load_u64(job + Y), rows * size, load_u64(job + TOKENS)
        mask_bytes = 8 * (cols // COLUMNS)
        for number in range(lo, hi):
            line, begin, end = piece(job, number)
            offsets, height = field(line, SLICE_OFFSETS), field(line, HEIGHT)
            y_tile = y_begin + field(line, FIRST_ROW) * size
            at = field(line, VALUES) + load_u32(offsets + 4 * begin) * width
            for slice_ in range(begin, end):
                mask, totals, x_at = mask_of(line, slice_, cols, scratch + 16), zeros(kind, sixteen, tokens), x_begin
                scales_at = field(line, SCALES) + SLICE_ROWS * slice_ * size
                for group in range(0, mask_bytes, group_bytes):
                    sums = zeros(kind, sixteen, tokens)
                    for word in range(group, group + group_bytes, 8):
                        prefetch(at + AHEAD, lines, one)
                        prefetch(mask + word + MASK_AHEAD, one, one)
                        sums = fma_word(at, mask + word, kind, tables, x_at, sums)
                        at += values_of_word(mask + word) * width
                        x_at += step
                    totals = fma_by_rows(sums, scales_at, tokens, totals)
                    scales_at += rows * size
                store_sums(y_tile + SLICE_ROWS * size * slice_, y_stride, y_count, height - SLICE_ROWS * slice_, totals)

    return product


@cache
def one_token_of_dots(way: int) -> Callable[..., Any]:
    """Like `few_tokens_kernel` for one token and DOTS, multiplied in some `way`. Its third own number: their table."""
    sixteen, lines, one, kind, biased = SLICE_ROWS, 1, 1, DOTS, int(is_biased(way))
    kind_of_sums = summed_kind(kind)

    @jit
    def product(job, lo, hi, scratch):
        x_begin, cols, tables = load_u64(job + X), load_u64(job + COLS), own(job, 2)
        last = scratch
        y_begin, y_stride, y_count = load_u64(job + Y), load_u64(job + ROWS) * 4, load_u64(job + TOKENS)
        mask_bytes = 8 * (cols // COLUMNS)
        pairs_end = mask_bytes // 16 * 16
        for number in range(lo, hi):
            line, begin, end = piece(job, number)
            offsets, height = field(line, SLICE_OFFSETS), field(line, HEIGHT)
            y_tile = y_begin + field(line, FIRST_ROW) * 4
            at = field(line, VALUES) + load_u32(offsets + 4 * begin)
            for slice_ in range(begin, end):
                mask, x_at = mask_of(line, slice_, cols, scratch + 16), x_begin
                # two sums, since an addition takes longer than all else that is done for a word
                sums0, sums1 = zeros(kind, sixteen, one), zeros(kind, sixteen, one)
                for word in range(0, pairs_end, 16):
                    prefetch(at + AHEAD, lines, one)
                    prefetch(mask + word + MASK_AHEAD, one, one)
                    middle = at + values_of_word(mask + word)
                    sums0 = dot_word(at, mask + word, kind, tables, x_at, way, sums0)
                    sums1 = dot_word(middle, mask + word + 8, kind, tables, x_at + 4, way, sums1)
                    at = middle + values_of_word(mask + word + 8)
                    x_at += 8
                if pairs_end != mask_bytes:
                    sums0 = dot_word(at, mask + pairs_end, kind, tables, x_at, way, sums0)
                    at += values_of_word(mask + pairs_end)
                    x_at += 4
                if cols % COLUMNS:
                    store_scalar(last, last_columns(mask, cols))
                    sums1 = dot_word(at, last, kind, tables, x_at, way, sums1)
                    at += values_of_word(last)
                sums = plus_dots(sums0, sums1)
                if biased:
                    # activations are 128 too large: so many times the weights are taken away again
                    row_sums = field(line, ROW_SUMS) + SLICE_ROWS * 4 * slice_
                    sums = less_dots(sums, one, load(row_sums, SLICE_ROWS * 4, kind_of_sums, sixteen, one))
                sums = from_dots(sums)
                store_sums(y_tile + SLICE_ROWS * 4 * slice_, y_stride, y_count, height - SLICE_ROWS * slice_, sums)

    return product


def expand_columns(vectorised, kind, tables, values, mask, columns, ahead, mask_ahead, to, pitch):
    """Expand some columns of a slice to `to`, `pitch` bytes apart; return where the values of the next one begin.

    Up to three more columns are filled with zeros. `ahead`, `mask_ahead`: from what is expanded to what will be needed
    next, in bytes, of values and mask. `vectorised`: 0 or 1, `expand.in_registers(kind)`.
    """
    raise NotImplementedError("jitted code only")


@overload(expand_columns, prefer_literal=True)
def _make_expand_columns(vectorised, kind, tables, values, mask, columns, ahead, mask_ahead, to, pitch):
    width, size = WIDTH[kind.literal_value], WIDTH[summed_kind(kind.literal_value)]
    sixteen, four, lines, one, two = SLICE_ROWS, COLUMNS, max(1, SLICE_ROWS * COLUMNS * width // 128), 1, 2

    def by_instruction(vectorised, kind, tables, values, mask, columns, ahead, mask_ahead, to, pitch):
        for word in range(0, 8 * (columns // COLUMNS), 8):
            prefetch(values + ahead, lines, two)
            prefetch(mask + word + mask_ahead, one, two)
            store(to, pitch, expand_word(values, mask + word, kind, tables))
            values += values_of_word(mask + word) * width
            to += COLUMNS * pitch
        if columns % COLUMNS:
            # the place of what is expanded holds its mask until then
            store_scalar(to, last_columns(mask, columns))
            bits = load_u64(to)
            store(to, pitch, expand_word(values, to, kind, tables))
            values += popcount(bits) * width
        return values

    def by_bits(vectorised, kind, tables, values, mask, columns, ahead, mask_ahead, to, pitch):
        for col in range(0, columns, COLUMNS):
            bits = load_u64(mask + 2 * col) if col + COLUMNS <= columns else last_columns(mask, columns)
            store(to, pitch, zeros(kind, sixteen, four))
            while bits != 0:
                bit = lowest_bit(bits)
                copy_value(values, kind, to + bit // SLICE_ROWS * pitch + bit % SLICE_ROWS * size)
                values += width
                bits &= bits - 1
            to += COLUMNS * pitch
        return values

    def of_dots(vectorised, kind, tables, values, mask, columns, ahead, mask_ahead, to, pitch):
        for word in range(0, 8 * (columns // COLUMNS), 8):
            prefetch(values + ahead, lines, two)
            prefetch(mask + word + mask_ahead, one, two)
            store(to, pitch, expand_dots(values, mask + word, kind, tables))
            values += values_of_word(mask + word)
            to += pitch
        if columns % COLUMNS:
            store_scalar(to, last_columns(mask, columns))
            bits = load_u64(to)
            store(to, pitch, expand_dots(values, to, kind, tables))
            values += popcount(bits)
        return values

    if kind.literal_value == DOTS:
        return of_dots
    return by_instruction if vectorised.literal_value else by_bits


@cache
def skipping_kernel(kind: int) -> Callable[..., Any]:
    """Slow kernel that skips pruned positions, for x with Inf or NaN.

    x (tokens, cols); y (tokens, rows); scratch has an element of y's type, then the bytes of a widened mask.
    """
    width, size = WIDTH[kind], WIDTH[summed_kind(kind)]
    zero = np.float64(0) if size == 8 else np.float32(0)

    @jit
    def product(job, lo, hi, scratch):
        x_begin, y_begin, value = load_u64(job + X), load_u64(job + Y), scratch
        cols, rows, tokens = load_u64(job + COLS), load_u64(job + ROWS), load_u64(job + TOKENS)
        for number in range(lo, hi):
            line, slices_begin, slices_end = piece(job, number)
            for slice_ in range(slices_begin, slices_end):
                mask = mask_of(line, slice_, cols, value + 8)
                first = field(line, FIRST_ROW) + SLICE_ROWS * slice_
                end = min(first + SLICE_ROWS, field(line, FIRST_ROW) + field(line, HEIGHT))
                begin = field(line, VALUES) + load_u32(field(line, SLICE_OFFSETS) + 4 * slice_) * width
                for token in range(tokens):
                    at, y = begin, y_begin + token * rows * size
                    for row in range(first, end):
                        store_scalar(y + row * size, zero)
                    for col in range(cols):
                        activation = load_scalar(x_begin + (token * cols + col) * size, zero)
                        bits = load_u16(mask + 2 * col)
                        while bits != 0:
                            y_at = y + (first + lowest_bit(bits)) * size
                            copy_value(at, kind, value)
                            store_scalar(y_at, fma(load_scalar(value, zero), activation, load_scalar(y_at, zero)))
                            at += width
                            bits &= bits - 1
                    for row in range(first, end):
                        store_scalar(y + row * size, load_scalar(y + row * size, zero) + zero)

    return product
