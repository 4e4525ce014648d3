"""Product with layout `permuted`, in both forms: one chain of fused multiply-adds per row, in ascending column order.

The lanes of a vector are the sixteen rows of a slice in `one_token_kernel`, and tokens in `many_tokens_kernel`, which
does some slots for eight rows of a slice, then for the other eight. Both add in the same order, so the bits of a result
do not depend on which was used.

Gaps become columns in memory that stays in the first-level cache, some slots ahead of those that are multiplied.

Padding and fillers multiply some column by zero, which changes no bit as long as x is finite; for other x there is
`skipping_kernel`. Kernels see arrays of checked tiles only, release the GIL, and are made by functions that fix what
is constant in them. `job.py` says what they get.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from sparsefmt.jit import jit
from sparsefmt.kernels.expand import copy_value
from sparsefmt.kernels.job import COLS, ROWS, TOKENS, X, Y, field, own, piece
from sparsefmt.kernels.kinds import WIDTH, summed_kind
from sparsefmt.kernels.operand import (
    FIRST_ROW,
    HEIGHT,
    ROW_COUNTS,
    ROW_PERMUTATION,
    SLICE_OFFSETS,
    VALUES,
    WHERE,
)
from sparsefmt.kernels.permuted_slots import (
    first_columns,
    fma_row_of_gaps,
    fma_rows,
    fma_tokens,
    next_columns,
    put_columns,
    scatter,
    store_rows,
)
from sparsefmt.kernels.raw_memory import (
    load_scalar,
    load_u8,
    load_u16,
    load_u32,
    load_u64,
    memory,
    prefetch,
    store_scalar,
)
from sparsefmt.kernels.simd import VECTOR_BYTES, fma, load, zeros
from sparsefmt.positions.masks import SLICE_ROWS

HALF = 8
"""Rows whose sums `many_tokens_kernel` holds in registers."""

MOST_AT_ONCE = 64
"""Slots that it does for one half of a slice, then for the other, at most. They stay in the first-level cache."""

LEAST_AT_ONCE = 16
"""The same, at least: what is done for each half is little beside so many."""

CACHED_COLUMNS = 160
"""Columns whose activations stay in the first-level cache until the other half multiplies them, too."""

AHEAD = 4096
"""Bytes of values that `one_token_kernel` asks for in advance, so that waiting for memory goes on while it adds. They
go to the second level: in the first, they would drive out the activations."""


class Slices(NamedTuple):
    """Some slices of a tile, as kernels for one token take them.

    Attributes:
        line: address of the tile's line of `Operand.table`.
        begin, end: the first slice, and the one behind the last.
        positions, offsets: addresses of the tile's row permutation, and of where its slices begin.
        rows: of the tile.
        y: address of its first row in y.
    """

    line: int
    begin: int
    end: int
    positions: int
    offsets: int
    rows: int
    y: int


@jit
def slices(job, number, size):
    """The slices of a piece. `size`: bytes of an element of y."""
    line, begin, end = piece(job, number)
    y = load_u64(job + Y) + field(line, FIRST_ROW) * size
    return Slices(line, begin, end, field(line, ROW_PERMUTATION), field(line, SLICE_OFFSETS), field(line, HEIGHT), y)


@cache
def token_shapes(kind: int) -> tuple[tuple[int, int], ...]:
    """(lanes, vectors) in which `many_tokens_kernel` can take tokens, most tokens first."""
    lanes = VECTOR_BYTES // WIDTH[summed_kind(kind)]
    shapes = [(lanes, 2)] if VECTOR_BYTES == 64 else []
    while lanes >= 4:
        shapes.append((lanes, 1))
        lanes //= 2
    return tuple(shapes)


def slots_at_once(density: float) -> int:
    """Slots that `many_tokens_kernel` does for one half of a slice, then for the other. `density`: share of entries."""
    return min(max(int(CACHED_COLUMNS * density), LEAST_AT_ONCE), MOST_AT_ONCE)


@cache
def one_token_kernel(kind: int, wide: bool) -> Callable[..., Any]:
    """Kernel for one token, x being finite: y (rows) from x (cols). `wide`: columns are u32."""
    wide, width, col_width, summed = int(wide), WIDTH[kind], 4 if wide else 2, summed_kind(kind)
    size, sixteen, four, two, one = WIDTH[summed], SLICE_ROWS, 4, 2, 1
    slot, col_slot = SLICE_ROWS * width, SLICE_ROWS * col_width
    col_ahead, lines, col_lines = AHEAD // width * col_width, four * slot // 64, four * col_slot // 64

    @jit
    def product(job, lo, hi, scratch):
        x_at = load_u64(job + X)
        for number in range(lo, hi):
            at = slices(job, number, size)
            first = load_u32(at.offsets + 4 * at.begin)
            values, columns = field(at.line, VALUES) + first * slot, field(at.line, WHERE) + first * col_slot
            for slice_ in range(at.begin, at.end):
                last = load_u32(at.offsets + 4 * (slice_ + 1))
                sums = zeros(kind, sixteen, one)
                for _ in range((last - first) // four):
                    prefetch(values + AHEAD, lines, two)
                    prefetch(columns + col_ahead, col_lines, two)
                    sums = fma_rows(values, kind, columns, wide, four, x_at, sums)
                    values, columns = values + four * slot, columns + four * col_slot
                for _ in range((last - first) % four):
                    sums = fma_rows(values, kind, columns, wide, one, x_at, sums)
                    values, columns = values + slot, columns + col_slot
                scatter(at.y, at.positions + 2 * SLICE_ROWS * slice_, at.rows - SLICE_ROWS * slice_, sums)
                first = last

    return product


@cache
def one_token_kernel_of_gaps(kind: int, wide: bool) -> Callable[..., Any]:
    """Like `one_token_kernel`, for the form with gaps. `wide`: columns take more than 16 bits.

    Columns of the next four slots are made while four are multiplied: what was written just now could not be read yet.
    """
    wide, width, col_slot, summed = int(wide), WIDTH[kind], SLICE_ROWS * (4 if wide else 2), summed_kind(kind)
    size, sixteen, four, two, one = WIDTH[summed], SLICE_ROWS, 4, 2, 1
    slot, gap_slot, gaps_ahead, lines = SLICE_ROWS * width, SLICE_ROWS, AHEAD // width, four * SLICE_ROWS * width // 64
    half, room = four * col_slot, 2 * four * col_slot

    @jit
    def product(job, lo, hi, scratch):
        halves = memory(room)
        x_at = load_u64(job + X)
        for number in range(lo, hi):
            at = slices(job, number, size)
            first = load_u32(at.offsets + 4 * at.begin)
            values = field(at.line, VALUES) + first * slot
            for slice_ in range(at.begin, at.end):
                last = load_u32(at.offsets + 4 * (slice_ + 1))
                sums, gaps, columns = zeros(kind, sixteen, one), field(at.line, WHERE) + first * gap_slot, halves
                at0 = put_columns(columns, next_columns(first_columns(wide), gaps))
                at1 = put_columns(columns + col_slot, next_columns(at0, gaps + gap_slot))
                at2 = put_columns(columns + 2 * col_slot, next_columns(at1, gaps + 2 * gap_slot))
                at3 = put_columns(columns + 3 * col_slot, next_columns(at2, gaps + 3 * gap_slot))
                for _ in range((last - first) // four):
                    gaps += four * gap_slot
                    prefetch(gaps + gaps_ahead, one, two)
                    prefetch(values + AHEAD, lines, two)
                    others = 2 * halves + half - columns
                    next0 = put_columns(others, next_columns(at3, gaps))
                    sums = fma_row_of_gaps(values, kind, at0, columns, x_at, sums)
                    next1 = put_columns(others + col_slot, next_columns(next0, gaps + gap_slot))
                    sums = fma_row_of_gaps(values + slot, kind, at1, columns + col_slot, x_at, sums)
                    next2 = put_columns(others + 2 * col_slot, next_columns(next1, gaps + 2 * gap_slot))
                    sums = fma_row_of_gaps(values + 2 * slot, kind, at2, columns + 2 * col_slot, x_at, sums)
                    next3 = put_columns(others + 3 * col_slot, next_columns(next2, gaps + 3 * gap_slot))
                    sums = fma_row_of_gaps(values + 3 * slot, kind, at3, columns + 3 * col_slot, x_at, sums)
                    at0, at1, at2, at3, columns, values = next0, next1, next2, next3, others, values + four * slot
                for _ in range((last - first) % four):
                    sums = fma_row_of_gaps(values, kind, at0, columns, x_at, sums)
                    at0, at1, at2, columns, values = at1, at2, at3, columns + col_slot, values + slot
                scatter(at.y, at.positions + 2 * SLICE_ROWS * slice_, at.rows - SLICE_ROWS * slice_, sums)
                first = last

    return product


@cache
def many_tokens_kernel(kind: int, wide: bool, gaps: bool, lanes: int, count: int) -> Callable[..., Any]:
    """Kernel for blocks of `lanes * count` tokens, x being finite. `gaps`: for that form.

    x is as `activations.in_tokens` makes it, and y as `activations.from_tokens` takes it, for so many blocks as the
    first of the kernel's own numbers says. The other is `slots_at_once`.
    """
    wide, gaps, width, col_slot, summed = (
        int(wide),
        int(gaps),
        WIDTH[kind],
        SLICE_ROWS * (4 if wide else 2),
        summed_kind(kind),
    )
    size, eight, one, half0, half1, half_slot = WIDTH[summed], HALF, 1, 0, HALF, HALF * width
    slot, where_slot, block_bytes, sums_count = (
        SLICE_ROWS * width,
        SLICE_ROWS if gaps else col_slot,
        lanes * count * size,
        HALF * count,
    )
    room = MOST_AT_ONCE * col_slot if gaps else 1

    @jit
    def product(job, lo, hi, scratch):
        made = memory(room)
        x_begin, y_begin = load_u64(job + X), load_u64(job + Y)
        cols, rows, blocks, at_once = load_u64(job + COLS), load_u64(job + ROWS), own(job, 0), own(job, 1)
        ahead, where_ahead = at_once * slot, at_once * where_slot
        for number_of_piece in range(lo, hi):
            line, first_slice, end = piece(job, number_of_piece)
            positions, offsets = field(line, ROW_PERMUTATION), field(line, SLICE_OFFSETS)
            tile_rows = field(line, HEIGHT)
            for block in range(blocks):
                x_at = x_begin + block * cols * block_bytes
                y_tile = y_begin + (block * rows + field(line, FIRST_ROW)) * block_bytes
                first = load_u32(offsets + 4 * first_slice)
                for slice_ in range(first_slice, end):
                    last = load_u32(offsets + 4 * (slice_ + 1))
                    present = tile_rows - SLICE_ROWS * slice_
                    slots, values = last - first, field(line, VALUES) + first * slot
                    where = field(line, WHERE) + first * where_slot
                    # the second half has values in no more slots than the first, since rows are sorted
                    further = (
                        load_u32(field(line, ROW_COUNTS) + 4 * (SLICE_ROWS * slice_ + HALF)) if present > HALF else 0
                    )
                    sums0, sums1 = zeros(kind, lanes, sums_count), zeros(kind, lanes, sums_count)
                    columns, reached = where, first_columns(wide)
                    for begin in range(0, slots, at_once):
                        if gaps:
                            columns = made - begin * col_slot
                            for number in range(begin, min(begin + at_once, slots)):
                                reached = next_columns(reached, where + number * where_slot)
                                put_columns(columns + number * col_slot, reached)
                        for number in range(begin, min(begin + at_once, slots)):
                            prefetch(values + (begin + number) // 2 * slot + ahead, one, one)
                            prefetch(where + (begin + number) // 2 * where_slot + where_ahead, one, one)
                            weights = load(values + number * slot, slot, kind, eight, one)
                            sums0 = fma_tokens(weights, columns + number * col_slot, wide, x_at, half0, sums0)
                        for number in range(begin, min(begin + at_once, further)):
                            prefetch(values + (begin + number) // 2 * slot + ahead + ahead // 2, one, one)
                            prefetch(
                                where + (begin + number) // 2 * where_slot + where_ahead + where_ahead // 2, one, one
                            )
                            weights = load(values + number * slot + half_slot, slot, kind, eight, one)
                            sums1 = fma_tokens(weights, columns + number * col_slot, wide, x_at, half1, sums1)
                    at = positions + 2 * SLICE_ROWS * slice_
                    store_rows(y_tile, block_bytes, at, present, sums0)
                    store_rows(y_tile, block_bytes, at + 2 * HALF, present - HALF, sums1)
                    first = last

    return product


@cache
def skipping_kernel(kind: int, wide: bool, gaps: bool) -> Callable[..., Any]:
    """Slow kernel that skips pruned positions, padding and fillers, for x with Inf or NaN. `gaps`: for that form.

    x (tokens, cols), y (tokens, rows); scratch has an element of y's type.
    """
    wide, gaps, width = int(wide), int(gaps), WIDTH[kind]
    size = WIDTH[summed_kind(kind)]
    zero = np.float64(0) if size == 8 else np.float32(0)

    @jit
    def product(job, lo, hi, scratch):
        x_begin, y_begin, value = load_u64(job + X), load_u64(job + Y), scratch
        cols, rows, tokens = load_u64(job + COLS), load_u64(job + ROWS), load_u64(job + TOKENS)
        for number_of_piece in range(lo, hi):
            line, first_slice, end = piece(job, number_of_piece)
            where, values = field(line, WHERE), field(line, VALUES)
            for slice_ in range(first_slice, end):
                first = load_u32(field(line, SLICE_OFFSETS) + 4 * slice_)
                for lane in range(min(SLICE_ROWS, field(line, HEIGHT) - SLICE_ROWS * slice_)):
                    position = SLICE_ROWS * slice_ + lane
                    row = field(line, FIRST_ROW) + load_u16(field(line, ROW_PERMUTATION) + 2 * position)
                    for token in range(tokens):
                        total, col = zero, 0
                        for number in range(load_u32(field(line, ROW_COUNTS) + 4 * position)):
                            index = (first + number) * SLICE_ROWS + lane
                            if gaps:
                                col += load_u8(where + index)
                            else:
                                col = load_u32(where + 4 * index) if wide else load_u16(where + 2 * index)
                            copy_value(values + index * width, kind, value)
                            weight = load_scalar(value, zero)
                            # fillers alone are zero
                            if weight != zero:
                                total = fma(weight, load_scalar(x_begin + (token * cols + col) * size, zero), total)
                        store_scalar(y_begin + (token * rows + row) * size, total + zero)

    return product
