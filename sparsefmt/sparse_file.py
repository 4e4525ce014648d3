"""SparseFile: an open file, whose tensors are read on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np

from sparsefmt import notebooks
from sparsefmt.container.budget import Attempt, Budget, TooMuchError
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.reader import Reader
from sparsefmt.container.sources import Source
from sparsefmt.container.stored_signs import Signs
from sparsefmt.errors import SparsefmtError, file_closed
from sparsefmt.file_tensor import FileTensor
from sparsefmt.layouts import auto
from sparsefmt.layouts.contract import Layout
from sparsefmt.layouts.memory import give_back
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.pickled_file import PickledFile
from sparsefmt.tensor import SparseTensor
from sparsefmt.tensor_slice import TensorSlice
from sparsefmt.threads import expect_count

WORTH_GIVING_BACK = 1 << 25
"""Once this many bytes of a file have been decoded, closing it gives freed buffers back to the system."""


class SparseFile(Mapping[str, "SparseTensor | np.ndarray"]):
    """An open .sparsefmt file: a mapping of names to tensors. A tensor is read when it is asked for.

    `sparsefmt.open_file` makes it. Opening reads and checks the index alone. Every chunk is verified (checksum,
    padding, all invariants of its layout) before it is used. Tensors stay valid after the file is closed. Many threads
    may use one file at once.

    A file that was opened by its path can be pickled. The pickle has the path, and not the tensors. The file is opened
    again when it is used for the first time, and must be the same file then.

    Raises:
        as `sparsefmt.load_file`, when a tensor is read; and SparsefmtError (`file-closed`) once the file is closed.

    Example:
        >>> with sparsefmt.open_file("model.sparsefmt") as f:
        ...     weights = {name: f[name] for name in f}
    """

    def __init__(
        self, source: Source | PickledFile, *, threads: int | None = None, max_decoded_bytes: int | None = None
    ) -> None:
        expect_count(threads)
        self._pickled = source if isinstance(source, PickledFile) else None
        self._opened = None if isinstance(source, PickledFile) else Reader(source, max_decoded_bytes)
        self._opening = threading.Lock()
        self._max_decoded_bytes = max_decoded_bytes
        self._threads = threads
        self._counting: Budget | None = None

    def __enter__(self) -> SparseFile:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and free the buffers that decoding much of it has left behind.

        Names, metadata, shapes and dtypes stay known. Every other use, also by another thread or during a read, raises
        a SparsefmtError of code "file-closed".
        """
        with self._opening:
            self._pickled = None
        if self._opened is not None:
            self._opened.close()
            if self._opened.decoded >= WORTH_GIVING_BACK:
                give_back()

    def __reduce__(self) -> tuple[Any, ...]:
        pickled = self._pickled or PickledFile.of(self._reader, self._max_decoded_bytes)
        return _unpickled, (pickled, self._threads)

    @property
    def _reader(self) -> Reader:
        if self._opened is None:
            with self._opening:
                if self._opened is None:
                    if self._pickled is None:
                        raise file_closed()
                    self._opened = self._pickled.open()
        return self._opened

    @property
    def reader(self) -> Reader:
        """Index and chunks, for tools that look inside."""
        return self._reader

    def keys(self) -> list[str]:  # type: ignore[override]
        """Names of all tensors, aliases included, sorted."""
        return list(self._reader.index.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.index.names)

    def __len__(self) -> int:
        return len(self._reader.index.names)

    def _repr_html_(self) -> str:
        """What notebooks show: the file and its tensors, of which the index tells all. None of them is read."""
        try:
            reader = self._reader
        except (SparsefmtError, OSError) as error:  # it was pickled, and is not what it was
            return notebooks.box(("SparseFile", error))
        index = reader.index
        stored = {entry.name: index.stored_nbytes(entry) for entry in index.tensors.values()}
        shown = notebooks.largest([(name, stored[name]) for name in sorted(stored)])
        dense = sum(entry.dense_nbytes for entry in index.tensors.values())
        lines = (
            f"SparseFile{'' if reader.path is None else f' {reader.path}'}",
            f"{len(index.names):,} tensors",
            f"{reader.size:,} bytes, {dense:,} dense",
            *(f"{name} = {target}" for name, target in list(index.aliases.items())[: notebooks.MOST_ROWS]),
        )
        rows = [_row(index.tensors[name], stored[name]) for name in shown]
        return notebooks.box(lines, below=notebooks.table(rows, len(stored) - len(shown)) if rows else "")

    def __contains__(self, name: object) -> bool:
        return name in self._reader.index.tensors or name in self._reader.index.aliases

    def metadata(self) -> dict[str, str]:
        """The user's metadata; empty if there is none."""
        return dict(self._reader.index.metadata)

    def __getitem__(self, name: str) -> SparseTensor | np.ndarray:
        """A SparseTensor if the tensor is stored sparse, else a numpy array with its own memory."""
        return self.load(name)

    def load(self, name: str, layout: str = "auto") -> SparseTensor | np.ndarray:
        """One tensor.

        Args:
            layout: as in `sparsefmt.load_file`.

        Raises:
            KeyError: there is no such tensor.
            FormatError, ChecksumError: the file is damaged or forged.
            LimitError: it takes more than `max_decoded_bytes`, or more than the memory of the machine.
        """
        self._reader.expect_open()
        entry = self._entry(name)
        auto.expect_name(layout)
        target, most = self._target(entry, layout)
        if not target.sparse:
            return self._tensor(entry, name).whole()
        budget = self._budget.together()
        stored_signs = self._reader.signs(entry)
        leave = stored_signs is not None
        if target.form != entry.layout.form:
            signs = 0 if leave else self._reader.in_memory.sign_bytes(entry)
            attempt = Attempt(budget, entry.name, None if most is None else most + signs)
            try:
                attempt.ask(signs)
                tiles = self._reader.tiles(entry, target, self._threads, attempt.ask, leave_signs=leave)
                return self._made(entry, target, tiles, stored_signs)
            except TooMuchError:
                # rows differ so much that padding takes more than is gained, or than is allowed: only now is that known
                attempt.give_up()
                target = entry.layout
        budget.ask(self._reader.in_memory.nbytes(entry, target), entry.name)
        tiles = self._reader.tiles(entry, target, self._threads, leave_signs=leave)
        return self._made(entry, target, tiles, stored_signs)

    def _made(self, entry: TensorEntry, layout: Layout, tiles: list[Tile], signs: Signs | None) -> SparseTensor:
        tiling = Tiling(entry.dtype, entry.shape, layout, entry.tile_rows, row_dims=entry.row_dims)
        return SparseTensor(tiling, tiles, self._reader.budget, signs)

    def get_tensor(self, name: str) -> np.ndarray:
        """One tensor as a dense numpy array, bit for bit. Takes the memory of the result and of one tile per thread."""
        self._reader.expect_open()
        return self.tensor(name).whole()

    def tensor(self, name: str) -> FileTensor:
        """A tensor, to be made dense as a whole or in part. For the library itself.

        Raises:
            KeyError: there is no such tensor.
        """
        return self._tensor(self._entry(name), name)

    def _tensor(self, entry: TensorEntry, name: str) -> FileTensor:
        return FileTensor(self._reader, entry, name, budget=self._budget, threads=self._threads)

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor to be indexed. Only the tiles that an index asks for are read: `f.get_slice("w")[8:16]`."""
        self._entry(name)
        return TensorSlice(self, name)

    def expect_budget(self, layout: str) -> None:
        """Raise LimitError if all tensors together, loaded with this layout, take more than `max_decoded_bytes`.

        Names of one tensor count once, and so do equal tensors in a sparse layout, which cannot change. This is called
        before anything is read, when the padding of `permuted` is not known yet.

        Raises ValueError for an unknown layout, also if there is no tensor.
        """
        auto.expect_name(layout)
        reader = self._reader
        copies = map(reader.index.entry, reader.index.copies)
        dense_copies = [entry for entry in copies if not self._target(entry, layout)[0].sparse]
        entries = [*reader.index.tensors.values(), *dense_copies]
        reader.budget.ask(sum(self._least_bytes(entry, layout) for entry in entries))

    def _least_bytes(self, entry: TensorEntry, layout: str) -> int:
        """Bytes that `load(name, layout)` takes at least."""
        if not entry.layout.sparse:
            return self._reader.in_memory.nbytes(entry, entry.layout)
        target = self._target(entry, layout)[0]
        # with "auto", a tensor may stay as it is stored
        layouts = [target, entry.layout] if layout == "auto" else [target]
        return min(self._reader.in_memory.nbytes(entry, target) for target in layouts)

    def count_together(self) -> None:
        """From now on, all loaded tensors count together towards `max_decoded_bytes`. For the library itself."""
        self._counting = self._reader.budget.together()

    @property
    def _budget(self) -> Budget:
        return self._counting or self._reader.budget

    def _target(self, entry: TensorEntry, layout: str) -> tuple[Layout, int | None]:
        """The layout of a tensor that `load(name, layout)` gives, if it takes no more than so many bytes; None for any
        number."""
        if not entry.layout.sparse:
            return entry.layout, None
        if layout == "auto":
            return self._reader.in_memory.best_layout(entry)
        return self._reader.in_memory.layout_named(entry, layout), None

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self._reader.index.entry(name)
        except KeyError:
            raise KeyError(f"no tensor {name!r} in this file; it has {len(self)} others") from None

    def layout_to_compute(self, entry: TensorEntry) -> str:
        """The layout of a sparse tensor that `load(name, "auto")` gives. If the counts of its rows differ too much, it
        stays as it is stored instead. For the library itself."""
        return self._reader.in_memory.best_layout(entry)[0].name


def _row(entry: TensorEntry, stored_nbytes: int) -> notebooks.Row:
    zeros = None if entry.nnz is None or not entry.elements else 1 - entry.nnz / entry.elements
    about = entry.name, entry.shape, entry.dtype.name, entry.layout.name
    return notebooks.Row(*about, zeros, stored_nbytes, entry.dense_nbytes)


def _unpickled(pickled: PickledFile, threads: int | None) -> SparseFile:
    return SparseFile(pickled, threads=threads, max_decoded_bytes=pickled.max_decoded_bytes)
