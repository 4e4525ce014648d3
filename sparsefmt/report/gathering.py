"""Gathers what a page tells of a model: its tensors read, compressed and compared with those of another one."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.formats import FileFormat
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.container.remote_path import Place, is_same
from sparsefmt.dtypes import DTYPES
from sparsefmt.errors import SparsefmtError, in_file
from sparsefmt.grouped_rows import grouped
from sparsefmt.in_words import plural, shape
from sparsefmt.patterns import change_of
from sparsefmt.report.compressed import compressed
from sparsefmt.report.contents import Comparison, Contents, File
from sparsefmt.report.figures import Figures, Looked, look_at
from sparsefmt.report.page import name_in_page
from sparsefmt.report.tensors import Group, Stored, Tensor
from sparsefmt.threads import in_order

FORMATS: list[FileFormat] = ["sparsefmt", "safetensors", "torch"]

KINDS = {"sparsefmt": ".sparsefmt", "safetensors": "safetensors", "torch": "PyTorch"}

Progress = Callable[[int], object]
"""Called with the dense bytes of what is done."""


@contextmanager
def models_for(
    page: Place, places: Sequence[Place], fold: bool, max_decoded_bytes: int | None
) -> Iterator[list[Checkpoint]]:
    """The models that a page is on, open in the block, folded if that is wanted.

    Raises:
        OSError: the page would replace a file of a model.
        as `Checkpoint`.
    """
    with ExitStack() as stack:
        models = [stack.enter_context(Checkpoint(place, FORMATS, max_decoded_bytes)) for place in places]
        for model in models:
            if any(page.exists() and is_same(file.path, page) for file in model.files):
                raise OSError(errno.EINVAL, "the report would replace the model itself", str(page))
            if fold and model.file_format != "sparsefmt":
                model.fold()
        yield models


def expect_new(page: Place, overwrite: bool) -> None:
    """Refuse what exists before anything is read. Raises FileExistsError."""
    if page.exists() and not page.is_dir() and not overwrite:
        raise FileExistsError(errno.EEXIST, "exists already", str(page))


def contents_of(model: Checkpoint, other: Checkpoint | None = None) -> Contents:
    """What is known of a model before its tensors are read: its files, and its tensors in groups of one role. With
    another model, also which of them can be compared."""
    own = [name for name in model.names if not _is_tied(model.holder[name], name)]
    tensors = [tensor_of(model.holder[name], name) for name in own]
    rows = grouped(
        tensors, lambda tensor: (tensor.name, (tensor.dtype, tensor.shape)), lambda tensor: tensor.dense_nbytes
    )
    contents = Contents(
        title=_title(model),
        kind=KINDS[model.file_format],
        is_ours=model.file_format == "sparsefmt",
        files=[File(file.path.name, file.nbytes, list(file.metadata.items())) for file in model.files],
        made_nbytes=0,
        groups=[Group(label, tensors) for label, tensors in rows],
        tied=len(model.names) - len(own),
    )
    if other is not None:
        contents.comparison = _comparison_of(model, other, contents)
    return contents


def _title(model: Checkpoint) -> str:
    return model.path.resolve().name or str(model.path)


def _is_tied(file: TensorFile, name: str) -> bool:
    """Whether it is another tensor of the file by a second name, and not a copy."""
    if isinstance(file, SparsefmtFile):
        index = file.reader.index
        return name in index.aliases and name not in index.copies
    return name in file.aliases


def tensor_of(file: TensorFile, name: str) -> Tensor:
    """A tensor of which nothing has been read."""
    rows = file.rows_of(name)
    return Tensor(
        name,
        DTYPES[rows.dtype.name],
        rows.shape,
        rows.row_dims,
        rows.dense_nbytes,
        rows.rows * rows.cols,
        partial(file.rows_of, name),
    )


def _comparison_of(model: Checkpoint, other: Checkpoint, contents: Contents) -> Comparison:
    """Which tensors another model has, too, and in words which it has not."""
    sentences, compared = [], []
    names = {tensor.name for tensor in contents.tensors}
    for tensor in sorted(contents.tensors, key=lambda tensor: tensor.name):
        if tensor.name not in other.holder:
            sentences.append(f"{name_in_page(tensor.name)} is only here.")
        elif other.rows_of(tensor.name).shape != tensor.shape:
            there = shape(other.rows_of(tensor.name).shape)
            sentences.append(f"{name_in_page(tensor.name)} is {shape(tensor.shape)} here, and {there} there.")
        else:
            compared.append(tensor.name)
    sentences += [
        f"{name_in_page(name)} is only there."
        for name in sorted(other.holder)
        if name not in names and name not in model.holder
    ]
    return Comparison(_title(other), sentences, compared)


def nbytes_of(tensors: Iterable[Tensor]) -> int:
    """Dense bytes of tensors."""
    return sum(tensor.dense_nbytes for tensor in tensors)


def bytes_to_read(contents: Contents) -> int:
    """Dense bytes that `look_at_all` and `add_changes` read."""
    compared = set(contents.comparison.compared) if contents.comparison else set()
    return sum(tensor.dense_nbytes * (tensor.is_readable + (tensor.name in compared)) for tensor in contents.tensors)


def bytes_to_compress(model: Checkpoint, contents: Contents) -> int:
    """Dense bytes that `add_compressed` goes through."""
    return nbytes_of(contents.tensors) if contents.is_ours else model.dense_nbytes


def look_at_all(contents: Contents, threads: int | None, progress: Progress | None) -> None:
    """Read all tensors, group by group, several at a time."""
    for group in contents.groups:
        readable = [tensor for tensor in group.tensors if tensor.is_readable]
        group.figures = look_at_some(readable, group.has_figures, threads, progress)
    add_notes(contents)


def look_at_some(
    tensors: Sequence[Tensor], have_figures: bool, threads: int | None, progress: Progress | None
) -> Figures | None:
    """Read some tensors of a group, several at a time, and add their patterns to them.

    Args:
        tensors: readable ones, in the order of the group.
        have_figures: whether the group has figures.

    Returns:
        the figures of these tensors; None without tensors, too.
    """
    figures = Figures(tensors[0].open_rows()) if tensors and have_figures else None

    def look(tensor: Tensor) -> Looked:
        return look_at(tensor.name, tensor.open_rows(), figures, threads, progress)

    for tensor, looked in zip(tensors, in_order(look, tensors, threads), strict=True):
        tensor.pattern = looked.pattern
        if figures is not None:
            figures.add(looked)
    return figures


def add_notes(contents: Contents) -> None:
    """Add sentences on elements that are no usual numbers, once all patterns are known."""
    for what, attribute in (("-0.0", "negative_zeros"), ("NaN", "nans"), ("infinite", "infinities")):
        found = [(tensor.name, getattr(tensor.pattern, attribute)) for tensor in contents.tensors if tensor.pattern]
        found = [(name, count) for name, count in found if count]
        if found:
            number = sum(count for _, count in found)
            where = name_in_page(found[0][0]) if len(found) == 1 else plural(len(found), "tensor")
            contents.special.append(f"{plural(number, 'element')} of {where} {'is' if number == 1 else 'are'} {what}.")


@dataclass(frozen=True)
class Compressed:
    """What sparsefmt makes of a file.

    Attributes:
        nbytes: of the file it makes.
        stored: what becomes of each tensor, by its name.
        refusal: why it cannot be stored as .sparsefmt; None if it can.
    """

    nbytes: int
    stored: dict[str, Stored]
    refusal: SparsefmtError | None = None


def compress(file: TensorFile, threads: int | None, progress: Progress | None) -> Compressed:
    """Find what sparsefmt makes of a file.

    Raises:
        SparsefmtError: it is a damaged .sparsefmt file, or was replaced meanwhile.
        OSError: it cannot be read.
    """
    try:
        with in_file(file.path):
            return Compressed(*compressed(file, threads, progress))
    except SparsefmtError as error:
        # all tensors that have zeros were read before: it is names, or a type, that the format does not have
        if isinstance(file, SparsefmtFile) or error.code == "file-changed":
            raise
        return Compressed(0, {}, error.with_traceback(None))


def add_compressed(contents: Contents, files: Iterable[Compressed]) -> None:
    """Add what sparsefmt makes of the files of a model, one after the other. No other is asked for after a refusal."""
    by_name = {tensor.name: tensor for tensor in contents.tensors}
    for made in files:
        if made.refusal is not None:
            contents.refused = name_in_page(str(made.refusal))
            return
        contents.made_nbytes += made.nbytes
        for name, stored in made.stored.items():
            if name in by_name:
                by_name[name].stored = stored


def add_changes(other: Checkpoint, contents: Contents, threads: int | None, progress: Progress | None) -> None:
    """Add what has become of each tensor that the other model has, too."""
    assert contents.comparison is not None
    compared = set(contents.comparison.compared)
    for tensor in contents.tensors:
        if tensor.name in compared:
            tensor.change = change_of(
                tensor.open_rows(), other.rows_of(tensor.name), progress=progress, threads=threads
            )
