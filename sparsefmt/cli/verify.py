"""`sparsefmt verify`: is a file whole, and is it the same model?"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparsefmt.cli import options, printable
from sparsefmt.errors import SparsefmtError
from sparsefmt.interchange import compare
from sparsefmt.interchange.checkpoints import Checkpoint
from sparsefmt.interchange.sparse import SparsefmtFile
from sparsefmt.interchange.strict import check_index

if TYPE_CHECKING:
    from sparsefmt.container.entry import TensorEntry
    from sparsefmt.interchange.compare import Progress


@click.command(
    short_help="Check every byte of a file; compare it with its source.",
    epilog="""\b
Examples:
  sparsefmt verify model.sparsefmt
  sparsefmt verify model.sparsefmt --strict
  sparsefmt verify model.sparsefmt --against model.safetensors
  sparsefmt verify llama-pruned-sparsefmt/ --against llama-pruned/
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
@options.threads
@options.quiet
@click.pass_context
def command(
    ctx: click.Context, path: Path, against: Path | None, strict: bool, fold: bool, threads: int, quiet: bool
) -> None:
    """Check every checksum and every array of a .sparsefmt file, or of a folder of them.

    With --against, also compare it with the model it was made from. Where negative zeros were dropped on purpose, -0.0
    there is 0.0 here, and their number must be the one that the file records. Exit code 1 if anything is wrong.
    """
    from sparsefmt.cli import output

    started = time.perf_counter()
    with ExitStack() as stack:
        checkpoint = stack.enter_context(Checkpoint(path, ["sparsefmt"]))
        other = stack.enter_context(Checkpoint(against, ["safetensors", "sparsefmt"])) if against else None
        if other and fold:
            other.fold()
        total = sum(entry.dense_nbytes for _, entry in _tensors(checkpoint))
        with output.progress_bar("verifying", total, quiet) as progress:
            found = _verify(checkpoint, other, strict, threads, progress)
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
    """What verifying has found.

    Attributes:
        tensors, chunks: how many were read.
        signs: negative zeros of the other model that are 0.0 here, as recorded.
        faults: a sentence for each thing that is wrong.
    """

    tensors: int = 0
    chunks: int = 0
    signs: int = 0
    faults: list[str] = field(default_factory=list)


def _tensors(checkpoint: Checkpoint) -> list[tuple[SparsefmtFile, TensorEntry]]:
    return [
        (file, entry)
        for file in checkpoint.files
        if isinstance(file, SparsefmtFile)
        for entry in file.reader.index.tensors.values()
    ]


def _verify(
    checkpoint: Checkpoint, other: Checkpoint | None, strict: bool, threads: int, progress: Progress | None
) -> _Found:
    found = _Found()
    comparable: set[str] = set()
    if other is not None:
        differing, comparable = compare.compare_names(checkpoint, other)
        found.faults += differing
    if strict:
        found.faults += _index_faults(checkpoint)
    tied = _tied_names(checkpoint)
    for file, entry in _tensors(checkpoint):
        names = [entry.name, *tied[file.path, entry.name]]
        # one pass compares a tensor under its first name; a tied name, which is rare, takes another
        againsts = [other.intake(name) if other and name in comparable else None for name in names]
        for number, (name, against) in enumerate(zip(names, againsts, strict=True)):
            if number and against is None:
                continue
            try:
                difference = compare.verify_tensor(
                    file.reader, entry, against, strict=strict, progress=progress, threads=threads
                )
            except SparsefmtError as error:
                found.faults.append(f"{file.path}: {error}")
                break
            if difference.elements:
                found.faults.append(compare.describe(name, entry.dtype, entry.shape, difference))
            if against is not None and difference.signs != entry.negative_zeros_dropped:
                found.faults.append(
                    f"tensor {name!r}: {difference.signs:,} negative zeros are 0.0 here, and the file records "
                    f"{entry.negative_zeros_dropped:,}"
                )
            found.signs += difference.signs
        found.tensors += 1
        found.chunks += entry.chunk_count
    return found


def _tied_names(checkpoint: Checkpoint) -> dict[tuple[Path, str], list[str]]:
    """Further names of each tensor of each file."""
    names = defaultdict(list)
    for file in checkpoint.files:
        if isinstance(file, SparsefmtFile):
            for name, target in file.reader.index.aliases.items():
                names[file.path, target].append(name)
    return names


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
