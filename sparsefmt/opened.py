"""An open file: tensors on demand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np

from sparsefmt import slicing
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.reader import Reader
from sparsefmt.container.sources import CannotBeMapped, MappedFile, ReadFile, Source
from sparsefmt.layouts import LAYOUTS, choose
from sparsefmt.layouts.contract import Tile
from sparsefmt.layouts.memory import give_back
from sparsefmt.tensor import SparseTensor

Backend = Literal["mmap", "pread"]
BACKENDS = get_args(Backend)

WORTH_GIVING_BACK = 1 << 25
"""Bytes from which on, decoded from a file, buffers that have been freed are given back to the system."""


class SparseFile(Mapping[str, "SparseTensor | np.ndarray"]):
    """An open .sparsefmt file: a mapping of names to tensors, each read when asked for. Safe to use from many threads.

    Made by `sparsefmt.open_file`. Opening reads and checks the index alone. Every chunk is verified (checksum, padding,
    all invariants of its layout) before anyone sees it. Tensors stay valid after the file is closed.
    """

    def __init__(self, source: Source, *, threads: int | None = None, max_decoded_bytes: int | None = None) -> None:
        self._reader = Reader(source, max_decoded_bytes)
        self._threads = threads

    def __enter__(self) -> SparseFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file, and of the buffers that decoding much of it has left behind."""
        self._reader.close()
        if self._reader.decoded >= WORTH_GIVING_BACK:
            give_back()

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

    def __contains__(self, name: object) -> bool:
        return name in self._reader.index.tensors or name in self._reader.index.aliases

    def metadata(self) -> dict[str, str]:
        """The user's metadata; empty if there is none."""
        return dict(self._reader.index.metadata)

    def __getitem__(self, name: str) -> SparseTensor | np.ndarray:
        """The tensor as it stays: a SparseTensor if it is stored sparse, else a numpy array of its own memory."""
        return self.load(name)

    def load(self, name: str, layout: str = "auto") -> SparseTensor | np.ndarray:
        """One tensor.

        Args:
            layout: "auto": as stored, except that a coded `bitmask` becomes `permuted` from 70 % zeros on, where that
                multiplies faster; "bitmask" or "permuted": that one for all tensors that are stored sparse; "dense": a
                numpy array.

        Raises:
            KeyError: no such tensor.
            FormatError, ChecksumError: the file is damaged or forged.
            LimitError: it takes more than `max_decoded_bytes`, or than there is.
        """
        entry = self._entry(name)
        if layout != "auto" and layout not in LAYOUTS:
            raise ValueError(f"layout must be 'auto' or one of {', '.join(map(repr, LAYOUTS))}, not {layout!r}")
        if layout == "dense" or not entry.layout.sparse:
            return self.get_tensor(name)
        target = self._target(entry, layout)
        self._reader.budget.expect(self._reader.decoded_bytes(entry, target), entry.name)
        tiles = self._reader.tiles(entry, target, self._threads)
        return SparseTensor(entry.dtype, entry.shape, target, entry.tile_rows, tiles, self._reader.budget)

    def get_tensor(self, name: str) -> np.ndarray:
        """One tensor as a dense numpy array, bit for bit. Holds one tile per thread beside the result."""
        entry = self._entry(name)
        self._reader.budget.expect(self._reader.decoded_bytes(entry, "dense"), entry.name)
        bits = slicing.dense_array(entry.rows, entry.cols, entry.dtype)

        def fill(tile: Tile, number: int) -> None:
            begin, end = entry.tile_range(number)
            bits[begin:end] = entry.layout.to_dense(tile, entry.dtype, entry.cols, 0, end - begin)

        # what the index says about all tiles together is verified on the way
        for _ in self._reader.each_tile(entry, fill, self._threads):
            pass
        return bits.view(entry.dtype.numpy).reshape(entry.shape)

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor of which only the tiles that an index asks for will be read: `f.get_slice("w")[8:16]`."""
        return TensorSlice(self, self._entry(name))

    def expect_budget(self, layout: str) -> None:
        """Raise LimitError if all tensors together, loaded with this layout, take more than `max_decoded_bytes`."""
        reader = self._reader
        entries = reader.index.tensors.values()
        reader.budget.expect(sum(reader.decoded_bytes(entry, self._target(entry, layout)) for entry in entries))

    def _target(self, entry: TensorEntry, layout: str) -> str:
        """The layout in which `load(name, layout)` holds a tensor."""
        if not entry.layout.sparse:
            return "dense"
        return self.layout_to_compute(entry) if layout == "auto" else layout

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self._reader.index.entry(name)
        except KeyError:
            raise KeyError(f"no tensor {name!r} in this file; it has {len(self)} others") from None

    def layout_to_compute(self, entry: TensorEntry) -> str:
        """The layout in which `load(name, "auto")` holds a tensor that is stored sparse. For the library itself."""
        stored = entry.layout.name
        # `permuted` is in a file because somebody chose it; `bitmask` may be there only because it codes well
        if stored == "permuted" or self._reader.is_raw(entry):
            return stored
        assert entry.nnz is not None
        best = choose.for_computing(entry.dtype, entry.rows, entry.cols, entry.nnz)
        return stored if best == "dense" else best

    def _rows(self, entry: TensorEntry, wanted: np.ndarray, cols: slice) -> np.ndarray:
        # whole rows are unpacked, and then cut
        self._reader.budget.expect(wanted.size * entry.cols * entry.dtype.numpy.itemsize, entry.name)
        return slicing.dense_rows(
            wanted,
            cols,
            entry.dtype,
            entry.shape,
            entry.layout,
            entry.tile_rows,
            lambda number: self._reader.tile(entry, number),
            self._threads,
        )


class TensorSlice:
    """A tensor in an open file, to be indexed like a numpy array."""

    def __init__(self, file: SparseFile, entry: TensorEntry) -> None:
        self._file = file
        self._entry = entry

    @property
    def shape(self) -> tuple[int, ...]:
        return self._entry.shape

    @property
    def dtype(self) -> np.dtype:
        return self._entry.dtype.numpy

    def get_shape(self) -> list[int]:
        """Shape of the tensor, as in safetensors."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """Name of the dtype, as in safetensors: "F32", "BF16" …"""
        return self._entry.dtype.name

    def __getitem__(self, key: Any) -> np.ndarray:
        """Dense elements, as `get_tensor(name)[key]`, reading only the tiles of the rows that `key` asks for."""
        return slicing.index(key, self._entry.shape, lambda rows, cols: self._file._rows(self._entry, rows, cols))


def open_source(path: str | os.PathLike[str], backend: Backend) -> Source:
    """The bytes of a file: mapped, where they shall and can be, or read."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be 'mmap' or 'pread', not {backend!r}")
    if backend == "mmap":
        with suppress(CannotBeMapped):
            return MappedFile(path)
    return ReadFile(path)
