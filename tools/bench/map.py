"""Map where a product with pruned weights is faster than a dense one: shapes, shares of zeros, numbers of tokens.

    python -m tools.bench.map                              float32 and bfloat16 weights, one thread; two minutes
    python -m tools.bench.map --threads 1 --threads 2 --csv map.csv --svg map.svg      all of it, to keep or to send
    python -m tools.bench.map --isa avx2                   everybody held to AVX2, on a processor that has more
    python -m tools.bench.map --layout bitmask --layout permuted --dtype f32 --shape 768x768
    python -m tools.bench.map --from-csv map.csv --svg map.svg

A cell says how many times faster `sparsefmt.linear` is, with what a user gets by default (`--layout auto`), than the
faster of numpy's and PyTorch's dense float32 product, with float32 activations. Under 0.97 it is red: slower than
dense. Matrices of fewer than 100,000 weights stay dense, and may take 4 us longer than numpy takes.

As in a model, a weight was not used a moment ago: of each matrix there are copies of 32 MB in all, at most 64, which
are multiplied in turn. Each has been multiplied once before. Contenders take turns, call by call. With several threads,
numpy comes first, whose threads are then left to fall asleep, and copies have 96 MB. Numbers are ratios of medians.

--isa holds all contenders to the same instructions: each count of threads runs in a process of its own, with an
environment in which numpy (OpenBLAS), PyTorch (MKL, oneDNN, ATen) and sparsefmt take no better ones. Without --isa,
variables that name a processor for OpenBLAS are taken out of it.
"""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import click
import ml_dtypes
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import sparsefmt
from sparsefmt.isa import ISA, ISAS
from sparsefmt.layouts import LAYOUTS
from tools.bench.harness import (
    held_to,
    in_turns,
    parse_shapes,
    processor,
    seconds_of,
    spread,
    usable_cores,
    wide_console,
)
from tools.bench.kernels_timing import settle

SHAPES = (
    "64x64",
    "256x256",
    "384x384",
    "1536x384",
    "384x1536",
    "768x768",
    "3072x768",
    "128x8192",
    "8192x128",
    "1000x2048",
    "2048x2048",
    "11008x4096",
)
SPARSITIES = (0.5, 0.7, 0.8, 0.9)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

EVICTING_BYTES = 32_000_000
MOST_COPIES = 64
MOST_MULTIPLY_ADDS = 3e9
"""Larger products are left out: they take long, and say what those of fewer tokens say."""

SLOWER = 0.97
"""Below this ratio, a product is slower than dense by more than what is measured by mistake."""

SMALL_WEIGHTS = 100_000
SMALL_SECONDS = 4e-6
"""Matrices of fewer weights may take so much longer: they stay dense, and most of their time is that of the call."""

DTYPES = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}

COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "SPARSEFMT_NUM_THREADS")


@dataclass(frozen=True)
class Cell:
    """One product: medians in microseconds, and how many times faster than dense."""

    processor: str
    isa: str
    threads: int
    dtype: str
    rows: int
    cols: int
    sparsity: float
    tokens: int
    wanted: str
    """The layout asked for."""
    layout: str
    """The form of the layout that was taken."""
    dense_us: float
    sparse_us: float
    spread: float
    """Quartile distance over the median, the larger of both."""

    @property
    def ratio(self) -> float:
        return self.dense_us / self.sparse_us

    @property
    def slow(self) -> bool:
        small = self.rows * self.cols < SMALL_WEIGHTS
        return self.ratio < SLOWER and not (small and self.sparse_us - self.dense_us < SMALL_SECONDS * 1e6)


@dataclass(frozen=True)
class Wanted:
    """What is measured, in a process with so many threads."""

    threads: int
    dtypes: tuple[str, ...]
    shapes: tuple[str, ...]
    sparsities: tuple[float, ...]
    tokens: tuple[int, ...]
    layouts: tuple[str, ...]
    turns: int

    def cases(self) -> Iterator[tuple[str, int, int, float]]:
        for dtype in self.dtypes:
            for shape in self.shapes:
                rows, cols = map(int, shape.split("x"))
                for sparsity in self.sparsities:
                    yield dtype, rows, cols, sparsity


class Copies:
    """Equal weights in different places, each called after all others were."""

    def __init__(self, copies: list) -> None:
        self.copies, self.turn = copies, 0

    def next(self):
        self.turn += 1
        return self.copies[self.turn % len(self.copies)]


def measure(wanted: Wanted) -> Iterator[Cell]:
    """All cells, in this process."""
    rng = np.random.default_rng(0)
    for dtype, rows, cols, sparsity in wanted.cases():
        weight = rng.standard_normal((rows, cols)).astype(np.float32)
        weight = np.where(rng.random(weight.shape) < sparsity, np.float32(0), weight)
        nbytes = EVICTING_BYTES if wanted.threads == 1 else 3 * EVICTING_BYTES
        count = max(1, min(MOST_COPIES, nbytes // weight.nbytes))
        dense = Copies([weight.copy() for _ in range(count)])
        tensors = Copies([torch.from_numpy(weight.copy()) for _ in range(count)])
        ours = {
            layout: Copies(
                [sparsefmt.SparseTensor.from_dense(weight.astype(DTYPES[dtype]), layout) for _ in range(count)]
            )
            for layout in wanted.layouts
        }
        for copies in ours.values():
            for w in copies.copies:
                sparsefmt.linear(np.zeros((1, cols), np.float32), w)
        for tokens in wanted.tokens:
            if rows * cols * tokens > MOST_MULTIPLY_ADDS:
                continue
            x = rng.standard_normal((tokens, cols)).astype(np.float32)
            yield from _cells(wanted, (dtype, rows, cols, sparsity), x, Weights(dense, tensors, ours))


class Weights(NamedTuple):
    """The same weights for each contender: for numpy, for PyTorch, and ours by layout asked for."""

    dense: Copies
    tensors: Copies
    ours: dict[str, Copies]


def _cells(wanted: Wanted, case: tuple[str, int, int, float], x: np.ndarray, weights: Weights) -> Iterator[Cell]:
    dtype, rows, cols, sparsity = case
    x_tensor, linear = torch.from_numpy(x), torch.nn.functional.linear
    samples = {
        "numpy": lambda: seconds_of(lambda w: x @ w.T, weights.dense.next()),
        "torch": lambda: seconds_of(linear, x_tensor, weights.tensors.next()),
    }
    for layout, copies in weights.ours.items():
        samples[layout] = lambda copies=copies: seconds_of(sparsefmt.linear, x, copies.next())
    work = rows * cols * len(x)
    turns = max(wanted.turns // 8, 4) if work >= 3e8 else max(wanted.turns // 3, 4) if work >= 3e7 else wanted.turns
    if wanted.threads == 1:
        times = in_turns(samples, turns, warm_up=2)
    else:
        # numpy's threads spin for a while after each product, on cores that the others need; these share theirs
        times = in_turns({"numpy": samples.pop("numpy")}, turns, warm_up=2)
        settle()
        times |= in_turns(samples, turns, warm_up=4)
    medians = {name: float(np.median(found)) * 1e6 for name, found in times.items()}
    best = min("numpy", "torch", key=lambda name: medians[name])
    for layout, copies in weights.ours.items():
        yield Cell(
            processor(), ISA, wanted.threads, dtype, rows, cols, sparsity, len(x), layout,
            _form(copies.copies[0]), medians[best], medians[layout], max(spread(times[best]), spread(times[layout])),
        )  # fmt: skip


def _form(w: sparsefmt.SparseTensor) -> str:
    return w.operand().tiling.layout.form


def measured(wanted: Wanted, isa: str | None, progress: Progress) -> Iterator[Cell]:
    """All cells, in a process of its own with an environment made for it."""
    environment = held_to(isa) | dict.fromkeys(COUNTS, str(wanted.threads))
    command = [sys.executable, "-m", "tools.bench.map", "--child", json.dumps(asdict(wanted))]
    task = progress.add_task(f"{wanted.threads} thread(s)", total=len(list(wanted.cases())) * len(wanted.layouts))
    last = None
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            cell = Cell(**json.loads(line))
            case = cell.dtype, cell.rows, cell.cols, cell.sparsity
            progress.update(task, advance=0 if case == last else len(wanted.layouts))
            last = case
            yield cell
    if child.returncode:
        raise click.ClickException(f"a process that measured ended with {child.returncode}")


# -------------------------------------------------------------------------------------------------------- What is shown


def by_table(cells: Iterable[Cell]) -> dict[tuple[str, str, int, str, str], list[Cell]]:
    """Cells by what a table has in common: processor, instruction set, threads, dtype, layout asked for."""
    tables: dict[tuple[str, str, int, str, str], list[Cell]] = {}
    for cell in cells:
        tables.setdefault((cell.processor, cell.isa, cell.threads, cell.dtype, cell.wanted), []).append(cell)
    return tables


def by_line(cells: list[Cell]) -> dict[tuple[int, int, float, str], dict[int, Cell]]:
    """Cells by matrix, then by tokens."""
    lines: dict[tuple[int, int, float, str], dict[int, Cell]] = {}
    for cell in cells:
        lines.setdefault((cell.rows, cell.cols, cell.sparsity, cell.layout), {})[cell.tokens] = cell
    return lines


def title_of(key: tuple[str, str, int, str, str], cells: list[Cell]) -> str:
    name, isa, threads, dtype, wanted = key
    slow, middle = sum(cell.slow for cell in cells), math.exp(np.mean([math.log(cell.ratio) for cell in cells]))
    counted = f"{slow} of {len(cells)} cells slower than dense; geometric mean {middle:.2f}"
    return f"{dtype}, layout {wanted}, {threads} thread(s), {isa}, {name}: {counted}"


def show(console: Console, cells: list[Cell]) -> None:
    for key, found in by_table(cells).items():
        tokens = sorted({cell.tokens for cell in found})
        table = Table("shape", "zeros", "layout", title=title_of(key, found))
        for number in tokens:
            table.add_column(str(number), justify="right")
        for (rows, cols, sparsity, layout), line in by_line(found).items():
            texts = []
            for number in tokens:
                cell = line.get(number)
                style = "" if cell is None else "bold red" if cell.slow else "green" if cell.ratio > 1.03 else ""
                texts.append("-" if cell is None else f"[{style}]{cell.ratio:.2f}[/]" if style else f"{cell.ratio:.2f}")
            table.add_row(f"{rows}x{cols}", f"{sparsity:.0%}", layout, *texts)
        console.print(table)


def draw(cells: list[Cell], path: Path) -> None:
    """The tables as a picture, from red (slower) over white (1) to blue (eight times faster)."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("map", [(0, "#c0392b"), (0.25, "#ffffff"), (1, "#2e86c1")])
    tables = by_table(cells)
    heights = [len(by_line(found)) for found in tables.values()]
    figure, axes = pyplot.subplots(
        len(tables), figsize=(9, 0.22 * sum(heights) + 0.9 * len(heights)), height_ratios=heights, squeeze=False
    )
    for (key, found), axis in zip(tables.items(), axes[:, 0], strict=True):
        lines, tokens = by_line(found), sorted({cell.tokens for cell in found})
        ratios = np.array([[line[n].ratio if n in line else np.nan for n in tokens] for line in lines.values()])
        axis.imshow(np.log2(ratios), cmap=colours, vmin=-1, vmax=3, aspect="auto")
        for (row, column), ratio in np.ndenumerate(ratios):
            if not np.isnan(ratio):
                weight = "bold" if list(lines.values())[row][tokens[column]].slow else "normal"
                axis.text(column, row, f"{ratio:.2f}", ha="center", va="center", fontsize=7, weight=weight)
        names = [f"{rows}x{cols}  {sparsity:.0%}  {layout}" for rows, cols, sparsity, layout in lines]
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.set_xticks(range(len(tokens)), [f"{number}" for number in tokens], fontsize=7)
        axis.set_xlabel("tokens", fontsize=7)
        axis.set_title(title_of(key, found).replace(": ", ":\n"), fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def write_csv(cells: list[Cell], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Cell)])
        writer.writeheader()
        writer.writerows(asdict(cell) for cell in cells)


def read_csv(path: Path) -> list[Cell]:
    numbers = {"threads": int, "rows": int, "cols": int, "tokens": int}
    numbers |= {"sparsity": float, "dense_us": float, "sparse_us": float, "spread": float}
    with path.open(newline="") as file:
        return [
            Cell(**{name: numbers.get(name, str)(value) for name, value in line.items()})
            for line in csv.DictReader(file)
        ]


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))  # its lines stay lines
@click.option(
    "--isa", type=click.Choice(ISAS), help="Hold everybody to these instructions.  [default: the processor's]"
)
@click.option("--dtype", "dtypes", type=click.Choice(list(DTYPES)), multiple=True, default=tuple(DTYPES))
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1,), show_default=True)
@click.option("--shape", "shapes", multiple=True, default=SHAPES, metavar="ROWSxCOLS", callback=parse_shapes)
@click.option("--sparsity", "sparsities", type=click.FloatRange(0, 1), multiple=True, default=SPARSITIES)
@click.option("--tokens", type=click.IntRange(1), multiple=True, default=TOKENS)
@click.option(
    "--layout", "layouts", type=click.Choice(("auto", *LAYOUTS)), multiple=True, default=("auto",), show_default=True
)
@click.option(
    "--turns", type=click.IntRange(4), default=31, show_default=True, help="Calls of each in a small product."
)
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False, path_type=Path), help="Where to write all numbers.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Where to draw the tables.")
@click.option("--from-csv", type=click.Path(exists=True, path_type=Path), help="Measure nothing, show these.")
@click.option("--child", hidden=True)
def main(
    isa: str | None,
    threads: tuple[int, ...],
    csv_path: Path | None,
    svg: Path | None,
    from_csv: Path | None,
    child: str | None,
    **options,
) -> None:
    if child:
        wanted = json.loads(child)
        torch.set_num_threads(wanted["threads"])
        for cell in measure(Wanted(**wanted)):
            print(json.dumps(asdict(cell)), flush=True)
        return
    console = wide_console()
    if from_csv:
        cells = read_csv(from_csv)
    else:
        if max(threads) > usable_cores():
            raise click.ClickException(f"--threads {max(threads)}: there are {usable_cores()} cores")
        cells = []
        with Progress(console=Console(stderr=True), transient=True) as progress:
            for count in threads:
                cells += measured(Wanted(count, **options), isa, progress)
    show(console, cells)
    if csv_path:
        write_csv(cells, csv_path)
    if svg:
        draw(cells, svg)


if __name__ == "__main__":
    main()
