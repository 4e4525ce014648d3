"""From which size on a SparseLinear is faster than a Linear: what MIN_SIZE of sparsefmt/torch/selection.py stands on.

    python -m tools.bench.small_layers                 float32, 80 %, one thread, in half a minute
    python -m tools.bench.small_layers --dtype bfloat16 --sparsity 0.5 --threads 2

The layers are square, pruned at random, and compressed with `layout="auto"`. Of each size, as many copies as take 32
MiB dense are called in turn, up to 100, since in a model the weights of a layer have left the innermost caches when it
is called again. Numbers are medians: microseconds for a call of a Linear, and how many times faster a SparseLinear is;
under 1 it is slower.
"""

from __future__ import annotations

import statistics
import time

import click
import torch
from rich.table import Table

import sparsefmt
from sparsefmt.torch import SparseLinear
from sparsefmt.torch.selection import MIN_SIZE
from tools.bench.harness import wide_console

SIDES = (64, 128, 192, 256, 320, 384, 448, 512, 768)
BATCHES = (1, 8, 32)
EVICTING_BYTES = 32 << 20
MOST_COPIES = 100


def layers(side: int, dtype: torch.dtype, sparsity: float) -> tuple[list[torch.nn.Module], list[torch.nn.Module]]:
    """Dense layers, and the same ones sparse."""
    dense: list[torch.nn.Module] = []
    for _ in range(max(2, min(MOST_COPIES, EVICTING_BYTES // (side * side * dtype.itemsize)))):
        layer = torch.nn.Linear(side, side, dtype=dtype)
        with torch.no_grad():
            layer.weight[torch.rand(side, side) < sparsity] = 0
        dense.append(layer)
    return dense, [SparseLinear.from_linear(layer) for layer in dense]


def seconds(called: list[torch.nn.Module], x: torch.Tensor) -> float:
    """Of one call."""
    start = time.perf_counter()
    for layer in called:
        layer(x)
    return (time.perf_counter() - start) / len(called)


@click.command(help=__doc__.split("\n")[0])
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32")
@click.option("--sparsity", type=click.FloatRange(0, 1), default=0.8)
@click.option("--threads", type=click.IntRange(1), default=1)
@click.option("--repeats", type=click.IntRange(1), default=11)
@torch.inference_mode()
def main(dtype: str, sparsity: float, threads: int, repeats: int) -> None:
    torch.set_num_threads(threads)
    sparsefmt.set_num_threads(threads)
    table = Table("side", "elements", "by default", "layout", *(f"{batch} tokens" for batch in BATCHES))
    for side in SIDES:
        dense, sparse = layers(side, getattr(torch, dtype), sparsity)
        cells = []
        for batch in BATCHES:
            x = torch.randn(batch, side, dtype=getattr(torch, dtype))
            seconds(dense, x), seconds(sparse, x)
            pairs = [(seconds(dense, x), seconds(sparse, x)) for _ in range(repeats)]
            faster = statistics.median(first / second for first, second in pairs)
            cells.append(f"{1e6 * statistics.median(first for first, _ in pairs):.0f} us, {faster:.2f}x")
        assert isinstance(sparse[0], SparseLinear)
        default = "sparse" if side * side >= MIN_SIZE else "dense"
        table.add_row(str(side), f"{side * side:,}", default, sparse[0].weight.tensor.layout, *cells)
    wide_console().print(table)


if __name__ == "__main__":
    main()
