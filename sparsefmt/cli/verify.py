"""`sparsefmt verify`: is a file whole, and is it the same model?"""

from __future__ import annotations

import time
from contextlib import ExitStack

import click

from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.verification import Verifier
from sparsefmt.checkpoints.verified_files import Fault, Verification
from sparsefmt.cli import cluster as on_cluster
from sparsefmt.cli import options
from sparsefmt.cli.failures import printable
from sparsefmt.container import budget
from sparsefmt.container.remote_path import Place
from sparsefmt.errors import SparsefmtError


@click.command(
    short_help="Check every byte of a file; compare it with its source.",
    epilog="""\b
Examples:
  sparsefmt verify model.sparsefmt
  sparsefmt verify model.sparsefmt --strict
  sparsefmt verify model.sparsefmt --against model.safetensors
  sparsefmt verify llama-pruned-sparsefmt/ --against llama-pruned/
  sparsefmt verify llama-pruned-sparsefmt/ --against llama-pruned/ --dask tcp://scheduler:8786
  sparsefmt verify s3://bucket/model.sparsefmt --against model.safetensors
""",
)
@click.argument("path", type=options.PATH, metavar="FILE")
@click.option(
    "--against",
    type=options.PATH,
    metavar="MODEL",
    help="Compare names, dtypes, shapes and every bit with this file or folder, safetensors or .sparsefmt.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Also write index and arrays again, in memory, and compare: there is one form for each content.",
)
@options.fold
@on_cluster.option
@options.max_decoded_bytes
@options.threads
@options.quiet
@options.storage
@click.pass_context
def command(
    ctx: click.Context,
    path: Place,
    against: Place | None,
    strict: bool,
    fold: bool,
    cluster: str | None,
    max_decoded_bytes: int | None,
    threads: int,
    quiet: bool,
) -> None:
    """Check every checksum and every array of a .sparsefmt file, or of a folder of them.

    With --against, also compare it with the model it was made from. Where negative zeros were dropped on purpose, -0.0
    there is 0.0 here, and their number must be the one that the file records. Exit code 1 if anything is wrong.
    """
    from sparsefmt.cli import output

    started = time.perf_counter()
    with ExitStack() as stack:
        checkpoint = stack.enter_context(Checkpoint(path, ["sparsefmt"], max_decoded_bytes))
        other = (
            stack.enter_context(Checkpoint(against, ["safetensors", "sparsefmt", "torch"], max_decoded_bytes))
            if against
            else None
        )
        if other and fold:
            other.fold()
        verification = Verification(checkpoint, other)
        with output.progress_bar("verifying", verification.nbytes, quiet) as progress:
            found = on_cluster.verify(cluster, verification, Verifier(strict, progress, threads))
    for fault in found.faults:
        click.echo(f"sparsefmt: error: {printable(_sentence(fault))}", err=True)
    if not quiet:
        tensors, chunks = output.plural(found.tensors, "tensor"), output.plural(found.chunks, "chunk")
        verdict = output.plural(len(found.faults), "fault") if found.faults else "ok"
        elapsed = time.perf_counter() - started
        output.say(
            f"{path}: {verdict}; {tensors} and {chunks} read, {output.size(checkpoint.nbytes)} in {elapsed:.1f} s"
        )
        if other and not found.faults:
            output.say(f"Names, dtypes, shapes and all bits are those of {against}{_but_signs(found.signs)}.")
    if found.faults:
        ctx.exit(1)


def _sentence(fault: Fault) -> str:
    try:
        with budget.calling_it("--max-decoded-bytes"):
            if isinstance(fault, SparsefmtError):
                raise fault
    except SparsefmtError as error:
        return str(error)
    return fault


def _but_signs(signs: int) -> str:
    return f", but for {signs:,} negative zeros that were dropped on purpose" if signs else ""
