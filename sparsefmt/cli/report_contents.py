"""What `sparsefmt report` puts on its page: tensors read, compressed, compared and multiplied."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.dtypes import DTYPES

if TYPE_CHECKING:
    from sparsefmt import SparseTensor
    from sparsefmt.cli.listing import Listed
    from sparsefmt.report.contents import Comparison, Contents
    from sparsefmt.report.tensors import Tensor

KINDS = {"sparsefmt": ".sparsefmt", "safetensors": "safetensors", "torch": "PyTorch"}

Progress = Callable[[int], object]


def contents_of(model: Checkpoint) -> Contents:
    """What is known of a model before its tensors are read: its files, and its tensors in groups of one role."""
    from sparsefmt.cli.grouped_rows import grouped
    from sparsefmt.cli.listing import Listing
    from sparsefmt.report.contents import Contents, File
    from sparsefmt.report.tensors import Group

    listing = Listing(model)
    own = [listed for listed in listing.tensors if not listed.same_as or listed.is_copy]
    tensors = [_tensor_of(listed) for listed in own]
    rows = grouped(
        tensors, lambda tensor: (tensor.name, (tensor.dtype, tensor.shape)), lambda tensor: tensor.dense_nbytes
    )
    name = model.path.resolve().name or str(model.path)
    return Contents(
        title=name,
        kind=KINDS[model.file_format],
        is_ours=model.file_format == "sparsefmt",
        files=[File(file.path.name, file.nbytes, list(file.metadata.items())) for file in model.files],
        made_nbytes=0,
        groups=[Group(label, tensors) for label, tensors in rows],
        tied=len(listing.tensors) - len(own),
    )


def _tensor_of(listed: Listed) -> Tensor:
    from sparsefmt.report.tensors import Tensor

    rows = listed.file.rows_of(listed.name)
    return Tensor(
        listed.name,
        DTYPES[rows.dtype.name],
        rows.shape,
        rows.row_dims,
        rows.dense_nbytes,
        rows.rows * rows.cols,
        partial(listed.file.rows_of, listed.name),
    )


def nbytes_of(tensors: list[Tensor]) -> int:
    """Dense bytes of tensors."""
    return sum(tensor.dense_nbytes for tensor in tensors)


def bytes_to_read(contents: Contents) -> int:
    """Dense bytes that `look_at_all` and `add_changes` read."""
    compared = set(contents.comparison.compared) if contents.comparison else set()
    return sum(tensor.dense_nbytes * (tensor.is_readable + (tensor.name in compared)) for tensor in contents.tensors)


def look_at_all(contents: Contents, threads: int, progress: Progress | None) -> None:
    """Read all tensors, group by group, several at a time."""
    from sparsefmt.report.figures import Figures, Looked, look_at
    from sparsefmt.threads import in_order

    for group in contents.groups:
        readable = [tensor for tensor in group.tensors if tensor.is_readable]
        is_drawn = group.is_alike and len(group.tensors[0].shape) > 1 and group.elements > 0
        figures = Figures(readable[0].open_rows()) if readable and is_drawn else None

        def look(tensor: Tensor, figures: Figures | None = figures) -> Looked:
            return look_at(tensor.name, tensor.open_rows(), figures, threads, progress)

        for tensor, looked in zip(readable, in_order(look, readable, threads), strict=True):
            tensor.pattern = looked.pattern
            if figures is not None:
                figures.add(looked)
        group.figures = figures
    contents.special = [note for note in _notes(contents.tensors)]


def _notes(tensors: list[Tensor]) -> list[str]:
    from sparsefmt.cli import output
    from sparsefmt.report.page import name_in_page

    notes = []
    for what, attribute in (("-0.0", "negative_zeros"), ("NaN", "nans"), ("infinite", "infinities")):
        found = [(tensor.name, getattr(tensor.pattern, attribute)) for tensor in tensors if tensor.pattern]
        found = [(name, count) for name, count in found if count]
        if found:
            number = sum(count for _, count in found)
            where = name_in_page(found[0][0]) if len(found) == 1 else output.plural(len(found), "tensor")
            notes.append(f"{output.plural(number, 'element')} of {where} {'is' if number == 1 else 'are'} {what}.")
    return notes


def add_compressed(model: Checkpoint, contents: Contents, threads: int, progress: Progress | None) -> None:
    """Add what sparsefmt makes of each tensor."""
    from sparsefmt.errors import SparsefmtError, in_file
    from sparsefmt.report.compressed import compressed
    from sparsefmt.report.page import name_in_page

    for file in model.files:
        try:
            with in_file(file.path):
                nbytes, stored = compressed(file, threads, progress)
        except SparsefmtError as error:
            # all tensors that have zeros were read before: it is names, or a type, that the format does not have
            if contents.is_ours:
                raise
            contents.refused = name_in_page(str(error))
            return
        contents.made_nbytes += nbytes
        for tensor in contents.tensors:
            tensor.stored = stored.get(tensor.name, tensor.stored)


def comparison_of(model: Checkpoint, other: Checkpoint, contents: Contents) -> Comparison:
    """Which tensors another model has, too, and in words which it has not."""
    from sparsefmt.cli import output
    from sparsefmt.report.contents import Comparison
    from sparsefmt.report.page import name_in_page

    sentences, compared = [], []
    names = {tensor.name for tensor in contents.tensors}
    for tensor in sorted(contents.tensors, key=lambda tensor: tensor.name):
        if tensor.name not in other.holder:
            sentences.append(f"{name_in_page(tensor.name)} is only here.")
        elif other.rows_of(tensor.name).shape != tensor.shape:
            there = output.shape(other.rows_of(tensor.name).shape)
            sentences.append(f"{name_in_page(tensor.name)} is {output.shape(tensor.shape)} here, and {there} there.")
        else:
            compared.append(tensor.name)
    sentences += [
        f"{name_in_page(name)} is only there."
        for name in sorted(other.holder)
        if name not in names and name not in model.holder
    ]
    return Comparison(other.path.resolve().name or str(other.path), sentences, compared)


def add_changes(other: Checkpoint, contents: Contents, threads: int, progress: Progress | None) -> None:
    """Add what has become of each tensor that the other model has, too."""
    from sparsefmt.patterns import change_of

    assert contents.comparison is not None
    compared = set(contents.comparison.compared)
    for tensor in contents.tensors:
        if tensor.name in compared:
            tensor.change = change_of(
                tensor.open_rows(), other.rows_of(tensor.name), progress=progress, threads=threads
            )


BATCHES = [1, 32]
"""Rows of activations with which products are timed, as `sparsefmt bench` does."""

REPEATS = 11


class _LaidOut:
    """Gives a tensor as products take it: what `measure` asks an open file for."""

    def __init__(self, tensor: Tensor, threads: int) -> None:
        self._tensor, self._threads = tensor, threads

    def load(self, name: str, layout: str) -> SparseTensor:
        from sparsefmt import SparseTensor

        return SparseTensor.from_dense(self._tensor.open_rows(), layout, threads=self._threads)


def alike(tensors: list[Tensor]) -> list[list[Tensor]]:
    """The tensors that are multiplied sparse, those together that take equally long."""
    found: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.stored is not None and tensor.stored.memory_layout != "dense" and tensor.row_dims == 1:
            key = (tensor.shape, tensor.dtype, tensor.stored.memory_layout, round(100 * tensor.zeros / tensor.elements))
            found.setdefault(key, []).append(tensor)
    return list(found.values())


def add_times(contents: Contents, kinds: list[list[Tensor]], threads: int, progress: Progress | None) -> list[str]:
    """Time a tensor of each kind for all that are alike. Returns sentences on products that are wrong."""
    from sparsefmt.cli.benchmark.groups import Group
    from sparsefmt.cli.benchmark.libraries import dense_libraries
    from sparsefmt.cli.benchmark.measuring import measure
    from sparsefmt.report.contents import Speed
    from sparsefmt.report.tensors import Times

    matrices = sum(len(tensor.shape) > 1 for tensor in contents.tensors)
    left_out = matrices - sum(map(len, kinds))
    faults: list[str] = []
    with dense_libraries(threads) as libraries:
        contents.speed = Speed(_processor(), threads, [library.name for library in libraries], left_out)
        for tensors in kinds:
            first = tensors[0]
            rows = first.open_rows()
            # what is measured has no file of its own, and no entry in one
            file: Any = _LaidOut(first, threads)
            entry: Any = SimpleNamespace(name=first.name, rows=rows.rows, cols=rows.cols)
            group = Group("auto", "auto", 0, file, Path(contents.title), [entry])
            measure(group, BATCHES, libraries, threads, REPEATS)
            faults += group.faults
            times = [
                Times(timing.batch, timing.seconds, timing.dense_seconds, timing.ranking[0].library)
                for timing in group.timings
            ]
            for tensor in tensors:
                tensor.times = times
            if progress:
                progress(nbytes_of(tensors))
    return faults


def _processor() -> str:
    """The processor, as it calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
