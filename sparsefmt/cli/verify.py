"""`sparsefmt verify`: is a file whole, and is it the same model?"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import click

from sparsefmt.checkpoints import comparison
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.checkpoints.verification import Verified, Verifier, check_index
from sparsefmt.cli import options
from sparsefmt.cli.failures import printable
from sparsefmt.container import budget
from sparsefmt.container.remote_path import Place
from sparsefmt.errors import SparsefmtError

if TYPE_CHECKING:
    from sparsefmt.adapters import Rows
    from sparsefmt.container.entry import TensorEntry


@click.command(
    short_help="Check every byte of a file; compare it with its source.",
    epilog="""\b
Examples:
  sparsefmt verify model.sparsefmt
  sparsefmt verify model.sparsefmt --strict
  sparsefmt verify model.sparsefmt --against model.safetensors
  sparsefmt verify llama-pruned-sparsefmt/ --against llama-pruned/
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
        if other:
            other.expect()
        faults: list[str] = []
        comparable: set[str] = set()
        if other is not None:
            faults, comparable = comparison.compare_names(checkpoint, other)
        if strict:
            faults += _index_faults(checkpoint)
        reads = _reads(checkpoint, comparable)
        total = sum(read.entry.dense_nbytes * len(read.names) for read in reads)

        def theirs(name: str) -> Rows | None:
            return other.rows_of(name) if other and name in comparable else None

        with output.progress_bar("verifying", total, quiet) as progress:
            verifier = Verifier(strict, progress, threads)
            passes = [(read, name) for read in reads for name in read.names]
            found = _verify(passes, theirs, verifier)
    found.faults[:0] = faults
    for fault in found.faults:
        click.echo(f"sparsefmt: error: {printable(fault)}", err=True)
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


@dataclass
class _Found:
    """The results of verifying.

    Attributes:
        tensors, chunks: how many were read.
        signs: negative zeros of the other model that are 0.0 here, as the file records.
        faults: a sentence for each fault.
    """

    tensors: int = 0
    chunks: int = 0
    signs: int = 0
    faults: list[str] = field(default_factory=list)


class _Read(NamedTuple):
    """A tensor, and the names for each of which it is read once: its first name, and tied names that are compared.

    One pass compares a tensor with one other tensor. Tied names are rare, and each takes a pass.
    """

    file: SparsefmtFile
    entry: TensorEntry
    names: list[str]


def _reads(checkpoint: Checkpoint, comparable: set[str]) -> list[_Read]:
    reads = []
    for file in checkpoint.files:
        if isinstance(file, SparsefmtFile):
            tied = defaultdict(list)
            index = file.reader.index
            for name in index.aliases:
                if name in comparable:
                    tied[index.entry(name).name].append(name)
            entries = file.reader.index.tensors.values()
            reads += [_Read(file, entry, [entry.name, *tied[entry.name]]) for entry in entries]
    return reads


def _verify(passes: Sequence[tuple[_Read, str]], theirs: Callable[[str], Rows | None], verifier: Verifier) -> _Found:
    """Verify tensors, and compare each with that of a name in the other model: `theirs` gives it, or None.

    After a fault of a tensor, nothing more is said of it.
    """
    found, bad = _Found(), set()
    tensors = [Verified(read.file.reader, read.entry, theirs(name)) for read, name in passes]
    for (read, name), tensor, result in zip(passes, tensors, verifier.verify_all(tensors), strict=True):
        entry = read.entry
        if name == entry.name:
            found.tensors += 1
            found.chunks += entry.chunk_count
        if id(entry) in bad:
            continue
        try:
            with budget.calling_it("--max-decoded-bytes"):
                if isinstance(result, SparsefmtError):
                    raise result
        except SparsefmtError as error:
            found.faults.append(f"{read.file.path}: {error}")
            bad.add(id(entry))
            continue
        if result.elements:
            found.faults.append(comparison.describe(name, entry.dtype, entry.shape, result))
        if tensor.against is not None and result.signs != entry.negative_zeros_dropped:
            found.faults.append(
                f"tensor {name!r}: {result.signs:,} negative zeros are 0.0 here, and the file records "
                f"{entry.negative_zeros_dropped:,}"
            )
        found.signs += result.signs
    return found


def _index_faults(checkpoint: Checkpoint) -> list[str]:
    faults = []
    for file in checkpoint.files:
        if isinstance(file, SparsefmtFile):
            try:
                check_index(file.reader)
            except SparsefmtError as error:
                faults.append(f"{file.path}: {error}")
    return faults


def _but_signs(signs: int) -> str:
    return f", but for {signs:,} negative zeros that were dropped on purpose" if signs else ""
