"""What `sparsefmt convert` says in the end: a table of the tensors, and what a user should know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsefmt import cost_of_signs
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import ConvertedTensor
from sparsefmt.checkpoints.folding import foldable
from sparsefmt.checkpoints.formats import FileFormat
from sparsefmt.checkpoints.huggingface import read_model_folder
from sparsefmt.checkpoints.target_folder import targets_of, unlisted_files
from sparsefmt.cli import output
from sparsefmt.container.remote_path import Place, is_there
from sparsefmt.grouped_rows import common, grouped
from sparsefmt.quantizing import Loss
from sparsefmt.quantizing.rows import FLOATS

LOOKS_PRUNED = 0.4
"""Share of zeros from which on people expect a matrix to become sparse."""

MOST_NAMED = 3
"""The most tensors that a sentence names. It gives the number of the others."""


@dataclass
class _Group:
    """Tensors of one row of the table."""

    label: str
    tensors: list[ConvertedTensor]

    @property
    def before(self) -> int:
        return sum(tensor.source_nbytes for tensor in self.tensors)

    @property
    def after(self) -> int:
        return sum(tensor.stored_nbytes for tensor in self.tensors)

    @property
    def losses(self) -> list[Loss]:
        return [tensor.loss for tensor in self.tensors if tensor.loss is not None]

    def error_cells(self) -> list[str]:
        """The largest and the mean error; nothing for tensors that have lost nothing."""
        if not self.losses:
            return ["", ""]
        loss = Loss.total(self.losses)
        return [f"{loss.largest_error:.2g}", f"{loss.mean_error:.2g}"]

    def cells(self) -> list[str]:
        entries = [tensor.entry for tensor in self.tensors]
        # types that cannot be pruned have not been surveyed
        surveyed = [tensor for tensor in self.tensors if tensor.entry.dtype.prunable]
        elements = sum(tensor.entry.elements for tensor in surveyed)
        zeros = elements - sum(tensor.survey.nnz for tensor in surveyed)
        return [
            self.label,
            common(output.shape(entry.shape) for entry in entries),
            common(entry.dtype.name for entry in entries),
            common(entry.layout.name for entry in entries),
            f"{len(entries):,}",
            output.percent(zeros, elements),
            output.size(self.before),
            output.size(self.after),
            output.ratio(self.before, self.after),
        ]


def report(source: Checkpoint, destination: Place, converted: list[ConvertedTensor], elapsed: float) -> None:
    """Print the table, and the notes. elapsed: seconds."""
    whole = _Group("total", converted)
    errors = ("largest error", "mean error") if whole.losses else ()
    table = output.table(
        "tensors", "shape", "dtype", "layout", "n", "zeros", "before", "after", "ratio", *errors, left=4
    )
    for label, tensors in grouped(converted, _name_and_kind, lambda tensor: tensor.entry.dense_nbytes):
        group = _Group(label, tensors)
        style = output.WARNING if any(map(_is_dense_all_the_same, group.tensors)) else ""
        output.add_row(table, *group.cells(), *(group.error_cells() if errors else ()), style=style)
    table.add_total(*whole.cells(), *(whole.error_cells() if errors else ()))
    output.print_table(table)
    output.say()
    after = sum(path.stat().st_size for path in targets_of(source, destination, "sparsefmt").values())
    output.say(
        f"{source.path} ({output.size(source.nbytes)}) -> {destination} ({output.size(after)}): "
        f"{output.ratio(source.nbytes, after)} smaller, in {elapsed:.1f} s"
    )
    for line in _notes(source, destination, converted):
        output.say(line)


def _name_and_kind(tensor: ConvertedTensor) -> tuple[str, object]:
    return tensor.name, (tensor.entry.dtype, tensor.entry.shape)


def _is_dense_all_the_same(tensor: ConvertedTensor) -> bool:
    """Whether a tensor is stored dense although it looks pruned."""
    entry = tensor.entry
    if entry.layout.sparse or not entry.dtype.prunable or len(entry.shape) < 2:
        return False
    return tensor.survey.nnz < (1 - LOOKS_PRUNED) * entry.elements


def _is_pruned_float(tensor: ConvertedTensor) -> bool:
    """Whether a matrix looks pruned, and has the floats that it had."""
    entry = tensor.entry
    if tensor.loss is not None or not tensor.source_nbytes or entry.dtype.name not in FLOATS or len(entry.shape) < 2:
        return False
    return tensor.survey.nnz < (1 - LOOKS_PRUNED) * entry.elements


def _notes(source: Checkpoint, destination: Place, converted: list[ConvertedTensor]) -> list[str]:
    """Sentences on what a user should know and might not expect."""
    notes = []
    if source.quantization is not None and not any(tensor.loss for tensor in converted):
        notes.append(
            "Nothing was quantized: no matrix of floats called X.weight has "
            f"{LOOKS_PRUNED:.0%} zeros or more, embeddings aside."
        )
    if losses := [tensor.loss for tensor in converted if tensor.loss is not None]:
        dtype = common(tensor.entry.dtype.name for tensor in converted if tensor.loss is not None)
        loss = Loss.total(losses)
        zeros = f" {loss.became_zero:,} of them became zero." if loss.became_zero else ""
        notes.append(
            f"Quantized to {dtype} and scales: {output.plural(len(losses), 'weight')}, {loss.stored:,} nonzeros. This"
            f" is lossy: errors of {loss.largest_error:.3g} at most and {loss.mean_error:.3g} in the mean.{zeros}"
        )
        left = [tensor.name for tensor in converted if _is_pruned_float(tensor)]
        if left:
            others = f" and {len(left) - MOST_NAMED:,} more" if len(left) > MOST_NAMED else ""
            notes.append(
                f"Pruned, and not quantized, since it is not a weight of a linear layer by its name or shape: "
                f"{', '.join(left[:MOST_NAMED])}{others}"
            )
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
    if large := cost_of_signs.note(cost, sum(tensor.stored_nbytes for tensor in converted), "--negative-zeros drop"):
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
        gain = "with a byte for each element" if first.spelling == "packed" else "smaller"
        notes.append(
            f"{first.name!r} and {output.plural(len(groups) - 1, 'other')} are spelled in several tensors "
            f"({', '.join(first.parts)}): --fold stores each as one, {gain} and ready to be multiplied."
        )
    if source.unlisted:
        names = ", ".join(path.name for path in source.unlisted)
        notes.append(f"Not part of the checkpoint, and not converted: {names}")
    return notes + _model_notes(source, destination)


def notes_on_folder(source: Checkpoint, destination: Place, before: list[Place], new: FileFormat) -> list[str]:
    """Sentences on files that were in the folder before. before: files that belonged to a model."""
    notes = []
    if removed := [path.name for path in before if not is_there(path)]:
        notes.append(f"Removed, of the model that was there: {', '.join(removed)}")
    if source.is_folder and (others := unlisted_files(source, destination, new)):
        notes.append(f"Left alone, and no part of the model: {', '.join(path.name for path in others)}")
    return notes


def _model_notes(source: Checkpoint, destination: Place) -> list[str]:
    """Sentences on the other files of a model: which were copied, and which were not."""
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
