"""Write a net of many small tensors: MobileNetV2 in float16, with made-up weights, as safetensors.

    python -m tools.small_net net.safetensors
    python -m tools.bench.sizes --all net.safetensors

It has 314 tensors of 3.5 million elements: convolutions, most of them of 1 x 1, and for each of them four vectors and a
counter of batch norm. The weights are independent and from a Laplace distribution, rows scaled by lognormal factors.
Those of convolutions over several channels are pruned by magnitude. Only the shapes are those of a real net; they
follow M. Sandler et al., MobileNetV2, arXiv 1801.04381, table 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import safetensors.numpy

BLOCKS = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]
"""Expansion, channels, and repeats of the bottlenecks."""

FIRST, LAST, CLASSES = 32, 1280, 1001

Convolution = tuple[str, tuple[int, int, int, int]]


def convolutions() -> Iterator[Convolution]:
    """Name and shape (out, in, height, width) of every convolution."""
    yield "stem", (FIRST, 3, 3, 3)
    channels, number = FIRST, 0
    for expansion, out, repeats in BLOCKS:
        for _ in range(repeats):
            inner = channels * expansion
            if expansion > 1:
                yield f"blocks.{number}.expand", (inner, channels, 1, 1)
            yield f"blocks.{number}.depthwise", (inner, 1, 3, 3)
            yield f"blocks.{number}.reduce", (out, inner, 1, 1)
            channels, number = out, number + 1
    yield "head", (LAST, channels, 1, 1)


def tensors(sparsity: float, seed: int) -> dict[str, np.ndarray]:
    """All tensors of the net, by name."""
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        scale = np.exp(rng.normal(0, 0.5, (shape[0],) + (1,) * (len(shape) - 1))) * np.sqrt(2 / np.prod(shape[1:]))
        values = rng.laplace(0, 1, shape) * scale
        if shape[1] > 1:
            values[np.abs(values) < np.quantile(np.abs(values), sparsity)] = 0
        return values.astype(np.float16)

    def vector(size: int, mean: float) -> np.ndarray:
        return rng.normal(mean, 0.3, size).astype(np.float16)

    made = {}
    for name, shape in convolutions():
        made[f"{name}.convolution.weight"] = weight(*shape)
        for part, mean in (("weight", 0.5), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 0.5)):
            made[f"{name}.normalization.{part}"] = vector(shape[0], mean)
        made[f"{name}.normalization.num_batches_tracked"] = np.array(1234, np.int64)
    made["classifier.weight"] = weight(CLASSES, LAST)
    made["classifier.bias"] = vector(CLASSES, 0.0)
    return made


@click.command(help=(__doc__ or "").replace("\n\n    python", "\n\n\b\n    python"))
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--sparsity", type=click.FloatRange(0, 1), default=0.7, show_default=True, help="Of pruned weights.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(path: Path, sparsity: float, seed: int) -> None:
    """Write the net."""
    made = tensors(sparsity, seed)
    safetensors.numpy.save_file(made, path)
    elements = sum(array.size for array in made.values())
    click.echo(f"{path}: {len(made)} tensors, {elements:,} elements, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
