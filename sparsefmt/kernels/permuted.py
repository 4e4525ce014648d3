"""Product with layout `permuted`: one chain of fused multiply-adds per row, in ascending column order.

The lanes of a vector are the eight rows of a slice in `one_token_kernel`, and tokens in `many_tokens_kernel`. Both add
in the same order, so the bits of a result do not depend on which was used.

Lanes that are padding multiply column 0 by zero, which changes no bit as long as x is finite; for other x there is
`skipping_kernel`. Kernels see arrays of checked tiles only, release the GIL, and are made by functions that choose what
is constant in them. They do the slices `pieces[lo:hi]` of `operand.Work`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from sparsefmt.jit import jit
from sparsefmt.kernels.expand import copy_value
from sparsefmt.kernels.operand import (
    COLUMNS,
    FIRST_ROW,
    HEIGHT,
    ROW_COUNTS,
    ROW_PERMUTATION,
    SLICE_OFFSETS,
    VALUES,
)
from sparsefmt.kernels.simd import (
    VECTOR_BYTES,
    WIDTH,
    fma,
    fma_rows,
    fma_tokens,
    load,
    load_scalar,
    load_u16,
    load_u32,
    prefetch,
    scatter,
    store_rows,
    summed_kind,
    zeros,
)

ROWS = 8
"""Rows of a slice."""

AHEAD = 4096
"""Bytes of values that `one_token_kernel` asks for in advance, so that waiting for memory goes on while it adds. They
go to the second level: in the first, they would drive out the activations."""


@cache
def token_shapes(kind: int) -> tuple[tuple[int, int], ...]:
    """(lanes, vectors) in which `many_tokens_kernel` can take tokens, most tokens first."""
    lanes = VECTOR_BYTES // WIDTH[summed_kind(kind)]
    shapes = [(lanes, 2)] if VECTOR_BYTES == 64 else []
    while lanes >= 4:
        shapes.append((lanes, 1))
        lanes //= 2
    return tuple(shapes)


@cache
def one_token_kernel(kind: int, wide: bool) -> Callable[..., Any]:
    """Kernel for one token at a time, x being finite.

    product(table, pieces, lo, hi, x, y) fills y (tokens, rows) from x (tokens, at least cols). `wide`: columns are u32.
    """
    wide, width, col_width, summed = int(wide), WIDTH[kind], 4 if wide else 2, summed_kind(kind)
    size, eight, four, two, one = WIDTH[summed], 8, 4, 2, 1
    slot, col_slot = ROWS * width, ROWS * col_width
    col_ahead, lines, col_lines = AHEAD // width * col_width, four * slot // 64, four * col_slot // 64

    @jit
    def product(table, pieces, lo, hi, x, y):
        x_begin, y_begin = np.int64(x.ctypes.data), np.int64(y.ctypes.data)
        for token in range(x.shape[0]):
            x_at = x_begin + token * x.shape[1] * size
            for piece in range(lo, hi):
                tile = pieces[piece, 0]
                positions, offsets, rows = table[tile, ROW_PERMUTATION], table[tile, SLICE_OFFSETS], table[tile, HEIGHT]
                y_tile = y_begin + (token * y.shape[1] + table[tile, FIRST_ROW]) * size
                begin, end = pieces[piece, 1], pieces[piece, 2]
                half = (end - begin + 1) // 2
                for slice0 in range(begin, begin + half):
                    # two slices at once, so that none waits for its last addition; far apart, so that memory is read in
                    # long runs; the last slice may be done twice
                    slice1 = min(slice0 + half, end - 1)
                    first0, first1 = load_u32(offsets + 4 * slice0), load_u32(offsets + 4 * slice1)
                    slots0 = load_u32(offsets + 4 * (slice0 + 1)) - first0
                    # slices are sorted: the second is no longer than the first
                    slots1 = load_u32(offsets + 4 * (slice1 + 1)) - first1
                    values0, columns0 = table[tile, VALUES] + first0 * slot, table[tile, COLUMNS] + first0 * col_slot
                    values1, columns1 = table[tile, VALUES] + first1 * slot, table[tile, COLUMNS] + first1 * col_slot
                    sums0, sums1 = zeros(kind, eight, one), zeros(kind, eight, one)
                    for _ in range(slots1 // four):
                        prefetch(values0 + AHEAD, lines, two)
                        prefetch(values1 + AHEAD, lines, two)
                        prefetch(columns0 + col_ahead, col_lines, two)
                        prefetch(columns1 + col_ahead, col_lines, two)
                        sums0 = fma_rows(values0, kind, columns0, wide, four, x_at, sums0)
                        sums1 = fma_rows(values1, kind, columns1, wide, four, x_at, sums1)
                        values0, columns0 = values0 + four * slot, columns0 + four * col_slot
                        values1, columns1 = values1 + four * slot, columns1 + four * col_slot
                    for _ in range(slots1 % four):
                        sums1 = fma_rows(values1, kind, columns1, wide, one, x_at, sums1)
                        values1, columns1 = values1 + slot, columns1 + col_slot
                    for _ in range(slots0 - slots1 // four * four):
                        sums0 = fma_rows(values0, kind, columns0, wide, one, x_at, sums0)
                        values0, columns0 = values0 + slot, columns0 + col_slot
                    scatter(y_tile, positions + 2 * ROWS * slice0, rows - ROWS * slice0, sums0)
                    scatter(y_tile, positions + 2 * ROWS * slice1, rows - ROWS * slice1, sums1)

    return product


@cache
def many_tokens_kernel(kind: int, wide: bool, lanes: int, count: int) -> Callable[..., Any]:
    """Kernel for blocks of `lanes * count` tokens, x being finite.

    product(table, pieces, lo, hi, x, cols, rows, blocks, y): x is as `activations.in_tokens` makes it, and y as
    `activations.from_tokens` takes it, for `blocks` blocks and `rows` rows in all.
    """
    wide, width, col_width, summed = int(wide), WIDTH[kind], 4 if wide else 2, summed_kind(kind)
    size, eight, one, zero = WIDTH[summed], 8, 1, 0
    slot, col_slot, block_bytes, sums_count = ROWS * width, ROWS * col_width, lanes * count * size, ROWS * count

    @jit
    def product(table, pieces, lo, hi, x, cols, rows, blocks, y):
        x_begin, y_begin = np.int64(x.ctypes.data), np.int64(y.ctypes.data)
        for piece in range(lo, hi):
            tile = pieces[piece, 0]
            positions, offsets, tile_rows = (
                table[tile, ROW_PERMUTATION],
                table[tile, SLICE_OFFSETS],
                table[tile, HEIGHT],
            )
            for block in range(blocks):
                x_at = x_begin + block * cols * block_bytes
                y_tile = y_begin + (block * rows + table[tile, FIRST_ROW]) * block_bytes
                first = load_u32(offsets + 4 * pieces[piece, 1])
                values, columns = table[tile, VALUES] + first * slot, table[tile, COLUMNS] + first * col_slot
                for slice_ in range(pieces[piece, 1], pieces[piece, 2]):
                    last = load_u32(offsets + 4 * (slice_ + 1))
                    sums = zeros(kind, lanes, sums_count)
                    for _ in range(last - first):
                        weights = load(values, slot, kind, eight, one)
                        sums = fma_tokens(weights, columns, wide, x_at, zero, eight, sums)
                        values += slot
                        columns += col_slot
                    first = last
                    store_rows(y_tile, block_bytes, positions + 2 * ROWS * slice_, tile_rows - ROWS * slice_, sums)

    return product


@cache
def skipping_kernel(kind: int, wide: bool) -> Callable[..., Any]:
    """Slow kernel that skips pruned positions and padding, for x with Inf or NaN.

    product(table, pieces, lo, hi, x, scratch, y): x (tokens, at least cols), scratch 1 element, y (tokens, rows).
    """
    wide, width, col_width = int(wide), WIDTH[kind], 4 if wide else 2

    @jit
    def product(table, pieces, lo, hi, x, scratch, y):
        value = np.int64(scratch.ctypes.data)
        zero = x.dtype.type(0)
        for piece in range(lo, hi):
            tile = pieces[piece, 0]
            for slice_ in range(pieces[piece, 1], pieces[piece, 2]):
                first = load_u32(table[tile, SLICE_OFFSETS] + 4 * slice_)
                for lane in range(min(ROWS, table[tile, HEIGHT] - ROWS * slice_)):
                    position = ROWS * slice_ + lane
                    row = table[tile, FIRST_ROW] + load_u16(table[tile, ROW_PERMUTATION] + 2 * position)
                    for token in range(x.shape[0]):
                        total = zero
                        for number in range(load_u32(table[tile, ROW_COUNTS] + 4 * position)):
                            index = (first + number) * ROWS + lane
                            at = table[tile, COLUMNS] + index * col_width
                            col = load_u32(at) if wide else load_u16(at)
                            copy_value(table[tile, VALUES] + index * width, kind, value)
                            total = fma(load_scalar(value, zero), x[token, col], total)
                        y[token, row] = total + zero

    return product
