"""What sparsefmt makes of tensors: bytes in a file and in memory, layouts, and why some stay dense."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from sparsefmt.adapters import Rows
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.conversion import write_converted
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.in_memory import InMemory
from sparsefmt.layouts import FORMS, auto
from sparsefmt.layouts.contract import Layout
from sparsefmt.layouts.sizes import Filling
from sparsefmt.limits import MAX_SPARSE_COLS, MAX_SPARSE_TILE_POSITIONS
from sparsefmt.report.tensors import Stored
from sparsefmt.save_options import SaveOptions

Progress = Callable[[int], object]
"""Called with the dense bytes of what is done."""


class _Counter:
    """Takes what a file would have, and keeps its size."""

    def __init__(self) -> None:
        self.nbytes = 0

    def write(self, data: bytes | memoryview, /) -> None:
        self.nbytes += len(data)


def compressed(
    file: TensorFile, threads: int | None = None, progress: Progress | None = None
) -> tuple[int, dict[str, Stored]]:
    """The size of the file that `sparsefmt convert` would make of a file, and what each tensor would be.

    Of a .sparsefmt file, what it is. Nothing is written; all that a file would have is made, a few tiles at a time.
    Tensors with a second name have none here.

    Raises:
        as reading the file.
    """
    if isinstance(file, SparsefmtFile):
        return file.nbytes, _as_stored(file, threads, progress)
    counter, found = _Counter(), {}
    for converted in write_converted(file, counter, SaveOptions(threads=threads), progress=progress):
        rows, entry = file.rows_of(converted.name), converted.entry
        filling = rows.filling(converted.survey)
        layout = auto.layout_for("auto", "computing", rows.shape, filling)
        in_memory = _dense_nbytes(rows) if not layout.sparse else filling.nbytes(layout)
        found[converted.name] = Stored(
            converted.stored_nbytes,
            name_of(entry.layout),
            in_memory,
            name_of(layout),
            "" if entry.layout.sparse else reason_for_dense(rows),
        )
    return counter.nbytes, found


def _as_stored(file: SparsefmtFile, threads: int | None, progress: Progress | None) -> dict[str, Stored]:
    index, found = file.reader.index, {}
    for name in index.names:
        if name in index.aliases and name not in index.copies:
            continue
        entry, rows = index.entry(name), file.rows_of(name)
        stored_nbytes = 0 if name in index.copies else index.stored_nbytes(entry)
        layout, in_memory = entry.layout, _dense_nbytes(rows)
        if layout.sparse:
            layout, in_memory = _in_memory(InMemory(index), entry, rows, threads)
        reason = "" if layout.sparse else reason_for_dense(rows)
        found[name] = Stored(stored_nbytes, name_of(entry.layout), in_memory, name_of(layout), reason)
        if progress:
            progress(rows.dense_nbytes)
    return found


def _in_memory(in_memory: InMemory, entry: TensorEntry, rows: Rows, threads: int | None) -> tuple[Layout, int]:
    """The layout of a sparse tensor of a file once it is loaded, and the bytes of its arrays but for signs."""
    best, _ = in_memory.best_layout(entry)
    if best.form == "bitmask":
        return best, in_memory.filling(entry).nbytes(best)
    # how much it is padded, and which form it has, nobody knows who has not looked
    survey = rows.survey(threads)
    filling = Filling(entry.dtype, entry.rows, entry.cols, entry.tile_rows, survey.nnz, survey.stored)
    layout = entry.layout if best.name == entry.layout.name else filling.permuted
    if layout.name != entry.layout.name and filling.nbytes(layout) > auto.most_bytes_of(filling, layout):
        layout = FORMS["bitmask"]
    return layout, filling.nbytes(layout)


def _dense_nbytes(rows: Rows) -> int:
    """Bytes of all elements as numpy holds them."""
    return prod(rows.shape) * rows.dtype.numpy.itemsize


def name_of(layout: Layout) -> str:
    """The layout, and the form of one that has several."""
    return layout.name if layout.form == layout.name else f"{layout.name}, {layout.form}"


def reason_for_dense(rows: Rows) -> str:
    """Why a tensor with layout dense has it: words that go on "stays dense: "."""
    if not rows.dtype.prunable:
        return f"elements of {rows.dtype.name} cannot be pruned"
    if 0 in rows.shape:
        return "no elements"
    if len(rows.shape) < 2:
        return "a vector or a single number"
    if rows.cols > min(MAX_SPARSE_COLS, MAX_SPARSE_TILE_POSITIONS):
        return "too many columns"
    if rows.dense_nbytes < auto.SMALL:
        return f"under {auto.SMALL // 1024} KiB: too small to be worth it"
    return f"too few zeros: sparse, it would not be {1 - auto.WORTHWHILE:.0%} smaller"
