"""`sparsefmt diff`: which tensors differ between two models, and how much."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from sparsefmt.checkpoints import comparison
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.formats import FileFormat
from sparsefmt.cli import options
from sparsefmt.cli.differing import ORDERS, Comparison, matches
from sparsefmt.cli.failures import Failure
from sparsefmt.container.remote_path import Place


@click.command(
    short_help="Say which tensors differ between two models, and how much.",
    epilog="""\b
Examples:
  sparsefmt diff before.sparsefmt after.sparsefmt
  sparsefmt diff checkpoint-100/ checkpoint-200/ --name '*.mlp.*' --sort max
  sparsefmt diff model.safetensors model.sparsefmt --bits
  sparsefmt diff https://host/model.safetensors model.sparsefmt
  sparsefmt diff pruned.safetensors tuned.safetensors --json | jq .total.zeros_lost

\b
What differs, the first that holds:
  only in A, only in B
  shape, dtype
  mask      elements are zero in one and not in the other
  values    the same elements are zero, and others differ
  signs     only signs of zeros or bits of NaNs differ

\b
With --json, one object:
  json_version         1
  a, b                 path, format, nbytes
  differences          how many: tensors that differ, and keys of metadata
  metadata             a sentence for each key that differs
  tensors              sorted by name:
    name
    differs            as above; null if it is the same to the bit
    a, b               dtype and shape, and scale, the name of its scales, if they were multiplied
                       with it; null where it is not
    equal              elements that have the same bits; if dtypes differ, that are the same number
    elements, equal_numbers, largest, mean, not_finite
                       of a - b; not_finite: how many are NaN or infinite, and not counted
    zeros              how many elements of A are zero, and how many of B
    kept, pruned, zeros_lost
                       zero in neither; in B alone; in A alone
    overlap            kept over all that is not zero in both; 1 if all is
  total                the same of all tensors together; tensors of both, and how many differ
""",
)
@click.argument("a", type=options.PATH)
@click.argument("b", type=options.PATH)
@click.option("--bits", is_flag=True, help="Say the first bits that differ of each tensor, and nothing about numbers.")
@click.option("--all", "show_all", is_flag=True, help="A row for each tensor, also for those that are equal.")
@click.option(
    "--name", "globs", multiple=True, metavar="GLOB", help="Only names like this, and no metadata; may be repeated."
)
@click.option(
    "--sort", "order", type=click.Choice(ORDERS), default="name", help="By what rows are sorted, differences first."
)
@options.fold
@click.option("--json", "as_json", is_flag=True, help="Print JSON, described below.")
@options.max_decoded_bytes
@options.threads
@options.quiet
@options.storage
@click.pass_context
def command(
    ctx: click.Context,
    a: Place,
    b: Place,
    bits: bool,
    globs: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **others: Any,
) -> None:
    """Say which tensors differ between A and B, and how much: files or folders of .sparsefmt, safetensors or PyTorch.

    Names, dtypes, shapes, metadata and every bit are compared, however they are stored. Exit code 1 if anything
    differs. Numbers are compared, too: how many are equal, the largest and the mean |a - b|, and the masks, which are
    the elements that are not zero. Weights that are scaled elements in one and floats in the other are multiplied out.
    """
    from sparsefmt.cli import output

    if bits and as_json:
        raise Failure("--bits prints sentences: leave out --json, whose object has bits and numbers", 2)
    formats: list[FileFormat] = ["sparsefmt", "safetensors", "torch"]
    most, threads = others["max_decoded_bytes"], others["threads"]
    with Checkpoint(a, formats, most) as ours, Checkpoint(b, formats, most) as theirs:
        if others["fold"]:
            ours.fold()
            theirs.fold()
        if globs and not any(matches(name, globs) for name in {*ours.holder, *theirs.holder}):
            raise Failure(f"{a}, {b}: no tensor has a name like {' or '.join(globs)}", 2)
        if bits:
            sentences, both = _differences_in_bits(ours, theirs, globs, (threads, quiet))
            differences = len(sentences)
        else:
            compared = Comparison(ours, theirs, globs)
            with output.progress_bar("comparing", compared.nbytes_to_read, quiet or as_json) as progress:
                compared.compare(progress, threads)
            differences, both = compared.differences, compared.in_both
            sentences = compared.metadata
            if as_json:
                click.echo(json.dumps(compared.as_object(), indent=2))
            elif not quiet and (others["show_all"] or compared.differing):
                output.print_table(compared.table(others["show_all"], others["order"]))
                output.say()
                _print_sides(ours, theirs)
                sentences = [*sentences, *compared.notes()]
    if not quiet and not as_json:
        for sentence in sentences:
            output.say(sentence)
        output.say(
            f"{output.plural(differences, 'difference')} in {output.plural(both, 'tensor')} of both"
            if differences
            else f"equal: {output.plural(both, 'tensor')}"
        )
    if differences:
        ctx.exit(1)


def _print_sides(ours: Checkpoint, theirs: Checkpoint) -> None:
    from sparsefmt.cli import output

    for side, checkpoint in (("A", ours), ("B", theirs)):
        output.say(
            f"{side}: {checkpoint.path}: {output.size(checkpoint.nbytes)}, "
            f"{output.plural(len(checkpoint.holder), 'tensor')}"
        )


def _differences_in_bits(
    ours: Checkpoint, theirs: Checkpoint, globs: Sequence[str], how: tuple[int, bool]
) -> tuple[list[str], int]:
    """A sentence for each difference, and how many tensors both have.

    Args:
        how: the number of threads, and whether there is no bar.
    """
    from sparsefmt.cli import output

    threads, quiet = how
    scaled = {name: pair for name, pair in comparison.scaled_in_one(ours, theirs).items() if matches(name, globs)}
    scales = {scale for scale, _ in scaled.values()}
    left_out = {name for name in {*ours.holder, *theirs.holder} if not matches(name, globs)}
    differences, comparable = comparison.compare_names(ours, theirs, {*scaled, *scales, *left_out})
    for name, (scale, is_theirs) in sorted(scaled.items()):
        having, lacking = (theirs, ours) if is_theirs else (ours, theirs)
        floats = lacking.rows_of(name)
        largest, mean = comparison.errors_of_scaled(having, name, scale, floats, threads)
        if largest:
            differences.append(
                f"tensor {name!r}: {having.rows_of(name).dtype.name} times {scale!r} in {having.path},"
                f" {floats.dtype.name} in {lacking.path}: errors of {largest:.3g} at most, {mean:.3g} in the mean"
            )
    if not globs:
        differences += comparison.compare_metadata(ours, theirs)
    matrices = {name: ours.rows_of(name) for name in sorted(comparable)}
    total = sum(matrix.dense_nbytes for matrix in matrices.values())
    with output.progress_bar("comparing", total, quiet) as progress:
        for name, matrix in matrices.items():
            found = comparison.compare_tensors(matrix, theirs.rows_of(name), progress=progress, threads=threads)
            if found.elements:
                differences.append(comparison.describe(name, matrix.dtype, matrix.shape, found))
    return differences, len(comparable) + len(scaled)
