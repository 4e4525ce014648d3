"""`sparsefmt convert`: safetensors, or checkpoints of PyTorch, to .sparsefmt."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from sparsefmt import signs
from sparsefmt.checkpoints.checkpoint import Checkpoint, FileFormat, saved_weights
from sparsefmt.checkpoints.conversion import (
    ConvertedTensor,
    Settings,
    convert_checkpoint,
    targets_of,
    unlisted_files,
)
from sparsefmt.checkpoints.folding import foldable
from sparsefmt.checkpoints.huggingface import is_weights, read_model_folder
from sparsefmt.cli import Failure, options
from sparsefmt.codecs import CODECS
from sparsefmt.layouts import LAYOUTS

LOOKS_PRUNED = 0.4
"""Share of zeros from which on people expect a matrix to become sparse."""

MOST_NAMED = 3
"""The most tensors that a sentence names. It gives the number of the others."""

MOST_ROWS = 40
"""The most rows of the closing table. If there are more groups, the largest are shown."""


@click.command(
    short_help="Turn safetensors, or .bin, .pt, .pth, into .sparsefmt.",
    context_settings={"show_default": True},
    epilog="""\b
Examples:
  sparsefmt convert model.safetensors
  sparsefmt convert model.safetensors small.sparsefmt --negative-zeros drop
  sparsefmt convert model.safetensors fast.sparsefmt --codec raw
  sparsefmt convert checkpoint.safetensors pruned.sparsefmt --fold --negative-zeros drop
  sparsefmt convert pytorch_model.bin model.sparsefmt
  sparsefmt convert llama-pruned/ llama-pruned-sparsefmt/
""",
)
@click.argument("src", type=options.PATH)
@click.argument("dst", type=options.PATH, required=False)
@click.option("--layout", type=click.Choice(["auto", *LAYOUTS]), default="auto", help="How tensors are laid out.")
@click.option(
    "--codec",
    type=click.Choice(["auto", *CODECS]),
    default="auto",
    help="raw: computed on as it lies in the file, no decoding; auto: the smallest file.",
)
@click.option(
    "--negative-zeros",
    type=click.Choice(["keep", "drop"]),
    default="keep",
    help="Keep the sign of -0.0, or store 0.0 instead and record how many.",
)
@options.fold
@options.threads
@options.force
@options.quiet
def command(
    src: Path,
    dst: Path | None,
    layout: str,
    codec: str,
    negative_zeros: Any,
    fold: bool,
    threads: int,
    force: bool,
    quiet: bool,
) -> None:
    """Convert the safetensors file or checkpoint SRC to DST.

    SRC is a file, a folder, or the index of shards (*.safetensors.index.json). DST is a file or a folder
    accordingly, by default SRC with the suffix .sparsefmt, or SRC-sparsefmt. Memory use does not grow with the model.

    Where torch is installed, SRC may be what torch.save wrote (.bin, .pt, .pth), or a folder of it. Of the checkpoint
    of a training, the weights of the model are taken; no code in it is run, and what was skipped is said.

    A folder with a config.json is a Hugging Face model: its other files are copied, but for hidden ones and weights of
    other formats. config.json gets a quantization_config, so that transformers can load DST after
    `import sparsefmt.transformers`, and README.md says so.

    Nothing takes its place before all of it is written. With --force, weights and indexes of a model that is in the
    folder DST already, dense or not, are removed then; all other files stay.
    """
    from sparsefmt.cli import output

    settings = Settings(layout, codec, negative_zeros, threads)
    started = time.perf_counter()
    with Checkpoint(src, ["safetensors", "torch"]) as source:
        if fold:
            source.fold()
        destination = destination_of(source, dst, "sparsefmt")
        before = saved_weights(destination)
        with output.progress_bar("converting", source.dense_nbytes, quiet) as progress:
            converted = convert_checkpoint(source, destination, settings, overwrite=force, progress=progress)
        elapsed = time.perf_counter() - started
        if not quiet:
            _report(source, destination, converted, elapsed)
            for line in notes_on_folder(source, destination, before, "sparsefmt"):
                output.say(line)


def destination_of(source: Checkpoint, given: Path | None, file_format: FileFormat) -> Path:
    """The destination: the given path, if it makes sense; without one, a path beside the source with another suffix.

    Raises Failure for a name that belongs to something else: a typing error must not cost the source, and a file must
    be what its name says.
    """
    suffix = f".{file_format}"
    if given is None:
        if not source.is_folder:
            return source.path.with_suffix(suffix)
        folder = Path(os.path.abspath(source.folder))
        return folder.with_name(f"{re.sub('-(safetensors|sparsefmt)$', '', folder.name)}-{file_format}")
    if source.is_folder:
        if is_weights(given.name):
            raise Failure(f"{given}: the destination must be a folder, as the source is one", 2)
    elif given.suffix != suffix and not given.is_dir() and not _is_same(given, source.path):
        hint = f"; name it {given.name}{suffix}" if not given.suffix else ""
        raise Failure(f"{given}: the destination must be a {suffix} file, for that is what is written{hint}", 2)
    return given


def _is_same(given: Path, source: Path) -> bool:
    """Whether two paths are one file. If so, writing raises the error."""
    return given.exists() and os.path.samefile(given, source)


@dataclass
class _Group:
    """Tensors of one row of the table."""

    label: str
    tensors: list[ConvertedTensor] = field(default_factory=list)

    @property
    def before(self) -> int:
        return sum(tensor.entry.dense_nbytes for tensor in self.tensors)

    @property
    def after(self) -> int:
        return sum(tensor.stored_nbytes for tensor in self.tensors)

    def cells(self) -> list[str]:
        from sparsefmt.cli import output

        entries = [tensor.entry for tensor in self.tensors]
        # types that cannot be pruned have not been surveyed
        surveyed = [tensor for tensor in self.tensors if tensor.entry.dtype.prunable]
        elements = sum(tensor.entry.elements for tensor in surveyed)
        zeros = elements - sum(tensor.survey.nnz for tensor in surveyed)
        return [
            self.label,
            _common(output.shape(entry.shape) for entry in entries),
            _common(entry.dtype.name for entry in entries),
            _common(entry.layout.name for entry in entries),
            f"{len(entries):,}",
            output.percent(zeros, elements),
            output.size(self.before),
            output.size(self.after),
            output.ratio(self.before, self.after),
        ]


def _common(texts: Any) -> str:
    distinct = set(texts)
    return distinct.pop() if len(distinct) == 1 else "mixed"


def _report(source: Checkpoint, destination: Path, converted: list[ConvertedTensor], elapsed: float) -> None:
    from sparsefmt.cli import output

    table = output.table("tensors", "shape", "dtype", "layout", "n", "zeros", "before", "after", "ratio", left=4)
    for group in _rows(_groups(converted)):
        style = output.WARNING if any(map(_is_dense_all_the_same, group.tensors)) else ""
        output.add_row(table, *group.cells(), style=style)
    table.add_total(*_Group("total", converted).cells())
    output.print_table(table)
    output.say()
    after = sum(path.stat().st_size for path in targets_of(source, destination, "sparsefmt").values())
    output.say(
        f"{source.path} ({output.size(source.nbytes)}) -> {destination} ({output.size(after)}): "
        f"{output.ratio(source.nbytes, after)} smaller, in {elapsed:.1f} s"
    )
    for line in _notes(source, destination, converted):
        output.say(line)


def _is_dense_all_the_same(tensor: ConvertedTensor) -> bool:
    """Whether a tensor is stored dense although it looks pruned."""
    entry = tensor.entry
    if entry.layout.sparse or not entry.dtype.prunable or len(entry.shape) < 2:
        return False
    return tensor.survey.nnz < (1 - LOOKS_PRUNED) * entry.elements


def _groups(converted: list[ConvertedTensor]) -> list[_Group]:
    """Groups of tensors of one dtype and shape whose names differ in numbers only, in the order of the file."""
    from sparsefmt.cli import output

    groups: dict[object, _Group] = {}
    for tensor in converted:
        entry = tensor.entry
        label = output.pattern(tensor.name)
        groups.setdefault((label, entry.dtype, entry.shape), _Group(label)).tensors.append(tensor)
    for group in groups.values():
        if len(group.tensors) == 1:
            group.label = group.tensors[0].name
    return list(groups.values())


def _rows(groups: list[_Group]) -> list[_Group]:
    if len(groups) <= MOST_ROWS:
        return groups
    largest = sorted(groups, key=lambda group: group.before, reverse=True)[: MOST_ROWS - 1]
    others = [group for group in groups if group not in largest]
    rest = _Group(f"{len(others)} smaller groups", [tensor for group in others for tensor in group.tensors])
    return [*(group for group in groups if group in largest), rest]


def _notes(source: Checkpoint, destination: Path, converted: list[ConvertedTensor]) -> list[str]:
    """Sentences on what a user should know and might not expect."""
    from sparsefmt.cli import output

    notes = []
    if dense := [tensor.name for tensor in converted if _is_dense_all_the_same(tensor)]:
        others = f" and {len(dense) - MOST_NAMED:,} more" if len(dense) > MOST_NAMED else ""
        notes.append(
            f"Stored dense, though {LOOKS_PRUNED:.0%} or more of it is zero, since a sparse layout would hardly be "
            f"smaller in memory, or was not asked for: {', '.join(dense[:MOST_NAMED])}{others}"
        )
    sparse = [tensor for tensor in converted if tensor.entry.layout.sparse and not tensor.is_copy]
    kept = sum(tensor.survey.negative_zeros for tensor in sparse if not tensor.entry.negative_zeros_dropped)
    dropped = sum(tensor.entry.negative_zeros_dropped for tensor in converted if not tensor.is_copy)
    cost = sum(tensor.sign_nbytes for tensor in sparse)
    if large := signs.note(cost, sum(tensor.stored_nbytes for tensor in converted), "--negative-zeros drop"):
        notes.append(f"{large}.")
    elif kept:
        notes.append(
            f"{kept:,} of the pruned zeros are -0.0. Their signs are kept and take {output.size(cost)}; "
            "--negative-zeros drop leaves them out."
        )
    if dropped:
        notes.append(f"{dropped:,} zeros were -0.0 and are stored as 0.0; the file records that.")
    for file in source.files:
        notes += file.notes
    if tied := sum(len(file.aliases) for file in source.files):
        notes.append(f"{output.plural(tied, 'name')} of a tensor that has another name, too: stored once.")
    if copies := sum(tensor.is_copy for tensor in converted):
        notes.append(f"{output.plural(copies, 'tensor')} with the same elements as another: stored once.")
    if source.folded:
        notes.append(f"{output.plural(len(source.folded), 'group')} of tensors were stored as one tensor each.")
    elif groups := foldable(source.names):
        first = groups[0]
        notes.append(
            f"{first.name!r} and {output.plural(len(groups) - 1, 'other')} are spelled in several tensors "
            f"({', '.join(first.parts)}): --fold stores each as one, smaller and ready to be multiplied."
        )
    if source.unlisted:
        names = ", ".join(path.name for path in source.unlisted)
        notes.append(f"Not part of the checkpoint, and not converted: {names}")
    return notes + _model_notes(source, destination)


def notes_on_folder(source: Checkpoint, destination: Path, before: list[Path], new: FileFormat) -> list[str]:
    """Sentences on files that were in the folder before. before: files that belonged to a model."""
    notes = []
    if removed := [path.name for path in before if not os.path.lexists(path)]:
        notes.append(f"Removed, of the model that was there: {', '.join(removed)}")
    if source.is_folder and (others := unlisted_files(source, destination, new)):
        notes.append(f"Left alone, and no part of the model: {', '.join(path.name for path in others)}")
    return notes


def _model_notes(source: Checkpoint, destination: Path) -> list[str]:
    """Sentences on the other files of a model: which were copied, and which were not."""
    from sparsefmt.cli import output

    model = read_model_folder(source.path, destination) if source.path.is_dir() else None
    if model is None:
        return []
    converted = {Path(path.name) for path in (*(file.path for file in source.files), *source.unlisted)}
    if source.index is not None:
        converted.add(Path(source.index.path.name))
    others = [str(path) for path in model.left_out if path not in converted]
    notes = [
        f"Copied: config.json, with a quantization_config, and {output.plural(len(model.companions), 'other file')}."
    ]
    if others:
        notes.append(f"Weights of other formats, not copied: {', '.join(others)}")
    return notes
