"""Product with layout `permuted` for many tokens: blocks of columns, whose activations stay in the nearest cache.

The lanes of a vector are tokens, and registers hold the sums of one row for all tokens of a group. For each entry of
the row, its weight is spread over a vector and multiplied by the activations of its column. The rows of a panel are
done for one block of columns, then for the next. Where each row goes on is kept; its sums lie in the result meanwhile.

A row adds its columns in ascending order, as everywhere. Fillers multiply some column by zero, which changes no bit as
long as x is finite. Padding is not read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from sparsefmt.jit import jit
from sparsefmt.kernels.job import COLS, ROWS, X, Y, field, own, piece
from sparsefmt.kernels.kinds import WIDTH, summed_kind
from sparsefmt.kernels.operand import (
    FIRST_ROW,
    HEIGHT,
    ROW_COUNTS,
    ROW_PERMUTATION,
    SCALES,
    SLICE_OFFSETS,
    VALUES,
    WHERE,
)
from sparsefmt.kernels.raw_memory import load_u8, load_u16, load_u32, load_u64, memory, prefetch, store_scalar
from sparsefmt.kernels.simd import VECTOR_BYTES, fma_by_one, fma_entry, load, store, zeros
from sparsefmt.positions.masks import SLICE_ROWS

PANEL = 8
"""Slices that are done for a block of columns before the next block. Their sums stay in the second-level cache."""

BLOCK_BYTES = 24 << 10
"""Activations of a block of columns, at least: they share the first-level cache with a slice and with sums."""

MOST_BLOCK_BYTES = 256 << 10
"""The same, at most."""

ENTRIES = 208
"""Entries of a row in a block, times vectors of tokens, from which on larger blocks gain nothing: what is done for each
row of a block is little beside them."""

PREFETCHED_FROM = 24
"""Entries of a row in a block from which on the entries of the next block are asked for in advance."""


def block_columns(cols: int, count: int, density: float) -> tuple[int, int]:
    """Columns of a block, and how many entries of a row stand in it if it pays to ask for the next ones, else 0.

    Args:
        count: vectors of tokens of a group.
        density: share of entries.
    """
    row_bytes = VECTOR_BYTES * count
    wanted = max(BLOCK_BYTES // row_bytes, int(ENTRIES / count / max(density, 1e-6)))
    step = min(wanted, MOST_BLOCK_BYTES // row_bytes, cols)
    typical = int(step * density)
    return step, typical if typical >= PREFETCHED_FROM else 0


@cache
def blocked_kernel(kind: int, wide: bool, gaps: bool, count: int, scaled: bool = False) -> Callable[..., Any]:
    """Kernel for groups of `count` vectors of tokens, x being finite. `wide`, `gaps`: see `permuted.py`.

    `scaled`: each block of columns is a group of them, whose sums are multiplied by scales of their own.

    x is as `activations.in_tokens` makes it, and y as `activations.from_tokens` takes it, for so many groups as the
    first of the kernel's own numbers says. The others are `block_columns`.
    """
    width, size, summed = WIDTH[kind], WIDTH[summed_kind(kind)], summed_kind(kind)
    col_width, gaps_of_entries, columns_of_32_bits = 1 if gaps else 4 if wide else 2, int(gaps), int(wide)
    slot, where_slot = SLICE_ROWS * width, SLICE_ROWS * col_width
    lanes, vector_bytes, row_bytes = VECTOR_BYTES // size, VECTOR_BYTES, VECTOR_BYTES * count
    room, one, two, by_scales = 16 * SLICE_ROWS * PANEL, 1, 2, int(scaled)

    @jit
    def product(job, lo, hi, scratch):
        resume = memory(room)
        x_begin, y_begin = load_u64(job + X), load_u64(job + Y)
        cols, rows, groups, step, typical = (
            load_u64(job + COLS),
            load_u64(job + ROWS),
            own(job, 0),
            own(job, 1),
            own(job, 2),
        )
        for number in range(lo, hi):
            line, begin, end = piece(job, number)
            positions, offsets = field(line, ROW_PERMUTATION), field(line, SLICE_OFFSETS)
            values, where, counts = field(line, VALUES), field(line, WHERE), field(line, ROW_COUNTS)
            for panel in range(begin, end, PANEL):
                first_row = SLICE_ROWS * panel
                end_row = min(SLICE_ROWS * min(panel + PANEL, end), field(line, HEIGHT))
                for group in range(groups):
                    x_at = x_begin + group * cols * row_bytes
                    y_at = y_begin + (group * rows + field(line, FIRST_ROW)) * row_bytes
                    for row in range(first_row, end_row):
                        first = load_u32(offsets + 4 * (row // SLICE_ROWS))
                        at = where + first * where_slot + row % SLICE_ROWS * col_width
                        store_scalar(resume + 16 * (row - first_row), at)
                        store_scalar(resume + 16 * (row - first_row) + 8, 0)
                    scales_at = field(line, SCALES)
                    for block in range(0, cols, step):
                        # columns are counted in bytes of x
                        block_end = min(block + step, cols) * row_bytes
                        for row in range(first_row, end_row):
                            state = resume + 16 * (row - first_row)
                            at, reached = load_u64(state), load_u64(state + 8)
                            first = load_u32(offsets + 4 * (row // SLICE_ROWS))
                            begin_at = where + first * where_slot + row % SLICE_ROWS * col_width
                            end_at = begin_at + load_u32(counts + 4 * row) * where_slot
                            values_at = values + first * slot + row % SLICE_ROWS * width
                            sums_at = y_at + load_u16(positions + 2 * row) * row_bytes
                            if typical:
                                # of the next block, a part for each row of a slice
                                ahead = (at - begin_at) // where_slot + typical + row % SLICE_ROWS * typical // 16
                                prefetch(values + (first + ahead) * slot, two, one)
                                prefetch(where + (first + ahead) * where_slot, one, one)
                            sums = zeros(kind, lanes, count)
                            if block > 0 and not by_scales:
                                sums = load(sums_at, vector_bytes, summed, lanes, count)
                            while at < end_at:
                                col = reached
                                if gaps_of_entries:
                                    col += load_u8(at) * row_bytes
                                elif columns_of_32_bits:
                                    col = load_u32(at) * row_bytes
                                else:
                                    col = load_u16(at) * row_bytes
                                if col >= block_end:
                                    break
                                weight_at = values_at + (at - begin_at) // col_width * width
                                sums = fma_entry(weight_at, kind, x_at + col, sums)
                                at += where_slot
                                reached = col
                            if by_scales:
                                totals = zeros(kind, lanes, count)
                                if block > 0:
                                    totals = load(sums_at, vector_bytes, summed, lanes, count)
                                sums = fma_by_one(sums, scales_at + load_u16(positions + 2 * row) * size, totals)
                            store(sums_at, vector_bytes, sums)
                            store_scalar(state, at)
                            store_scalar(state + 8, reached)
                        scales_at += rows * size

    return product
