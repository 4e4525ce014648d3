"""A step of training with the zeros kept: values alone (`TrainableSparseLinear`), or the dense model and its masks.

    python -m tools.bench.training                     a few minutes
    python -m tools.bench.training --tokens 512 --sparsity 0.7 --threads 2

The network has two layers of float32, side x 4 side and back, pruned at random. A step is the forward pass, the
backward pass with the gradient of the input, and AdamW. The dense model has its masks applied behind each step
(`keep_zeros`). Both take turns. Numbers are medians: milliseconds of a dense step, and how many times as fast the other
is, with quartiles.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
from rich.table import Table

import sparsefmt
from sparsefmt.torch import keep_zeros, make_trainable, sparsify
from tools.bench.harness import wide_console


def pruned(side: int, sparsity: float) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(side, 4 * side), torch.nn.ReLU(), torch.nn.Linear(4 * side, side))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[torch.rand(layer.weight.shape) < sparsity] = 0
    return model


def step_of(model: torch.nn.Module, x: torch.Tensor) -> Callable[[], float]:
    """A step of training, which returns its seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    x = x.clone().requires_grad_()

    def step() -> float:
        start = time.perf_counter()
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    return step


def measured(side: int, sparsity: float, tokens: int, repeats: int) -> list[tuple[float, float]]:
    """Seconds of a dense step and of one of values alone, turn by turn."""
    dense, sparse = pruned(side, sparsity), pruned(side, sparsity)
    sparsify(sparse, min_size=0, min_sparsity=0, layout="bitmask")
    assert len(make_trainable(sparse)) == 2
    x = torch.randn(tokens, side)
    with keep_zeros(dense, min_sparsity=0):
        steps = step_of(dense, x), step_of(sparse, x)
        for _ in range(2):
            steps[0](), steps[1]()
        return [(steps[0](), steps[1]()) for _ in range(repeats)]


@click.command(help=__doc__.split("\n")[0])
@click.option("--side", type=click.IntRange(16), default=1024)
@click.option("--tokens", type=click.IntRange(1), multiple=True, default=(32, 128, 512))
@click.option("--sparsity", type=click.FloatRange(0, 1), multiple=True, default=(0.5, 0.6, 0.7, 0.8, 0.9))
@click.option("--threads", type=click.IntRange(1), default=1)
@click.option("--repeats", type=click.IntRange(2), default=9)
def main(side: int, tokens: tuple[int, ...], sparsity: tuple[float, ...], threads: int, repeats: int) -> None:
    torch.set_num_threads(threads)
    sparsefmt.set_num_threads(threads)
    table = Table("zeros", *(f"{count} tokens" for count in tokens))
    for zeros in sparsity:
        cells = []
        for count in tokens:
            pairs = measured(side, zeros, count, repeats)
            ratios = [dense / ours for dense, ours in pairs]
            low, middle, high = statistics.quantiles(ratios, n=4)
            first = 1e3 * statistics.median(dense for dense, _ in pairs)
            cells.append(f"{first:.0f} ms, {middle:.2f}x ({low:.2f} to {high:.2f})")
        table.add_row(f"{zeros:.0%}", *cells)
    wide_console().print(table)


if __name__ == "__main__":
    main()
