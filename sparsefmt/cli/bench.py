"""`sparsefmt bench`: how fast the tensors of a file are multiplied, next to dense ones."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.cli import options
from sparsefmt.cli.benchmark.groups import find_groups
from sparsefmt.cli.benchmark.libraries import dense_libraries
from sparsefmt.cli.benchmark.measuring import LEAST_REPEATS, Results, measure
from sparsefmt.cli.failures import printable
from sparsefmt.container.remote_path import Place
from sparsefmt.layouts import LAYOUTS
from sparsefmt.threads import ENVIRONMENT_VARIABLE

if TYPE_CHECKING:
    from sparsefmt.sparse_file import SparseFile


@click.command(
    short_help="Time the products of a file's tensors, next to dense ones.",
    epilog="""\b
Examples:
  sparsefmt bench model.sparsefmt
  sparsefmt bench model.sparsefmt --batch 1 --batch 128 --threads 1
  sparsefmt bench s3://bucket/model.sparsefmt --batch 1
  sparsefmt bench model.sparsefmt --layout bitmask --name 'layers.*.mlp.*'
  sparsefmt bench llama-pruned-sparsefmt/ --json | jq '.total.products[].speed'

\b
With --json, one object, times in seconds:
  json_version         1
  path, threads        what was measured, with how many threads
  libraries            version of each that makes dense products
  left_out             tensors stored dense, which are not measured
  groups               one object for tensors that are alike, of which one was measured:
    shape, dtype, layout, zeros (in percent)
    count, tensors     how many, and their names
    nbytes, dense_nbytes   of one, in memory
    not_finite         whether some outputs are Inf or NaN, which were not compared
    products           one object for each batch size:
      batch, repeats
      seconds, spread  median, and quartile distance over median
      dense_seconds    median of the fastest dense product
      speed            dense_seconds / seconds
      dense            all of them, the fastest first: library, threads (null: its own number),
                       seconds, spread
      bfloat16         the same of dense products that round to bfloat16: torch's, or none
  total                groups times count: tensors, nbytes, dense_nbytes, products (batch, seconds,
                       dense_seconds, speed, bfloat16_seconds)
  faults               a sentence for each product that was wrong
""",
)
@click.argument("path", type=options.PATH, metavar="FILE")
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 32),
    metavar="N",
    help="Rows of activations; may be given several times.  [default: 1 and 32]",
)
@options.max_decoded_bytes
@options.threads
@click.option(
    "--layout",
    type=click.Choice(["auto", *(name for name in LAYOUTS if name != "dense")]),
    default="auto",
    show_default=True,
    help="The layout to multiply in, as in load_file.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=LEAST_REPEATS),
    default=21,
    show_default=True,
    metavar="N",
    help=f"Times that each product is timed; fewer, but at least {LEAST_REPEATS}, where that takes long.",
)
@click.option(
    "--name",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Only tensors of such a name, * standing for anything; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, described below.")
@options.storage
@click.pass_context
def command(
    ctx: click.Context,
    path: Place,
    batches: tuple[int, ...],
    max_decoded_bytes: int | None,
    threads: int,
    layout: str,
    repeats: int,
    patterns: tuple[str, ...],
    as_json: bool,
) -> None:
    """Time `sparsefmt.linear` on the tensors of a .sparsefmt file, or of a folder of them, next to dense products.

    Dense are the same weights in float32, multiplied by numpy, and by torch if it is installed, on as many threads and
    on one; the fastest counts. All take turns, compiling is not timed, and the outputs are compared: exit code 1 if
    they differ. Tensors alike in shape, dtype, layout and percent of zeros are measured once and counted as often as
    they occur; tied ones count once. Tensors that are stored dense are left out. Needs the memory of the largest
    tensor, dense in float32.
    """
    from sparsefmt import open_file
    from sparsefmt.cli import output
    from sparsefmt.cli.benchmark import reporting

    given = ctx.get_parameter_source("threads") == ParameterSource.COMMANDLINE or ENVIRONMENT_VARIABLE in os.environ
    with ExitStack() as stack:
        checkpoint = stack.enter_context(Checkpoint(path, ["sparsefmt"], max_decoded_bytes))

        def open_again(part: Place) -> SparseFile:
            return stack.enter_context(open_file(part, threads=threads, max_decoded_bytes=max_decoded_bytes))

        groups, left_out = find_groups(checkpoint, patterns, layout, open_again)
        results = Results(path, threads, given, left_out, groups)
        if groups:
            results.libraries = stack.enter_context(dense_libraries(threads))
        total = sum(group.dense_nbytes for group in groups)
        with output.progress_bar("measuring", total, quiet=False, compiling_is_news=not as_json) as progress:
            for group in groups:
                measure(group, list(dict.fromkeys(batches)), results.libraries, threads, repeats)
                if progress:
                    progress(group.dense_nbytes)
    if as_json:
        click.echo(json.dumps(reporting.as_object(results), indent=2))
    elif groups:
        reporting.print_tables(groups)
        for line in reporting.notes(results):
            output.say(line)
    if not as_json:
        for line in reporting.notes_on_left_out(results):
            output.say(line)
    for fault in results.faults:
        click.echo(f"sparsefmt: error: {printable(fault)}", err=True)
    if results.faults:
        ctx.exit(1)
