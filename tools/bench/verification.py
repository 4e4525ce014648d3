"""Time loading with and without verification: what checksums and the checks of layouts cost.

    python -m tools.bench.verification                       pruned matrices, each layout and codec
    python -m tools.bench.verification --rounds 21 --threads 2
    python -m tools.bench.verification --model pruned.sparsefmt

The library has no switch that turns verification off: here it is taken out by force. Both ways load the same file in
turn, from the system's cache. "Load" is `load_file`; "and multiply" is that and one product with one token for each
matrix. Loading a `raw` file is mapping it, and verifying is the first time that its bytes are looked at: without it,
the product pays for that.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import click
import ml_dtypes
import numpy as np
from rich.table import Table

import sparsefmt
from sparsefmt import layouts
from sparsefmt.codecs import CODECS
from sparsefmt.container import array_reader, envelope, reader
from sparsefmt.layouts.tile import Tile
from tools.bench.harness import wide_console

SIDE, COUNT, SPARSITY = 2048, 6, 0.8


class _Equal:
    """Is never unequal."""

    def __ne__(self, other: object) -> bool:
        return False


def _equal(*parts: object) -> _Equal:
    return _Equal()


def _nothing(*arguments: object) -> None:
    pass


@contextmanager
def unverified() -> Iterator[None]:
    """Loading without checksums, checks of padding and checks of layouts."""
    with (
        mock.patch.object(envelope, "checksum", _equal),
        mock.patch.object(envelope.Trailer, "check_index", _nothing),
        mock.patch.object(array_reader, "expect_zeros", _nothing),
        mock.patch.object(reader, "expect_zeros", _nothing),
        mock.patch.object(Tile, "check", _nothing),
    ):
        yield


def matrices() -> dict[str, np.ndarray]:
    """Pruned matrices of bfloat16."""
    made = {}
    for number in range(COUNT):
        weights = np.random.default_rng(number).standard_normal((SIDE, SIDE), np.float32)
        weights[np.abs(weights) < np.quantile(np.abs(weights), SPARSITY)] = 0
        made[f"layers.{number}.weight"] = weights.astype(ml_dtypes.bfloat16)
    return made


def cases(folder: Path) -> Iterator[tuple[str, Path]]:
    """A file of each layout and codec, one at a time."""
    weights = matrices()
    for layout in layouts.LAYOUTS:
        for codec in CODECS:
            sparsefmt.save_file(weights, folder / "a.sparsefmt", layout=layout, codec=codec)
            yield f"{layout}, {codec}", folder / "a.sparsefmt"


def load(path: Path, threads: int) -> dict[str, object]:
    return sparsefmt.load_file(path, threads=threads)


def load_and_multiply(path: Path, threads: int) -> None:
    for tensor in load(path, threads).values():
        if isinstance(tensor, sparsefmt.SparseTensor) and len(tensor.shape) == 2:
            sparsefmt.linear(np.ones((1, tensor.shape[1]), np.float32), tensor, threads=threads)


def ratio(work: Callable[[Path, int], object], path: Path, threads: int, rounds: int) -> tuple[float, float, float]:
    """Median milliseconds without and with verification, and the median of the ratios of the two."""
    without, verified = [], []
    for number in range(rounds + 2):
        started = time.perf_counter()
        with unverified():
            work(path, threads)
        between = time.perf_counter()
        work(path, threads)
        if number >= 2:
            without.append(between - started)
            verified.append(time.perf_counter() - between)
    ratios = [b / a for a, b in zip(without, verified, strict=True)]
    return 1e3 * statistics.median(without), 1e3 * statistics.median(verified), statistics.median(ratios)


@click.command(epilog="See the head of this file for what is measured.")
@click.option("--model", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A .sparsefmt file.")
@click.option("--rounds", type=click.IntRange(3), default=11, show_default=True, help="Measurements of each.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(model: Path | None, rounds: int, threads: int) -> None:
    """Time loading with and without verification."""
    table = Table(title=f"Verification, {threads} thread(s): milliseconds without it, with it, median of ratios")
    for column in ("file", "MB", "load", "", "", "and multiply", "", ""):
        table.add_column(column, justify="right" if column != "file" else "left")
    with tempfile.TemporaryDirectory() as folder:
        for name, path in [(model.name, model)] if model else cases(Path(folder)):
            row = [name, f"{path.stat().st_size / 1e6:.1f}"]
            for work in (load, load_and_multiply):
                without, verified, times = ratio(work, path, threads, rounds)
                row += [f"{without:.1f}", f"{verified:.1f}", f"{times:.2f}"]
            table.add_row(*row)
    wide_console().print(table)


if __name__ == "__main__":
    main()
