"""Product with layout `permuted` for one token where the gather instruction is fast (`gather.py`).

Rows are in the lanes, as in `permuted.one_token_kernel`, and the bits are the same. Columns made of gaps stay in
registers here, since the instruction takes them from there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from sparsefmt.jit import jit
from sparsefmt.kernels.gathered import fma_gathered, load_columns
from sparsefmt.kernels.job import X, field
from sparsefmt.kernels.kinds import WIDTH, summed_kind
from sparsefmt.kernels.operand import VALUES, WHERE
from sparsefmt.kernels.permuted import AHEAD, slices
from sparsefmt.kernels.permuted_slots import first_columns, next_columns, scatter
from sparsefmt.kernels.raw_memory import load_u32, load_u64, prefetch
from sparsefmt.kernels.simd import zeros
from sparsefmt.positions.masks import SLICE_ROWS


@cache
def one_token_kernel(kind: int, gaps: bool) -> Callable[..., Any]:
    """Kernel for one token, x being finite: y (rows) from x (cols), for columns of 16 bits. `gaps`: for that form."""
    width, has_gaps, narrow, size = WIDTH[kind], int(gaps), 0, WIDTH[summed_kind(kind)]
    sixteen, four, two, one = SLICE_ROWS, 4, 2, 1
    slot, where_slot = SLICE_ROWS * width, SLICE_ROWS * (1 if gaps else 2)
    where_ahead, lines, where_lines = AHEAD // slot * where_slot, four * slot // 64, four * where_slot // 64

    @jit
    def product(job, lo, hi, scratch):
        x_at = load_u64(job + X)
        for number in range(lo, hi):
            at = slices(job, number, size)
            first = load_u32(at.offsets + 4 * at.begin)
            values, where = field(at.line, VALUES) + first * slot, field(at.line, WHERE) + first * where_slot
            for slice_ in range(at.begin, at.end):
                last = load_u32(at.offsets + 4 * (slice_ + 1))
                sums, columns = zeros(kind, sixteen, one), first_columns(narrow)
                for _ in range((last - first) // four):
                    prefetch(values + AHEAD, lines, two)
                    prefetch(where + where_ahead, where_lines, two)
                    for _ in range(four):
                        columns = next_columns(columns, where) if has_gaps else load_columns(where)
                        sums = fma_gathered(values, kind, columns, x_at, sums)
                        values, where = values + slot, where + where_slot
                for _ in range((last - first) % four):
                    columns = next_columns(columns, where) if has_gaps else load_columns(where)
                    sums = fma_gathered(values, kind, columns, x_at, sums)
                    values, where = values + slot, where + where_slot
                scatter(at.y, at.positions + 2 * SLICE_ROWS * slice_, at.rows - SLICE_ROWS * slice_, sums)
                first = last

    return product
