"""What the two forms of `permuted` cost: one token by `gaps`, beside the same product by `columns`.

    python -m tools.bench.forms                       float32 and bfloat16, one thread, in a minute
    python -m tools.bench.forms --isa avx2 --threads 2

A matrix of 768 x 768 that is multiplied again and again lies in the caches; as many of 4096 x 4096 as take 256 MiB
dense come from memory. Numbers are medians: microseconds for a product by `columns`, how many times as long it takes by
`gaps` (with the quartile distance of these ratios), and the bytes of `gaps` for one of `columns`.
"""

from __future__ import annotations

import statistics
from functools import partial
from itertools import product

import click
import ml_dtypes
import numpy as np
from rich.table import Table

import sparsefmt
from sparsefmt.isa import ISA
from tools.bench import harness
from tools.forms import choosing

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
CACHED, LARGE = 768, 4096
LARGE_BYTES = 256 << 20
CALLS = 100
"""Products of the matrix in the caches that are timed as one."""


def matrices(side: int, dtype: np.dtype, zeros: float, count: int) -> dict[str, list[sparsefmt.SparseTensor]]:
    """The same ones in both forms."""
    rng, found = np.random.default_rng(0), {"columns": [], "gaps": []}
    for _ in range(count):
        dense = np.where(rng.random((side, side)) < zeros, 0, rng.standard_normal((side, side))).astype(dtype)
        for form, made in found.items():
            with choosing(form):
                made.append(sparsefmt.SparseTensor.from_dense(dense, "permuted"))
    return found


def seconds(tensors: list[sparsefmt.SparseTensor], x: np.ndarray, calls: int) -> float:
    """Of one product, when each tensor is multiplied `calls` times."""

    def multiply() -> None:
        for _ in range(calls):
            for tensor in tensors:
                sparsefmt.linear(x, tensor)

    return harness.seconds_of(multiply) / (calls * len(tensors))


@click.command(help=__doc__.split("\n")[0])
@click.option("--isa", type=click.Choice(["avx512", "avx2", "portable"]), help="Instructions of kernels and compiler.")
@click.option("--threads", type=click.IntRange(1), default=1)
@click.option("--turns", type=click.IntRange(4), default=25)
@click.option("--side", "sides", type=click.IntRange(1), multiple=True, default=(CACHED, LARGE))
@click.option("--zeros", "shares", type=click.FloatRange(0, 1), multiple=True, default=(0.7, 0.8, 0.9, 0.95))
def main(isa: str | None, threads: int, turns: int, sides: tuple[int, ...], shares: tuple[float, ...]) -> None:
    harness.hold_to(isa)
    sparsefmt.set_num_threads(threads)
    table = Table("matrix", "values", "zeros", "by columns, us", "gaps / columns", "spread, %", "bytes")
    for side, (name, dtype), zeros in product(sides, DTYPES.items(), shares):
        cached = side <= CACHED
        found = matrices(side, dtype, zeros, 1 if cached else max(2, LARGE_BYTES // (side * side * dtype.itemsize)))
        x = np.random.default_rng(1).standard_normal(side).astype(dtype)
        assert np.array_equal(*(forms[0] @ x for forms in found.values()))
        times = harness.in_turns(
            {form: partial(seconds, made, x, CALLS if cached else 1) for form, made in found.items()}, turns, warm_up=1
        )
        ratios = [gaps / columns for gaps, columns in zip(times["gaps"], times["columns"], strict=True)]
        table.add_row(
            f"{side} x {side}, {'in the caches' if cached else 'from memory'}",
            name,
            f"{100 * zeros:g} %",
            f"{1e6 * statistics.median(times['columns']):.1f}",
            f"{statistics.median(ratios):.2f}",
            f"{100 * harness.spread(ratios):.0f}",
            f"{found['gaps'][0].nbytes / found['columns'][0].nbytes:.2f}",
        )
    console = harness.wide_console()
    console.print(f"{harness.processor()}, {ISA}, {threads} thread{'s' * (threads > 1)}")
    console.print(table)


if __name__ == "__main__":
    main()
