"""A .sparsefmt file as a file of dense tensors."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

import numpy as np

from sparsefmt.adapters import Rows
from sparsefmt.checkpoints.contract import TensorFile, expect_regular_file
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.reader import Reader
from sparsefmt.container.remote_path import place_of, reading
from sparsefmt.file_tensor import FileTensor
from sparsefmt.layouts.tile import Tile
from sparsefmt.urls import Url


class SparsefmtFile(TensorFile):
    """An open .sparsefmt file. Reads instead of mapping: pages that a mapping has touched would count as memory used.

    Attributes:
        names: aliases included, sorted.
        reader: index and chunks.

    Raises:
        SparsefmtError: as `sparsefmt.open_file`.
        OSError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str] | Url, max_decoded_bytes: int | None = None) -> None:
        self.path = place_of(path)
        expect_regular_file(self.path)
        source = reading(self.path)
        source.path = str(self.path)
        try:
            self.reader = Reader(source, max_decoded_bytes)
        except BaseException:
            source.close()
            raise
        self.names = self.reader.index.names
        self.metadata = self.reader.index.metadata
        self.nbytes = self.reader.size

    def rows_of(self, name: str) -> EntryRows:
        return EntryRows(self.reader, self.reader.index.entry(name))

    def expect(self, names: Iterable[str], times: int = 1) -> None:
        # in what order they lie, the index says better; and those that are left out cost nothing
        self.reader.expect_all(times)

    def close(self) -> None:
        self.reader.close()


class EntryRows(Rows):
    """A tensor of a .sparsefmt file, made dense a run of rows at a time; every chunk is verified as it is read."""

    is_settled = True

    def __init__(self, reader: Reader, entry: TensorEntry) -> None:
        super().__init__(entry.dtype, entry.shape)
        self.stack(entry.row_dims)
        self._reader = reader
        self._entry = entry
        self._tensor = FileTensor(reader, entry, entry.name, budget=reader.budget, threads=1)
        self._is_expected = False
        self._lock = threading.Lock()
        self._last: list[tuple[int, Tile]] = []

    def bits(self, begin: int, end: int) -> np.ndarray:
        number, first = divmod(begin, max(self._entry.tile_rows, 1))
        if begin < end <= (number + 1) * self._entry.tile_rows:
            # as usual, of one tile: what is made of it need not be copied
            self._reader.expect_open()
            self._tensor.ask((end - begin) * self.cols * self.dtype.numpy.itemsize)
            return self._tile(number).to_dense(first, first + end - begin)
        rows = self._tensor.some_rows(range(begin, end), get_tile=self._tile)
        return rows.view(self.dtype.bits_dtype)

    def tile_rows(self, layout: str, entries: int | None = None) -> int:
        # the tiles of the file, so that none is decoded twice, but for those that are too large to be made dense
        height = self._entry.tile_rows
        usual = super().tile_rows("bitmask") if self._entry.layout.sparse else height
        return min(height, usual) if layout == "dense" or not self._entry.layout.sparse else height

    def _tile(self, number: int) -> Tile:
        if not self._is_expected:
            self._is_expected = True
            self._reader.expect(self._entry, range(self._entry.tiles))
        if self._entry.tile_rows <= self.tile_rows("dense"):
            return self._reader.tile(self._entry, number)
        # several runs of rows are made of it, while others are of the one before
        with self._lock:
            for known, tile in self._last:
                if known == number:
                    return tile
            tile = self._reader.tile(self._entry, number)
            self._last = [*self._last[-1:], (number, tile)]
            return tile
