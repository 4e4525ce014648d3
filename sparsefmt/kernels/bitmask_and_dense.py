"""Products with layouts `bitmask` and `dense`: sixteen partial sums per row, by column modulo 16, and a tree.

`few_tokens_kernel` expands values to their columns in registers and multiplies them at once. `many_tokens_kernel`
expands the values of a few rows into a scratch that stays in cache, once for all tokens, and holds a block of rows
times tokens in registers. Both multiply pruned positions by zero, which changes no bit as long as x is finite; for
other x there is `skipping_kernel`. All add in the same order, so the bits of a result do not depend on which ran.

Kernels see arrays of checked tiles only, release the GIL, and are made by functions that choose what is constant in
them. They do the rows `pieces[lo:hi]` of `operand.Work`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba.extending import overload

from sparsefmt.bits_of_words import lowest_bit, popcount
from sparsefmt.jit import jit
from sparsefmt.kernels import expand
from sparsefmt.kernels.expand import copy_value, expand_word, fma_word
from sparsefmt.kernels.operand import FIRST_ROW, MASK, ROW_OFFSETS, VALUES
from sparsefmt.kernels.simd import (
    VECTOR_BYTES,
    WIDTH,
    fma,
    fma_columns,
    load,
    load_scalar,
    load_u32,
    load_u64,
    outer,
    prefetch,
    store,
    store_scalar,
    store_tree_sums,
    summed_kind,
    tree_sum,
    zeros,
)

WORD = expand.WORD

ROWS, TOKENS = (6 if VECTOR_BYTES == 64 else 3), 4
"""Block of sums that `many_tokens_kernel` holds in registers: with its operands just what 32 or 16 registers hold."""

PANEL = 6 * ROWS
"""Rows whose sums `many_tokens_kernel` carries from one block of columns to the next. They stay in the second-level
cache."""

AHEAD = 2048
"""Bytes by which values are asked for before they are needed, since a row of them is over soon."""

PADDING = 16
"""Columns by which rows in scratches are longer than needed: with a power of two, all would share a few cache sets."""


@cache
def few_tokens_kernel(masked: bool, kind: int, tokens: int) -> Callable[..., Any]:
    """Kernel for at most `tokens` tokens and layout `bitmask` (`masked`), with finite x, or `dense`.

    product(table, pieces, lo, hi, x, cols, tables, scratch, y) fills y (that many tokens or fewer, rows). x is (tokens,
    columns rounded up to 64 with zeros, and perhaps more); tables is `expand.tables(kind)`; scratch is 128 elements.
    """
    width, summed = WIDTH[kind], summed_kind(kind)
    size = WIDTH[summed]
    sixteen, parts = 16, WORD // 16
    step, row_bytes, part_bytes = WORD * size, WORD * width, 16 * size
    lines, one = WORD * width // 128, 1

    if masked:

        @jit
        def product(table, pieces, lo, hi, x, cols, tables, scratch, y):
            x_begin, x_stride = np.int64(x.ctypes.data), np.int64(x.shape[1] * size)
            y_begin, y_stride, y_count = np.int64(y.ctypes.data), np.int64(y.shape[1] * size), np.int64(y.shape[0])
            words = (cols + WORD - 1) // WORD
            for piece in range(lo, hi):
                tile, begin, end = pieces[piece, 0], pieces[piece, 1], pieces[piece, 2]
                values, mask, offsets = table[tile, VALUES], table[tile, MASK], table[tile, ROW_OFFSETS]
                y_tile = y_begin + table[tile, FIRST_ROW] * size
                half = (end - begin + 1) // 2
                for row0 in range(begin, begin + half):
                    # two rows at once, so that none waits for its last addition; far apart, so that memory is read in
                    # long runs; the last row may be done twice
                    row1 = min(row0 + half, end - 1)
                    at0 = values + load_u32(offsets + 4 * row0) * width
                    at1 = values + load_u32(offsets + 4 * row1) * width
                    mask0, mask1 = mask + 8 * words * row0, mask + 8 * words * row1
                    sums0, sums1 = zeros(kind, sixteen, tokens), zeros(kind, sixteen, tokens)
                    x_at = x_begin
                    for word in range(0, 8 * words, 8):
                        prefetch(at0 + AHEAD, lines, one)
                        prefetch(at1 + AHEAD, lines, one)
                        prefetch(mask0 + word + AHEAD // 2, one, one)
                        prefetch(mask1 + word + AHEAD // 2, one, one)
                        sums0 = fma_word(at0, mask0 + word, kind, tables, x_at, x_stride, sums0)
                        sums1 = fma_word(at1, mask1 + word, kind, tables, x_at, x_stride, sums1)
                        at0 += popcount(load_u64(mask0 + word)) * width
                        at1 += popcount(load_u64(mask1 + word)) * width
                        x_at += step
                    store_tree_sums(y_tile + row0 * size, y_stride, y_count, sums0)
                    store_tree_sums(y_tile + row1 * size, y_stride, y_count, sums1)

    else:

        @jit
        def product(table, pieces, lo, hi, x, cols, tables, scratch, y):
            x_begin, x_stride = np.int64(x.ctypes.data), np.int64(x.shape[1] * size)
            y_begin, y_stride, y_count = np.int64(y.ctypes.data), np.int64(y.shape[1] * size), np.int64(y.shape[0])
            whole = cols // WORD
            # the last columns of two rows, filled up with zeros
            tail0, tail1 = np.int64(scratch.ctypes.data), np.int64(scratch.ctypes.data) + step
            for at in range(tail0, tail1 + step, part_bytes):
                store(at, part_bytes, zeros(kind, sixteen, 1))
            for piece in range(lo, hi):
                tile, begin, end = pieces[piece, 0], pieces[piece, 1], pieces[piece, 2]
                y_tile = y_begin + table[tile, FIRST_ROW] * size
                half = (end - begin + 1) // 2
                for row0 in range(begin, begin + half):
                    row1 = min(row0 + half, end - 1)
                    at0, at1 = table[tile, VALUES] + row0 * cols * width, table[tile, VALUES] + row1 * cols * width
                    sums0, sums1 = zeros(kind, sixteen, tokens), zeros(kind, sixteen, tokens)
                    x_at = x_begin
                    for _ in range(whole):
                        sums0 = fma_columns(at0, kind, parts, x_at, x_stride, sums0)
                        sums1 = fma_columns(at1, kind, parts, x_at, x_stride, sums1)
                        at0, at1, x_at = at0 + row_bytes, at1 + row_bytes, x_at + step
                    if whole * WORD < cols:
                        for col in range(cols - whole * WORD):
                            copy_value(at0 + col * width, kind, tail0 + col * size)
                            copy_value(at1 + col * width, kind, tail1 + col * size)
                        sums0 = fma_columns(tail0, summed, parts, x_at, x_stride, sums0)
                        sums1 = fma_columns(tail1, summed, parts, x_at, x_stride, sums1)
                    store_tree_sums(y_tile + row0 * size, y_stride, y_count, sums0)
                    store_tree_sums(y_tile + row1 * size, y_stride, y_count, sums1)

    return product


def scratch_bytes(kind: int, tokens: int, block: int) -> int:
    """Size of the scratch of `many_tokens_kernel`: expanded weights, sums carried between blocks, where rows go on."""
    size = WIDTH[summed_kind(kind)]
    return ROWS * (block + PADDING) * size + PANEL * (-(-tokens // TOKENS) * TOKENS * 16 * size + 8)


def _fill_row(masked, vectorised, kind, tables, values, mask, word, words, cols, to):
    """Expand `words` words of a row, from number `word` on, to `to`; return where the values of the next one begin."""
    raise NotImplementedError("jitted code only")


@overload(_fill_row, prefer_literal=True)
def _choose_fill_row(masked, vectorised, kind, tables, values, mask, word, words, cols, to):
    width, size = WIDTH[kind.literal_value], WIDTH[summed_kind(kind.literal_value)]
    sixteen, parts, part_bytes, stored_bytes = 16, WORD // 16, 16 * size, 16 * width

    def by_instruction(masked, vectorised, kind, tables, values, mask, word, words, cols, to):
        for number in range(word, word + words):
            store(to, part_bytes, expand_word(values, mask + 8 * number, kind, tables))
            values += popcount(load_u64(mask + 8 * number)) * width
            to += WORD * size
        return values

    def by_bits(masked, vectorised, kind, tables, values, mask, word, words, cols, to):
        for number in range(word, word + words):
            store(to, part_bytes, zeros(kind, sixteen, parts))
            bits = load_u64(mask + 8 * number)
            while bits != 0:
                copy_value(values, kind, to + lowest_bit(bits) * size)
                values += width
                bits &= bits - 1
            to += WORD * size
        return values

    def of_dense(masked, vectorised, kind, tables, values, mask, word, words, cols, to):
        for number in range(word, word + words):
            if (number + 1) * WORD <= cols:
                store(to, part_bytes, load(values, stored_bytes, kind, sixteen, parts))
            else:
                store(to, part_bytes, zeros(kind, sixteen, parts))
                for col in range(cols - number * WORD):
                    copy_value(values + col * width, kind, to + col * size)
            values += WORD * width
            to += WORD * size
        return values

    if not masked.literal_value:
        return of_dense
    return by_instruction if vectorised.literal_value else by_bits


@cache
def many_tokens_kernel(masked: bool, kind: int) -> Callable[..., Any]:
    """Kernel for any number of tokens and layout `bitmask` (`masked`), with finite x, or `dense`.

    product(table, pieces, lo, hi, x, cols, block, tables, scratch, y) fills y (tokens, rows). x is as
    `activations.in_columns` makes it for blocks of `block` columns, a multiple of 64; scratch is `scratch_bytes`.
    """
    masked, vectorised = int(masked), int(masked and expand.in_registers(kind))
    width, summed = WIDTH[kind], summed_kind(kind)
    size = WIDTH[summed]
    lanes = VECTOR_BYTES // size
    planes = 16 // lanes
    row_block, token_block, count = ROWS, TOKENS, ROWS * TOKENS
    vector_bytes, part_bytes, step = lanes * size, 16 * size, WORD * size
    plane_bytes = count * vector_bytes

    @jit
    def product(table, pieces, lo, hi, x, cols, block, tables, scratch, y):
        x_begin, x_stride = np.int64(x.ctypes.data), np.int64(block * size)
        y_begin, y_stride, tokens = np.int64(y.ctypes.data), np.int64(y.shape[1] * size), np.int64(y.shape[0])
        words, block_words = (cols + WORD - 1) // WORD, block // WORD
        token_blocks = (tokens + token_block - 1) // token_block
        weights, weights_stride = np.int64(scratch.ctypes.data), np.int64((block + PADDING) * size)
        carried = weights + row_block * weights_stride
        resume = carried + PANEL * token_blocks * token_block * part_bytes
        for piece in range(lo, hi):
            tile, end = pieces[piece, 0], pieces[piece, 2]
            values, y_tile = table[tile, VALUES], y_begin + table[tile, FIRST_ROW] * size
            mask = offsets = np.int64(0)
            if masked:
                mask, offsets = table[tile, MASK], table[tile, ROW_OFFSETS]
            for panel in range(pieces[piece, 1], end, PANEL):
                panel_end = min(panel + PANEL, end)
                for row in range(panel, panel_end):
                    before = load_u32(offsets + 4 * row) if masked else row * cols
                    store_scalar(resume + 8 * (row - panel), values + before * width)
                for word in range(0, words, block_words):
                    word_count = min(block_words, words - word)
                    x_block = x_begin + word // block_words * token_blocks * token_block * x_stride
                    for group in range(panel, panel_end, row_block):
                        group_end = min(group + row_block, panel_end)
                        for row in range(group, group_end):
                            at = resume + 8 * (row - panel)
                            to = weights + (row - group) * weights_stride
                            row_mask = mask + 8 * words * row
                            next_values = _fill_row(
                                masked, vectorised, kind, tables,
                                load_u64(at), row_mask, word, word_count, cols, to,
                            )  # fmt: skip
                            store_scalar(at, next_values)
                        for block_number in range(token_blocks):
                            x_at = x_block + block_number * token_block * x_stride
                            here = (group - panel) // row_block * token_blocks + block_number
                            sums_at = carried + here * planes * plane_bytes
                            for plane in range(planes):
                                plane_at = sums_at + plane * plane_bytes
                                sums = zeros(kind, lanes, count)
                                if word > 0:
                                    sums = load(plane_at, vector_bytes, summed, lanes, count)
                                for at in range(plane * vector_bytes, word_count * step, part_bytes):
                                    left = load(weights + at, weights_stride, summed, lanes, row_block)
                                    right = load(x_at + at, x_stride, summed, lanes, token_block)
                                    sums = outer(left, right, sums)
                                store(plane_at, vector_bytes, sums)
                            if word + word_count < words:
                                continue
                            first_token = block_number * token_block
                            for row in range(group, group_end):
                                for token in range(first_token, min(first_token + token_block, tokens)):
                                    number = (row - group) * token_block + token - first_token
                                    partial = load(sums_at + number * vector_bytes, plane_bytes, summed, lanes, planes)
                                    store_scalar(y_tile + token * y_stride + row * size, tree_sum(partial))

    return product


@cache
def skipping_kernel(kind: int) -> Callable[..., Any]:
    """Slow kernel for layout `bitmask` that skips pruned positions, for x with Inf or NaN.

    product(table, pieces, lo, hi, x, cols, scratch, y): x (tokens, at least cols), scratch 17 elements.
    """
    width, summed = WIDTH[kind], summed_kind(kind)
    size = WIDTH[summed]
    sixteen, one = 16, 1

    @jit
    def product(table, pieces, lo, hi, x, cols, scratch, y):
        value, partial = np.int64(scratch.ctypes.data) + 16 * size, np.int64(scratch.ctypes.data)
        words = (cols + WORD - 1) // WORD
        for piece in range(lo, hi):
            tile = pieces[piece, 0]
            for row in range(pieces[piece, 1], pieces[piece, 2]):
                for token in range(y.shape[0]):
                    at = table[tile, VALUES] + load_u32(table[tile, ROW_OFFSETS] + 4 * row) * width
                    store(partial, size, zeros(kind, sixteen, one))
                    for word in range(words):
                        bits = load_u64(table[tile, MASK] + 8 * (words * row + word))
                        while bits != 0:
                            col = word * WORD + lowest_bit(bits)
                            copy_value(at, kind, value)
                            sum_at = partial + col % 16 * size
                            total = load_scalar(sum_at, x[0, 0])
                            store_scalar(sum_at, fma(load_scalar(value, x[0, 0]), x[token, col], total))
                            at += width
                            bits &= bits - 1
                    y[token, table[tile, FIRST_ROW] + row] = tree_sum(load(partial, size, summed, sixteen, one))

    return product
