"""`sparsefmt diff`: which tensors differ between two models."""

from __future__ import annotations

from pathlib import Path

import click

from sparsefmt.checkpoints import comparison
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.formats import FileFormat
from sparsefmt.cli import options


@click.command(
    short_help="Say which tensors differ between two models.",
    epilog="""\b
Examples:
  sparsefmt diff before.sparsefmt after.sparsefmt
  sparsefmt diff model.safetensors model.sparsefmt
  sparsefmt diff checkpoint-100/ checkpoint-200/
""",
)
@click.argument("a", type=options.PATH)
@click.argument("b", type=options.PATH)
@options.fold
@options.max_decoded_bytes
@options.threads
@options.quiet
@click.pass_context
def command(
    ctx: click.Context, a: Path, b: Path, fold: bool, max_decoded_bytes: int | None, threads: int, quiet: bool
) -> None:
    """Say which tensors differ between A and B: files or folders, safetensors or .sparsefmt.

    Names, dtypes, shapes, metadata and every bit are compared, however they are stored. Exit code 1 if anything
    differs. Of weights that are scaled elements in one and floats in the other, the largest error is said and the mean
    one, that of weights that are not zero.
    """
    from sparsefmt.cli import output

    formats: list[FileFormat] = ["sparsefmt", "safetensors", "torch"]
    with Checkpoint(a, formats, max_decoded_bytes) as ours, Checkpoint(b, formats, max_decoded_bytes) as theirs:
        if fold:
            ours.fold()
            theirs.fold()
        scaled = comparison.scaled_in_one(ours, theirs)
        scales = {scale for scale, _ in scaled.values()}
        differences, comparable = comparison.compare_names(ours, theirs, {*scaled, *scales})
        for name, (scale, is_theirs) in sorted(scaled.items()):
            having, lacking = (theirs, ours) if is_theirs else (ours, theirs)
            floats = lacking.rows_of(name)
            largest, mean = comparison.errors_of_scaled(having, name, scale, floats, threads)
            if largest:
                differences.append(
                    f"tensor {name!r}: {having.rows_of(name).dtype.name} times {scale!r} in {having.path},"
                    f" {floats.dtype.name} in {lacking.path}: errors of {largest:.3g} at most, {mean:.3g} in the mean"
                )
        differences += comparison.compare_metadata(ours, theirs)
        matrices = {name: ours.rows_of(name) for name in sorted(comparable)}
        total = sum(matrix.dense_nbytes for matrix in matrices.values())
        with output.progress_bar("comparing", total, quiet) as progress:
            for name, matrix in matrices.items():
                found = comparison.compare_tensors(matrix, theirs.rows_of(name), progress=progress, threads=threads)
                if found.elements:
                    differences.append(comparison.describe(name, matrix.dtype, matrix.shape, found))
    both = len(comparable) + len(scaled)
    if not quiet:
        for difference in differences:
            output.say(difference)
        output.say(
            f"{output.plural(len(differences), 'difference')} in {output.plural(both, 'tensor')} of both"
            if differences
            else f"equal: {output.plural(both, 'tensor')}"
        )
    if differences:
        ctx.exit(1)
