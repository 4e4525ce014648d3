"""Product with layout `bitmask` for many tokens and few nonzeros: rows are taken out of the mask once for all tokens.

`panel.py` multiplies pruned positions by zero, so it takes as long as a dense product, however many of them there are.
Here, the entries of some slices are put in scratch memory as `permuted` has them, and a kernel of that layout
multiplies those alone: the one for blocks of columns (`permuted_in_blocks.py`), or, with AVX-512, the one for eight
rows side by side (`permuted.py`). Taking them out costs about as much as four tokens.

The bits are the same: these kernels add the columns of a row in ascending order, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from sparsefmt.bits_of_words import lowest_bit
from sparsefmt.jit import jit
from sparsefmt.kernels import job as jobs
from sparsefmt.kernels.bitmask import last_columns, mask_of
from sparsefmt.kernels.expand import COLUMNS
from sparsefmt.kernels.job import COLS, PIECES, TABLE, field, own, piece
from sparsefmt.kernels.kinds import WIDTH, summed_kind
from sparsefmt.kernels.llvm import stored_type
from sparsefmt.kernels.native import call_kernel
from sparsefmt.kernels.operand import (
    FIRST_ROW,
    HEIGHT,
    LINE,
    ROW_COUNTS,
    ROW_PERMUTATION,
    SCALES,
    SLICE_OFFSETS,
    VALUES,
    WHERE,
)
from sparsefmt.kernels.permuted import HALF
from sparsefmt.kernels.raw_memory import load_u32, load_u64, store_scalar
from sparsefmt.llvm import constant_of, load_as, store_at
from sparsefmt.positions.masks import SLICE_ROWS

PANEL = 4
"""Slices whose entries are taken out before they are multiplied. They stay in the second-level cache."""

MOST_COLS = 1 << 14
"""Columns up to which there is this kernel: the scratch must hold a panel without a single zero."""

_ROWS = PANEL * SLICE_ROWS

_JOB, _LINE, _PIECE, _OFFSETS, _POSITIONS, _COUNTS, _NEXT, _MASK = range(0, 8 << 10, 1 << 10)
"""Where in the scratch is what the other kernel gets: its job, the only line of its table, the only piece; of the tile,
`slice_offsets`, `row_permutation` and `row_counts`; then where each row of a slice goes on, and a widened mask. The
columns and values follow the mask."""


def scratch_bytes(kind: int, cols: int) -> int:
    """Bytes of scratch of the kernel."""
    return _MASK + _mask_bytes(cols) + _ROWS * cols * (2 + WIDTH[kind]) + 128


def _mask_bytes(cols: int) -> int:
    return -(-(2 * cols + 16) // 64) * 64


@intrinsic(prefer_literal=True)
def _copy_stored(typingctx, source, kind, destination):
    """One stored value as it is."""
    stored = constant_of(kind)

    def codegen(context, builder, signature, args):
        store_at(builder, args[2], load_as(builder, args[0], stored_type(stored, 1), WIDTH[stored]), WIDTH[stored])
        return context.get_dummy_value()

    return types.void(types.int64, kind, types.int64), codegen


@cache
def many_tokens_kernel(kind: int, side_by_side: bool = False) -> Callable[..., Any]:
    """Kernel for many tokens, x being finite, with three numbers of a kernel of `permuted`, and one more: the address
    of the machine code of that one, for the same kind, and for columns of 16 bits. `side_by_side`: it takes the row
    counts of a slice to descend.

    x and y are what that one takes; scratch is `scratch_bytes`.
    """
    width, size, job_bytes = WIDTH[kind], WIDTH[summed_kind(kind)], jobs.BYTES
    descending, zero = int(side_by_side), np.zeros((), f"u{width}")[()]

    @jit
    def product(job, lo, hi, scratch):
        cols, multiply = load_u64(job + COLS), own(job, 3)
        inner, line_of_panel, piece_of_panel = scratch + _JOB, scratch + _LINE, scratch + _PIECE
        offsets_of_panel, positions, counts = scratch + _OFFSETS, scratch + _POSITIONS, scratch + _COUNTS
        upcoming, widened = scratch + _NEXT, scratch + _MASK
        columns = widened + (2 * cols + 16 + 63) // 64 * 64
        values = columns + (2 * _ROWS * cols + 63) // 64 * 64
        for at in range(0, job_bytes, 8):
            store_scalar(inner + at, load_u64(job + at))
        store_scalar(inner + TABLE, line_of_panel)
        store_scalar(inner + PIECES, piece_of_panel)
        store_scalar(piece_of_panel, 0)
        store_scalar(piece_of_panel + 8, 0)
        for row in range(_ROWS):
            store_scalar(positions + 2 * row, np.uint16(row))
        store_scalar(line_of_panel + 8 * VALUES, values)
        store_scalar(line_of_panel + 8 * SLICE_OFFSETS, offsets_of_panel)
        store_scalar(line_of_panel + 8 * WHERE, columns)
        store_scalar(line_of_panel + 8 * ROW_PERMUTATION, positions)
        store_scalar(line_of_panel + 8 * ROW_COUNTS, counts)
        store_scalar(offsets_of_panel, np.uint32(0))
        for number in range(lo, hi):
            line, first_slice, end = piece(job, number)
            height = field(line, HEIGHT)
            for begin in range(first_slice, end, PANEL):
                panel_end = min(begin + PANEL, end)
                first_slot = 0
                for slice_ in range(begin, panel_end):
                    at = field(line, VALUES) + load_u32(field(line, SLICE_OFFSETS) + 4 * slice_) * width
                    mask = mask_of(line, slice_, cols, widened)
                    for row in range(SLICE_ROWS):
                        store_scalar(upcoming + 8 * row, first_slot * SLICE_ROWS + row)
                    for col in range(0, cols, COLUMNS):
                        bits = load_u64(mask + 2 * col) if col + COLUMNS <= cols else last_columns(mask, cols)
                        while bits != 0:
                            bit = lowest_bit(bits)
                            place = upcoming + 8 * (bit % SLICE_ROWS)
                            index = load_u64(place)
                            store_scalar(columns + 2 * index, np.uint16(col + bit // SLICE_ROWS))
                            _copy_stored(at, kind, values + width * index)
                            store_scalar(place, index + SLICE_ROWS)
                            at += width
                            bits &= bits - 1
                    end_slot = first_slot
                    for row in range(SLICE_ROWS):
                        behind = load_u64(upcoming + 8 * row) // SLICE_ROWS
                        store_scalar(counts + 4 * (SLICE_ROWS * (slice_ - begin) + row), np.uint32(behind - first_slot))
                        end_slot = max(end_slot, behind)
                    # rows side by side are multiplied to the end of the longest one
                    for row in range(SLICE_ROWS):
                        for index in range(load_u64(upcoming + 8 * row), SLICE_ROWS * end_slot, SLICE_ROWS):
                            store_scalar(columns + 2 * index, np.uint16(0))
                            store_scalar(values + width * index, zero)
                    if descending:
                        longest = np.uint32(end_slot - first_slot)
                        store_scalar(counts + 4 * (SLICE_ROWS * (slice_ - begin) + HALF), longest)
                    first_slot = end_slot
                    store_scalar(offsets_of_panel + 4 * (slice_ - begin + 1), np.uint32(first_slot))
                rows = min(height, SLICE_ROWS * panel_end) - SLICE_ROWS * begin
                store_scalar(line_of_panel + 8 * FIRST_ROW, field(line, FIRST_ROW) + SLICE_ROWS * begin)
                store_scalar(line_of_panel + 8 * HEIGHT, rows)
                store_scalar(line_of_panel + 8 * SCALES, field(line, SCALES) + SLICE_ROWS * begin * size)
                store_scalar(piece_of_panel + 16, panel_end - begin)
                call_kernel(multiply, inner, 0, 1, scratch)

    return product


assert LINE <= _PIECE - _LINE
