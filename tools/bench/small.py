"""Time saving and loading files of many small tensors, beside safetensors.

    python -m tools.bench.small                       10,000 tensors of each kind
    python -m tools.bench.small --tensors 1000
    python -m tools.bench.small --layout bitmask --codec rans

There are four kinds of tensors: a pruned matrix of 8 x 64, the same without zeros, and a vector of 64, as adapters and
mixtures of experts have them by the thousand; and a pruned matrix of 64 x 64, which is large enough for a sparse layout
and a model of its own. Contenders take turns. Milliseconds and bytes are those of one tensor; times are medians, the
ratio is that of medians.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import safetensors.numpy
from rich.progress import track
from rich.table import Table

import sparsefmt
from sparsefmt.codecs import CODECS
from sparsefmt.layouts import LAYOUTS
from tools.bench.harness import in_turns, seconds_of, spread, wide_console

KINDS: dict[str, tuple[tuple[int, ...], float]] = {
    "8 x 64, 80 % zeros": ((8, 64), 0.8),
    "8 x 64, no zeros": ((8, 64), 0.0),
    "64, no zeros": ((64,), 0.0),
    "64 x 64, 80 % zeros": ((64, 64), 0.8),
}


LOAD: dict[str, Callable[[Path], object]] = {
    ".sparsefmt": sparsefmt.load_file,
    ".safetensors": safetensors.numpy.load_file,
}


def content(shape: tuple[int, ...], sparsity: float, tensors: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    names = [f"model.layers.{number // 256}.mlp.experts.{number % 256}.gate_proj.weight" for number in range(tensors)]
    arrays = rng.standard_normal((tensors, *shape), np.float32)
    arrays[rng.random(arrays.shape, np.float32) < sparsity] = 0
    return {name: array.copy() for name, array in zip(names, arrays, strict=True)}


@click.command(epilog="See the head of this file for what is measured.")
@click.option("--tensors", type=click.IntRange(1), default=10_000, show_default=True, help="Of the smaller kinds.")
@click.option("--rounds", type=click.IntRange(3), default=5, show_default=True, help="Measurements of each.")
@click.option("--layout", type=click.Choice(["auto", *LAYOUTS]), default="auto", show_default=True)
@click.option("--codec", type=click.Choice(["auto", *CODECS]), default="auto", show_default=True)
def main(tensors: int, rounds: int, layout: str, codec: str) -> None:
    """Time saving and loading files of many small tensors, beside safetensors."""
    table = Table(title=f"{tensors:,} tensors: ms and bytes of each, and times what safetensors takes")
    for column in ("kind", "file", "save", "ratio", "load", "ratio", "spread", "bytes", "ratio"):
        table.add_column(column, justify="left" if column in ("kind", "file") else "right")
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "a.sparsefmt", Path(folder) / "a.safetensors"
        for kind, (shape, sparsity) in track(KINDS.items(), "measuring", transient=True):
            count = tensors if np.prod(shape) <= 512 else max(tensors // 10, 1)
            arrays = content(shape, sparsity, count)

            def save(path: Path, arrays: dict[str, np.ndarray] = arrays) -> None:
                if path == ours:
                    sparsefmt.save_file(arrays, path, layout=layout, codec=codec)
                else:
                    safetensors.numpy.save_file(arrays, path)

            samples = {}
            for path in (ours, theirs):
                samples[f"save {path.suffix}"] = partial(seconds_of, save, path)
                samples[f"load {path.suffix}"] = partial(seconds_of, LOAD[path.suffix], path)
            taken = in_turns(samples, rounds, warm_up=1)
            middle = {key: statistics.median(times) for key, times in taken.items()}
            for path in (ours, theirs):
                cells = [kind if path == ours else "", path.suffix[1:]]
                for what in ("save", "load"):
                    seconds = middle[f"{what} {path.suffix}"]
                    ratio = seconds / middle[f"{what} {theirs.suffix}"]
                    cells += [f"{seconds / count * 1e3:.3f}", f"{ratio:.1f}"]
                size = path.stat().st_size
                cells += [f"{100 * spread(taken[f'load {path.suffix}']):.0f} %", f"{size / count:,.0f}"]
                table.add_row(*cells, f"{size / theirs.stat().st_size:.2f}")
    wide_console().print(table)


if __name__ == "__main__":
    main()
