"""Time what a product costs beside its arithmetic: importing, the first call, any call, handing work to a thread.

    python -m tools.bench.overhead --quick                a first look, in less than 20 seconds
    python -m tools.bench.overhead --csv overhead.csv     everything, in three minutes or so
    python -m tools.bench.overhead --only threads --threads 4
    python -m tools.bench.overhead --only import --only first

Torch is a contender if it is installed. All numbers are medians; "spread" is the quartile distance over the median.

Importing and the first product are measured in a fresh process each time, without the start of Python itself. Sources
are compiled to bytecode, and files are in the system's cache, since a first run is not measured. "First product" is the
time that `load_file` of a `raw` file with one matrix of 64 x 64 and one `linear` take together, after the import of
sparsefmt; it imports numba. With a warm cache, numba finds its machine code in a folder that a run before has filled;
with an empty one, it compiles.

A call is one of a thousand in a row, with the 64 x 64 matrix and one token. Contenders take turns.

Threads: products with a `permuted` matrix, 80 % zeros, float32, by one thread and by several, however small. So many
copies of the matrix are multiplied in turn that weights come from memory, or, of small matrices, from a cache that all
cores share. "Multiply-adds" are those of the whole product. Where several threads begin to pay is read off between two
sizes, on a logarithmic scale. Beside it stands from where on they are used: WORTH_A_THREAD, in
sparsefmt/kernels/multiply.py, for each of them. "others" is how many cores other processes took meanwhile; where they
leave fewer than there are threads, the numbers are worth little.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from sparsefmt import SparseTensor, linear, save_file
from sparsefmt.kernels import multiply
from sparsefmt.layouts import LAYOUTS
from tools.bench.harness import Others, in_turns, spread, time_text, usable_cores, wide_console

SIDE = 64
"""Of the matrix that is nearly nothing to multiply by."""

CALLS = 1000

SPARSITY = 0.8

EVICTING_BYTES = 96 << 20
"""Of all copies of a matrix: more than the last level of most caches, so that they come from memory."""

MOST_COPIES = 64

IMPORT = """
import time
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""

FIRST_PRODUCT = """
import sys, time
import numpy, sparsefmt
x = numpy.ones((int(sys.argv[2]), {side}), numpy.float32)
start = time.perf_counter()
sparsefmt.linear(x, sparsefmt.load_file(sys.argv[1])["w"])
print(time.perf_counter() - start)
"""


class Plan(NamedTuple):
    """What is measured.

    Attributes:
        repeats: samples of each number; of those with an empty cache, which take seconds, `slow_repeats`.
        layouts: those whose first product is measured.
        first_batches: tokens of first products.
        sides: of the square matrices that several threads multiply by.
    """

    repeats: int
    slow_repeats: int
    layouts: tuple[str, ...]
    first_batches: tuple[int, ...]
    sides: tuple[int, ...]
    batches: tuple[int, ...] = (1, 32)


FULL = Plan(11, 3, tuple(LAYOUTS), (1, 32), (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096))
QUICK = Plan(5, 2, ("permuted",), (1,), (256, 512, 1024, 2048))

IMPORT_TARGET, WARM_TARGET, EMPTY_TARGET, CALL_TARGET = 0.2, 1.5, 10.0, 8e-6
"""Seconds that are aimed at."""


@dataclass(frozen=True)
class Row:
    """A line of the tables and of the CSV."""

    measured: str
    case: str
    threads: int | None
    multiply_adds: int | None
    median_s: float
    spread: float
    repeats: int
    target_s: float | None = None
    others: float | None = None
    """Cores that other processes took meanwhile, of rows with threads."""


class Shared(NamedTuple):
    """A product that threads share: their number, its multiply-adds, and cores that others took meanwhile."""

    threads: int | None = None
    multiply_adds: int | None = None
    others: float | None = None


ALONE = Shared()


def row(measured: str, case: str, seconds: list[float], target_s: float | None = None, shared: Shared = ALONE) -> Row:
    """A row of at least two samples."""
    threads, multiply_adds, others = shared
    median = statistics.median(seconds)
    return Row(measured, case, threads, multiply_adds, median, spread(seconds), len(seconds), target_s, others)


def pruned(side: int) -> np.ndarray:
    """A Gaussian square, float32, its smallest magnitudes zero."""
    weight = np.random.default_rng(0).standard_normal((side, side), np.float32)
    return np.where(np.abs(weight) > np.quantile(np.abs(weight), SPARSITY), weight, np.float32(0))


def activations(tokens: int, side: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((tokens, side), np.float32)


def in_fresh_process(code: str, path: Path | None = None, tokens: int = 0, cache: Path | None = None) -> float:
    """The seconds that the code prints, given the first two arguments. cache: numba's folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    if cache is not None:
        environment["NUMBA_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-c", code, str(path), str(tokens)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"a process failed:\n{done.stderr}")
    return float(done.stdout)


def import_rows(plan: Plan) -> Iterator[Row]:
    modules = ("numpy", "sparsefmt")
    samples = {module: partial(in_fresh_process, IMPORT.format(module=module)) for module in modules}
    for module, seconds in in_turns(samples, plan.repeats, warm_up=1).items():
        yield row("import", f"import {module}", seconds, IMPORT_TARGET if module == "sparsefmt" else None)


def first_product_rows(plan: Plan) -> Iterator[Row]:
    code = FIRST_PRODUCT.format(side=SIDE)
    with tempfile.TemporaryDirectory(prefix="bench-overhead-") as name:
        folder = Path(name)
        first: dict[str, Callable[[Path], float]] = {}
        for layout in plan.layouts:
            path = folder / f"{layout}.sparsefmt"
            save_file({"w": pruned(SIDE)}, path, layout=layout, codec="raw")
            for tokens in plan.first_batches:
                first[f"{layout}, batch {tokens}"] = partial(in_fresh_process, code, path, tokens)
        empty = {
            case: [sample(folder / f"{case} {number}") for number in range(plan.slow_repeats)]
            for case, sample in first.items()
        }
        # the first of those folders has the code now
        warm = {case: partial(sample, folder / f"{case} 0") for case, sample in first.items()}
        for case, seconds in in_turns(warm, plan.repeats, warm_up=1).items():
            yield row("first product, warm cache", case, seconds, WARM_TARGET)
        for case, seconds in empty.items():
            yield row("first product, empty cache", case, seconds, EMPTY_TARGET)


def seconds_of_a_call(call: Callable[[], object]) -> float:
    return timeit.timeit(call, number=CALLS) / CALLS


def call_rows(plan: Plan) -> Iterator[Row]:
    weight, x = pruned(SIDE), activations(1, SIDE)
    calls: dict[str, Callable[[], object]] = {
        f"linear, {layout}": partial(linear, x, SparseTensor.from_dense(weight, layout)) for layout in LAYOUTS
    }
    calls["numpy, x @ w.T"] = lambda: x @ weight.T
    if importlib.util.find_spec("torch") is not None:
        import torch

        product = torch.nn.functional.linear
        calls["torch.nn.functional.linear"] = partial(product, torch.from_numpy(x), torch.from_numpy(weight))
    samples = {name: partial(seconds_of_a_call, call) for name, call in calls.items()}
    for name, seconds in in_turns(samples, plan.repeats, warm_up=1).items():
        yield row("call", name, seconds, CALL_TARGET if name.startswith("linear") else None)


PARTS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "import": import_rows,
    "first": first_product_rows,
    "call": call_rows,
}
"""All but the threads."""


@contextmanager
def threads_worth_it(multiply_adds: int) -> Iterator[None]:
    """Hand work to another thread from so many multiply-adds on."""
    before = multiply.WORTH_A_THREAD
    multiply.WORTH_A_THREAD = multiply_adds
    try:
        yield
    finally:
        multiply.WORTH_A_THREAD = before


def seconds_of_a_product(x: np.ndarray, copies: list[SparseTensor], threads: int) -> float:
    """The median over the copies, each multiplied once; the first one, once more before, wakes the threads up."""
    with threads_worth_it(1):
        linear(x, copies[0], threads=threads)
        calls = []
        for copy in copies[1:]:
            start = time.perf_counter()
            linear(x, copy, threads=threads)
            calls.append(time.perf_counter() - start)
    return statistics.median(calls)


def thread_rows(plan: Plan, threads: int) -> Iterator[Row]:
    for side in plan.sides:
        weight = pruned(side)
        copies = [SparseTensor.from_dense(weight, "permuted")]
        count = min(MOST_COPIES, EVICTING_BYTES // copies[0].nbytes)
        copies += [SparseTensor.from_dense(weight, "permuted") for _ in range(count)]
        for tokens in plan.batches:
            x = activations(tokens, side)
            samples = {str(number): partial(seconds_of_a_product, x, copies, number) for number in (1, threads)}
            others, found = Others(), in_turns(samples, plan.repeats, warm_up=1)
            meanwhile = others.cores()
            for number, seconds in found.items():
                case, work = f"{side} x {side}, batch {tokens}", copies[0].nnz * tokens
                yield row("threads", case, seconds, shared=Shared(int(number), work, meanwhile))


def pays_from(sizes: list[int], gains: list[float]) -> float | None:
    """The size from which on gains stay above 1; None if the last one is not.

    sizes: ascending. Between two of them, logarithms are taken to be on a line. 0 if every gain is above 1.
    """
    if gains[-1] <= 1:
        return None
    below = max((number for number, gain in enumerate(gains) if gain <= 1), default=None)
    if below is None:
        return 0.0
    low, high = math.log(gains[below]), math.log(gains[below + 1])
    part = -low / (high - low)
    return sizes[below] * (sizes[below + 1] / sizes[below]) ** part


def print_table(console: Console, rows: list[Row]) -> None:
    """All but the threads."""
    table = Table(box=box.SIMPLE_HEAD, title="fresh processes, and calls with next to nothing to do")
    table.add_column("measured")
    table.add_column("case")
    for heading in ("median", "spread", "repeats", "aim"):
        table.add_column(heading, justify="right")
    measured = None
    for found in rows:
        if measured not in (None, found.measured):
            table.add_section()
        measured = found.measured
        aim = "" if found.target_s is None else f"< {time_text(found.target_s)}"
        cells = (time_text(found.median_s), f"{found.spread:.0%}", str(found.repeats), aim)
        table.add_row(found.measured, found.case, *cells)
    console.print(table)


def print_threads(console: Console, rows: list[Row], plan: Plan, threads: int) -> None:
    """One thread beside several, and from where on these pay."""
    table = Table(box=box.SIMPLE_HEAD, title=f"linear with permuted, {SPARSITY:.0%} zeros: 1 thread and {threads}")
    table.add_column("case")
    for heading in ("multiply-adds", "1 thread", "spread", f"{threads} threads", "spread", "times faster", "others"):
        table.add_column(heading, justify="right")
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    for one, several in pairs:
        table.add_row(
            one.case,
            f"{one.multiply_adds:,}",
            time_text(one.median_s),
            f"{one.spread:.0%}",
            time_text(several.median_s),
            f"{several.spread:.0%}",
            f"{one.median_s / several.median_s:.2f}",
            "" if one.others is None else f"{one.others:.2f}",
        )
    console.print(table)
    for number, tokens in enumerate(plan.batches):
        of_batch = pairs[number :: len(plan.batches)]
        sizes = [one.multiply_adds or 0 for one, _ in of_batch]
        like_one = (multiply.TOKENS_LIKE_ONE + tokens) / (multiply.TOKENS_LIKE_ONE + 1)
        used_from = round(multiply.WORTH_A_THREAD * threads * tokens / like_one)
        size = pays_from(sizes, [one.median_s / several.median_s for one, several in of_batch])
        if size is None:
            found = f"do not pay with {sizes[-1]:,} multiply-adds"
        elif size == 0:
            found = f"pay with {sizes[0]:,} multiply-adds already"
        else:
            found = f"pay from about {float(f'{size:.2g}'):,.0f} multiply-adds on"
        console.print(f"batch {tokens}: {threads} threads {found}; they are used from {used_from:,} on")
    console.print(f"(WORTH_A_THREAD = {multiply.WORTH_A_THREAD:,} for each)")
    crowded = sum(one.others is not None and one.others > usable_cores() - threads + 0.2 for one, _ in pairs)
    if crowded:
        console.print(f"in {crowded} of {len(pairs)} cases, others took cores that were needed: measure these again")


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(map(asdict, rows))


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))  # its lines stay lines
@click.option("--threads", type=click.IntRange(2), default=2, show_default=True, help="Compared with one thread.")
@click.option("--repeats", type=click.IntRange(2), help=f"Samples of each number.  [default: {FULL.repeats}]")
@click.option("--only", multiple=True, type=click.Choice([*PARTS, "threads"]), help="Measure this.  [default: all]")
@click.option("--quick", is_flag=True, help="Other defaults: fewer cases and samples.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write every number to this file.")
def main(threads: int, repeats: int | None, only: tuple[str, ...], quick: bool, csv_path: Path | None) -> None:
    plan = QUICK if quick else FULL
    if repeats is not None:
        plan = plan._replace(repeats=repeats, slow_repeats=min(repeats, plan.slow_repeats))
    console, of_threads = wide_console(), []
    rows = [found for part, measure in PARTS.items() if not only or part in only for found in measure(plan)]
    if rows:
        print_table(console, rows)
    if not only or "threads" in only:
        of_threads = list(thread_rows(plan, threads))
        print_threads(console, of_threads, plan, threads)
    if csv_path is not None:
        write_csv(csv_path, [*rows, *of_threads])


if __name__ == "__main__":
    main()
