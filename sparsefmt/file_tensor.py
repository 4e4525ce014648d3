"""A tensor in an open file as dense rows, which are asked for in the budget of the file before they are allocated."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsefmt import indexing, slicing
from sparsefmt.container.budget import Budget
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.reader import Reader
from sparsefmt.dtypes import DType
from sparsefmt.layouts.tile import Tile
from sparsefmt.threads import in_order


class FileTensor:
    """A tensor in an open file, of which nothing has been read yet. Safe to use from many threads.

    Args:
        name: the name that was asked for: that of the entry, or one that is tied to it.
        budget: that of `reader`, or one that sums up what several tensors take. Rows that are read count by themselves.
        threads: how many may decode; by default all usable cores.

    Attributes:
        name: as given.
        dtype, shape: of the dense tensor.
        rows, cols: of its matrix view.
    """

    __slots__ = ("_budget", "_entry", "_reader", "_threads", "name")

    def __init__(
        self,
        reader: Reader,
        entry: TensorEntry,
        name: str,
        *,
        budget: Budget,
        threads: int | None = None,
    ) -> None:
        self._reader = reader
        self._entry = entry
        self._budget = budget
        self._threads = threads
        self.name = name

    @property
    def dtype(self) -> DType:
        return self._entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self._entry.shape

    @property
    def rows(self) -> int:
        return self._entry.rows

    @property
    def cols(self) -> int:
        return self._entry.cols

    @property
    def nbytes(self) -> int:
        """Bytes that `whole` allocates for the result."""
        return self._reader.in_memory.dense_bytes(self._entry)

    def ask(self, nbytes: int) -> None:
        """Ask before so many bytes are allocated for the tensor. Raises LimitError if they are too many."""
        self._budget.ask(nbytes, self._entry.name)

    def whole(self) -> np.ndarray:
        """The tensor as a new array, bit for bit.

        Raises:
            FormatError, ChecksumError: the file is damaged or forged.
            LimitError: it takes more than `max_decoded_bytes`, or more than the memory of the machine.

        Cost: the memory of the result and of one tile per thread.
        """
        self._reader.expect_open()
        entry = self._entry
        self.ask(self.nbytes)
        bits = slicing.dense_array(entry.rows, entry.cols, entry.dtype)
        if not entry.layout.sparse and not entry.dtype.packed:
            self._read_dense(bits)
        else:
            self._read_tiles(bits)
        return bits.view(entry.dtype.numpy).reshape(entry.shape)

    def _read_dense(self, bits: np.ndarray) -> None:
        """Fill `bits` (rows, cols) with a tensor of layout `dense`: decoded directly into it."""
        entry = self._entry
        if entry.tiles == 1:
            self._reader.read_dense(entry, 0, bits)
            return

        self._reader.expect(entry, range(entry.tiles))

        def read(number: int) -> None:
            begin, end = entry.tile_range(number)
            self._reader.read_dense(entry, number, bits[begin:end])

        for _ in in_order(read, range(entry.tiles), self._threads):
            pass

    def _read_tiles(self, bits: np.ndarray) -> None:
        """Fill `bits` (rows, cols) with a tensor of any layout and dtype."""
        entry = self._entry

        def fill(tile: Tile, number: int) -> None:
            first, last = entry.tile_range(number)
            for begin, end in slicing.runs(0, last - first, entry.cols):
                tile.fill(begin, 0, bits[first + begin : first + end])

        # iterating also verifies what the index says about all tiles together
        for _ in self._reader.each_tile(entry, fill, self._threads):
            pass

    def some_rows(
        self, wanted: slicing.RowNumbers, cols: slice = slice(None), get_tile: slicing.TileGetter | None = None
    ) -> np.ndarray:
        """Elements (len(wanted), columns in `cols`) of the matrix view, as a new array. Reads the tiles of those rows.

        Args:
            wanted: numbers of rows.
            get_tile: gives tile t, for a caller who keeps them; by default they are read.

        Raises:
            as `whole`.
        """
        self._reader.expect_open()
        entry = self._entry
        tiles = get_tile or (lambda number: self._reader.tile(entry, number))
        stored = slicing.Tiles(entry, tiles, self._reader.budget, entry.name)
        if get_tile is None:
            self._reader.expect(entry, slicing.tiles_of(wanted, entry.tile_rows))
        return stored.dense_rows(wanted, cols, self._threads)

    def __getitem__(self, key: Any) -> np.ndarray:
        """`whole()[key]`. Only the tiles of the rows that `key` asks for are read.

        Raises:
            IndexError: as `indexing.index`.
            as `whole`.
        """
        return indexing.index(key, self._entry, self.some_rows)
