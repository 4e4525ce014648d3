"""Compressed convolutions beside torch's dense ones: what the rule of sparsefmt/torch/convolution_kinds.py stands on.

    python -m tools.bench.convolutions                  50 to 95 % zeros, float32, one image, one thread, in two minutes
    python -m tools.bench.convolutions --isa avx2       both held to AVX2
    python -m tools.bench.convolutions --sparsity 0.8 --images 8 --only resnet

The shapes are those of real models: ResNet-50 with images of 224 x 224, MobileNetV2, ConvNeXt, patch embeddings of
ViT, the convolutions of Whisper and wav2vec2. Each is pruned at random, compressed as `sparsify` does it, and verified
against the dense one. Contenders take turns, in seconds of CPU. Numbers are medians: milliseconds of the dense
convolution, and how many times faster the compressed one is; under 1 it is slower. Brackets say that `sparsify` leaves
it dense.
"""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import click
import torch
from rich.table import Table

import sparsefmt
from sparsefmt.torch import SparseConv1d, SparseConv2d
from sparsefmt.torch.convolution_kinds import why_slower
from tools.bench.harness import ONE_THREAD, hold_to, in_turns, processor, wide_console

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


class Shape(NamedTuple):
    """A convolution. `kernel`, `stride`, `padding`: of each dimension; `size`: of the image."""

    model: str
    out_channels: int
    in_channels: int
    kernel: int
    stride: int
    size: tuple[int, ...]
    padding: int = 0

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        stride = "" if self.stride == 1 else f" stride {self.stride}"
        return f"{self.model} {self.in_channels} to {self.out_channels}, {self.kernel}{stride}, {size}"


SHAPES = (
    Shape("resnet", 64, 64, 1, 1, (56, 56)),
    Shape("resnet", 256, 64, 1, 1, (56, 56)),
    Shape("resnet", 64, 256, 1, 1, (56, 56)),
    Shape("resnet", 512, 256, 1, 2, (56, 56)),
    Shape("resnet", 512, 128, 1, 1, (28, 28)),
    Shape("resnet", 1024, 256, 1, 1, (14, 14)),
    Shape("resnet", 512, 2048, 1, 1, (7, 7)),
    Shape("resnet", 64, 3, 7, 2, (224, 224), 3),
    Shape("resnet", 64, 64, 3, 1, (56, 56), 1),
    Shape("resnet", 128, 128, 3, 1, (28, 28), 1),
    Shape("resnet", 128, 128, 3, 2, (56, 56), 1),
    Shape("resnet", 256, 256, 3, 1, (14, 14), 1),
    Shape("resnet", 512, 512, 3, 1, (7, 7), 1),
    Shape("mobilenet", 96, 16, 1, 1, (112, 112)),
    Shape("mobilenet", 24, 144, 1, 1, (56, 56)),
    Shape("mobilenet", 384, 64, 1, 1, (14, 14)),
    Shape("mobilenet", 1280, 320, 1, 1, (7, 7)),
    Shape("convnext", 96, 3, 4, 4, (224, 224)),
    Shape("convnext", 192, 96, 2, 2, (56, 56)),
    Shape("vit", 768, 3, 16, 16, (224, 224)),
    Shape("whisper", 512, 80, 3, 1, (3000,), 1),
    Shape("whisper", 512, 512, 3, 2, (3000,), 1),
    Shape("wav2vec2", 512, 512, 3, 2, (3199,)),
)


def made(shape: Shape, sparsity: float, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A dense convolution, and the same compressed."""
    kind, sparse = (torch.nn.Conv2d, SparseConv2d) if len(shape.size) == 2 else (torch.nn.Conv1d, SparseConv1d)
    sizes = shape.in_channels, shape.out_channels, shape.kernel
    dense = kind(*sizes, stride=shape.stride, padding=shape.padding, dtype=dtype)
    with torch.no_grad():
        dense.weight[torch.rand(dense.weight.shape) < sparsity] = 0
    return dense, sparse.from_convolution(dense)


def cpu_seconds(module: torch.nn.Module, x: torch.Tensor, calls: int) -> float:
    start = time.thread_time()
    for _ in range(calls):
        module(x)
    return (time.thread_time() - start) / calls


def ratio(shape: Shape, sparsity: float, dtype: torch.dtype, images: int, turns: int) -> tuple[float, float]:
    """Seconds of the dense convolution, and how many times faster the compressed one is."""
    torch.manual_seed(0)
    dense, sparse = made(shape, sparsity, dtype)
    x = torch.randn(images, shape.in_channels, *shape.size, dtype=dtype)
    expected = dense(x).float()
    difference = float((sparse(x).float() - expected).abs().max() / expected.std())
    if not difference < (1e-4 if dtype == torch.float32 else 0.1):
        raise click.ClickException(f"{shape}: results differ by {difference:.2g} standard deviations")
    calls = max(1, int(2e-3 / max(cpu_seconds(dense, x, 1), 1e-6)))
    contenders = {
        "dense": lambda: cpu_seconds(dense, x, calls),
        "sparse": lambda: cpu_seconds(sparse, x, calls),
    }
    times = in_turns(contenders, turns, warm_up=2)
    faster = statistics.median(first / second for first, second in zip(times["dense"], times["sparse"], strict=True))
    return statistics.median(times["dense"]), faster


@click.command(help=__doc__.split("\n")[0])
@click.option("--sparsity", type=click.FloatRange(0, 1), multiple=True, default=SPARSITIES, help="May be repeated.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32")
@click.option("--images", type=click.IntRange(1), default=1)
@click.option("--isa", type=click.Choice(["avx2", "portable"]), help="Hold both to lesser instructions.")
@click.option("--only", type=click.Choice(sorted({shape.model for shape in SHAPES})), multiple=True)
@click.option("--turns", type=click.IntRange(3), default=9)
@torch.inference_mode()
def main(
    sparsity: tuple[float, ...], dtype: str, images: int, isa: str | None, only: tuple[str, ...], turns: int
) -> None:
    hold_to(isa, **ONE_THREAD)
    torch.set_num_threads(1)
    sparsefmt.set_num_threads(1)
    table = Table("convolution", "dense", *(f"{share:.0%}" for share in sparsity))
    for shape in SHAPES:
        if only and shape.model not in only:
            continue
        found = [ratio(shape, share, getattr(torch, dtype), images, turns) for share in sparsity]
        weight_shape = (shape.out_channels, shape.in_channels, *([shape.kernel] * len(shape.size)))
        cells = [
            f"{faster:.2f}" if why_slower(weight_shape, share) is None else f"({faster:.2f})"
            for share, (_, faster) in zip(sparsity, found, strict=True)
        ]
        table.add_row(str(shape), f"{1e3 * statistics.median(dense for dense, _ in found):.2f} ms", *cells)
    console = wide_console()
    console.print(f"{processor()}, {isa or 'all instructions'}, one thread, {images} images, {dtype}")
    console.print(table)


if __name__ == "__main__":
    main()
