"""Products with layout `dense`: rows are transposed in registers by `transposed.py`.

`few_tokens_kernel` multiplies the columns at once, for every token; for many tokens they are written to a panel
(`panel.py`). Both multiply zeros like other weights, which changes no bit as long as x is finite; for other x there is
`skipping_kernel`. All add the columns of a row in ascending order, so the bits of a result do not depend on which ran.

Kernels see arrays of checked tiles only, release the GIL, and are made by functions that fix what is constant in
them. `job.py` says what they get.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from sparsefmt.jit import jit
from sparsefmt.kernels.expand import copy_value
from sparsefmt.kernels.job import COLS, ROWS, TOKENS, X, Y, field, piece
from sparsefmt.kernels.kinds import WIDTH, summed_kind
from sparsefmt.kernels.operand import FIRST_ROW, HEIGHT, VALUES
from sparsefmt.kernels.raw_memory import load_scalar, load_u64, prefetch, store_scalar
from sparsefmt.kernels.simd import fma, part, store_sums, zeros
from sparsefmt.kernels.transposed import BLOCK_BYTES, PITCH, copy_block, fma_transposed, piece_bytes, piece_columns
from sparsefmt.positions.masks import SLICE_ROWS

FEW = 2
"""Most tokens of `few_tokens_kernel`: with more, a panel is faster."""


@cache
def few_tokens_kernel(kind: int, tokens: int) -> Callable[..., Any]:
    """Kernel for at most `tokens` tokens, x being finite.

    y (that many tokens or fewer, rows). x is flat, column by column, `tokens` activations each, with zeros up to a
    multiple of eight columns; scratch is SCRATCH_BYTES of `transposed.py`.
    """
    width, size = WIDTH[kind], WIDTH[summed_kind(kind)]
    slices = 2 if tokens == 1 else 1
    sixteen, sums_count, rows_at_once, none = SLICE_ROWS, slices * tokens, slices * SLICE_ROWS, 0
    step, last, piece_step = piece_columns(kind) * tokens * size, sums_count - tokens, piece_bytes(kind)
    lines, one, two, rows_per_piece = BLOCK_BYTES // 64, 1, 2, max(1, rows_at_once * piece_step // BLOCK_BYTES)

    @jit
    def product(job, lo, hi, scratch):
        x_begin, block, stride = load_u64(job + X), scratch, load_u64(job + COLS) * width
        y_begin, y_stride, y_count = load_u64(job + Y), load_u64(job + ROWS) * size, load_u64(job + TOKENS)
        for number in range(lo, hi):
            line, slices_begin, slices_end = piece(job, number)
            begin, end = slices_begin * SLICE_ROWS, min(slices_end * SLICE_ROWS, field(line, HEIGHT))
            for row in range(begin, end, rows_at_once):
                # the last rows may be done twice
                first = max(begin, min(row, end - rows_at_once))
                present = min(end - first, rows_at_once)
                at, x_at = field(line, VALUES) + first * stride, x_begin
                sums = zeros(kind, sixteen, sums_count)
                for done in range(0, stride, BLOCK_BYTES):
                    row_bytes = min(BLOCK_BYTES, stride - done)
                    copy_block(at + done, stride, present, row_bytes, block, rows_at_once)
                    ahead = at + done + BLOCK_BYTES
                    for piece_at in range(block, block + row_bytes, piece_step):
                        # the next block of one row after the other, while this one is multiplied
                        for _ in range(rows_per_piece):
                            prefetch(ahead, lines, two)
                            if stride % 64:
                                # it ends within a line of the cache
                                prefetch(ahead + BLOCK_BYTES, one, two)
                            ahead += stride
                        sums = fma_transposed(piece_at, PITCH, kind, slices, x_at, sums)
                        x_at += step
                y_at = y_begin + (field(line, FIRST_ROW) + first) * size
                store_sums(y_at, y_stride, y_count, present, part(sums, none, tokens))
                if slices > 1:
                    store_sums(
                        y_at + SLICE_ROWS * size, y_stride, y_count, present - SLICE_ROWS, part(sums, last, tokens)
                    )

    return product


@cache
def skipping_kernel(kind: int) -> Callable[..., Any]:
    """Slow kernel that skips zeros of either sign, for x with Inf or NaN.

    x (tokens, cols); y (tokens, rows); scratch has an element of y's type.
    """
    width, size = WIDTH[kind], WIDTH[summed_kind(kind)]
    zero = np.float64(0) if size == 8 else np.float32(0)

    @jit
    def product(job, lo, hi, scratch):
        x_begin, y_begin, value = load_u64(job + X), load_u64(job + Y), scratch
        cols, rows, tokens = load_u64(job + COLS), load_u64(job + ROWS), load_u64(job + TOKENS)
        for number in range(lo, hi):
            line, begin, end = piece(job, number)
            for row in range(begin * SLICE_ROWS, min(end * SLICE_ROWS, field(line, HEIGHT))):
                at = field(line, VALUES) + row * cols * width
                for token in range(tokens):
                    total = zero
                    for col in range(cols):
                        copy_value(at + col * width, kind, value)
                        weight = load_scalar(value, zero)
                        if weight != 0:
                            total = fma(weight, load_scalar(x_begin + (token * cols + col) * size, zero), total)
                    store_scalar(y_begin + (token * rows + field(line, FIRST_ROW) + row) * size, total + zero)

    return product
