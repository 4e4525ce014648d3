"""Time opening files of many small tensors, beside safetensors.

    python -m tools.bench.open                    100,000 tensors
    python -m tools.bench.open --tensors 10000

Every file has that many tensors of 16 x 32 float32 with a few values each. Opening checks the whole index, of which
sparse layouts have three to five chunks to a tensor; safetensors reads and checks a JSON header with one range each.
Contenders take turns; seconds are medians.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import safetensors
import safetensors.numpy
from rich.table import Table

import sparsefmt
from sparsefmt.layouts import LAYOUTS
from tools.bench.harness import in_turns, seconds_of, wide_console


def open_sparsefmt(path: Path) -> None:
    sparsefmt.open_file(path).close()


def open_safetensors(path: Path) -> None:
    with safetensors.safe_open(path, "np") as file:
        file.keys()


@click.command(epilog="See the head of this file for what is measured.")
@click.option("--tensors", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--rounds", type=click.IntRange(3), default=7, show_default=True, help="Measurements of each.")
def main(tensors: int, rounds: int) -> None:
    """Time opening files of many small tensors, beside safetensors."""
    weights = np.zeros((16, 32), np.float32)
    weights[::3, ::5] = 1.5
    # all different: equal tensors are stored once
    content = {f"model.layers.{number}.self_attn.q_proj.weight": weights * (1 + number) for number in range(tensors)}
    table = Table(title=f"Opening a file of {tensors:,} tensors")
    for column in ("file", "MB", "seconds", "spread"):
        table.add_column(column, justify="left" if column == "file" else "right")
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, tuple[Callable[[Path], None], Path]] = {}
        for layout in LAYOUTS:
            path = Path(folder) / f"{layout}.sparsefmt"
            sparsefmt.save_file(content, path, layout=layout, codec="raw")
            files[f"sparsefmt, {layout}"] = open_sparsefmt, path
        files["safetensors"] = open_safetensors, Path(folder) / "a.safetensors"
        safetensors.numpy.save_file(content, files["safetensors"][1])
        samples = {name: partial(seconds_of, work, path) for name, (work, path) in files.items()}
        for name, times in in_turns(samples, rounds).items():
            low, middle, high = statistics.quantiles(times, n=4)
            size = files[name][1].stat().st_size / 1e6
            table.add_row(name, f"{size:.1f}", f"{middle:.2f}", f"{100 * (high - low) / middle:.0f} %")
    wide_console().print(table)


if __name__ == "__main__":
    main()
