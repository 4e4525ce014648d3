"""Bytes in memory and time of a product for each layout, beside numpy's dense product and scipy's CSR, in one process.

    python tools/bench_layouts.py                          4096 x 4096, float32 and bfloat16, batch 1 and 16
    python tools/bench_layouts.py --rows 384 --cols 1536   another shape
    python tools/bench_layouts.py --model model.safetensors --name encoder.layer.0.output.dense.weight

All contenders take turns, so that a busy machine is busy for all of them; the table gives medians, and ratios to
numpy's dense float32 product of the same run. "spread" is the quartile distance of our time over its median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import ml_dtypes
import numpy as np
import scipy.sparse
from rich.console import Console
from rich.table import Table

from sparsefmt import SparseTensor, linear
from sparsefmt.layouts import LAYOUTS
from sparsefmt.threads import num_threads


def pruned(weight: np.ndarray, sparsity: float) -> np.ndarray:
    """`weight` with its smallest magnitudes set to zero."""
    return np.where(np.abs(weight) > np.quantile(np.abs(weight), sparsity), weight, np.float32(0))


def interleaved(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contender, in turns; a first, untimed turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def contenders(
    dense: np.ndarray, tensors: dict[str, SparseTensor], x: np.ndarray, threads: int | None
) -> dict[str, Callable[[], object]]:
    """The same product in every way."""
    csr = scipy.sparse.csr_array(dense)
    return {
        "numpy": lambda: x @ dense.T,
        "scipy": lambda: csr @ x.T,
        **{layout: lambda w=w: linear(x, w, threads=threads) for layout, w in tensors.items()},
    }


def spread(times: list[float]) -> float:
    """Quartile distance over the median."""
    first, median, third = statistics.quantiles(times, n=4)
    return (third - first) / median


def load_weight(model: str | None, name: str | None, rows: int, cols: int) -> np.ndarray:
    """The matrix to prune: a tensor of a safetensors file, or Gaussian."""
    if model is None:
        return np.random.default_rng(0).standard_normal((rows, cols)).astype(np.float32)
    import safetensors

    with safetensors.safe_open(model, framework="np") as file:
        return file.get_tensor(name).astype(np.float32)


@click.command(help=__doc__)
@click.option("--rows", default=4096, show_default=True)
@click.option("--cols", default=4096, show_default=True)
@click.option("--model", help="A safetensors file to take the matrix from.")
@click.option("--name", help="The tensor of --model.")
@click.option("--batch", default=(1, 16), show_default=True, multiple=True)
@click.option("--sparsity", default=(0.5, 0.6, 0.7, 0.8, 0.9, 0.95), show_default=True, multiple=True)
@click.option("--repeats", default=21, show_default=True)
@click.option("--threads", type=int, help="Default: all usable cores, for us and for numpy.")
def main(
    rows: int,
    cols: int,
    model: str | None,
    name: str | None,
    batch: tuple[int, ...],
    sparsity: tuple[float, ...],
    repeats: int,
    threads: int | None,
) -> None:
    weight = load_weight(model, name, rows, cols)
    rows, cols = weight.shape
    table = Table(
        title=f"{rows} x {cols}, {num_threads(threads)} threads; times faster than numpy's dense float32 product"
    )
    for heading in ("values", "batch", "zeros", "numpy ms", "scipy CSR"):
        table.add_column(heading, justify="right")
    for layout in LAYOUTS:
        table.add_column(f"{layout} speed", justify="right")
        table.add_column("bytes", justify="right")
    table.add_column("spread", justify="right")
    for dtype in (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)):
        for tokens in batch:
            for zeros in sparsity:
                array = pruned(weight, zeros).astype(dtype)
                x = np.random.default_rng(1).standard_normal((tokens, cols)).astype(np.float32)
                tensors = {layout: SparseTensor.from_dense(array, layout) for layout in LAYOUTS}
                times = interleaved(contenders(array.astype(np.float32), tensors, x, threads), repeats)
                numpy_time = statistics.median(times["numpy"])
                cells = [str(dtype), str(tokens), f"{zeros:.0%}", f"{numpy_time * 1e3:.2f}"]
                cells.append(f"{numpy_time / statistics.median(times['scipy']):.2f}")
                for layout, w in tensors.items():
                    cells.append(f"{numpy_time / statistics.median(times[layout]):.2f}")
                    cells.append(f"{w.nbytes / array.nbytes:.2f}")
                cells.append(f"{max(spread(times[layout]) for layout in tensors):.0%}")
                table.add_row(*cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
