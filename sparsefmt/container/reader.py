"""Reads a file: the index at once, chunks when asked for, each verified before anyone sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from sparsefmt import threads
from sparsefmt.container import coded_index, envelope, index, sniff
from sparsefmt.container.array_reader import ArrayReader, Record, expect_zeros
from sparsefmt.container.budget import Budget
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.in_memory import InMemory
from sparsefmt.container.index import Index
from sparsefmt.container.sources import Backend, Source
from sparsefmt.container.stored_signs import WORTH_LEAVING, Signs, StoredSigns
from sparsefmt.errors import FormatError, SparsefmtError, file_closed
from sparsefmt.layouts.contract import Layout
from sparsefmt.layouts.memory import Arena
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS
from sparsefmt.layouts.tile import Tile
from sparsefmt.urls import Url

Result = TypeVar("Result")


class Reader:
    """A file whose index has been read and checked. Safe to use from many threads.

    Attributes:
        path: as it was given, for errors; None of bytes and of file objects.
        index: its content.
        in_memory: what its tensors take once they are read.
        minor: its minor format version.
        size: bytes in the file.
        budget: what may be decoded at a time. It is asked for each tile; whoever reads several asks for all of them.
        decoded: bytes that have been decoded so far, about.
        index_checksum: what the trailer has, of the index: two files that have the same have the same content.
    """

    def __init__(self, source: Source, max_decoded_bytes: int | None = None) -> None:
        self._source, self._arrays = source, ArrayReader(source)
        self.size = source.size
        self.decoded = 0
        self._verified: set[int] = set()
        self.path = source.path
        self.budget = Budget(self.size, max_decoded_bytes, self.path)
        head = source.read(0, min(sniff.HEAD_SIZE, self.size)).tobytes()
        self.minor = envelope.decode_preamble(head)
        if self.size < envelope.MIN_FILE_SIZE:
            raise FormatError(
                "file-too-short", f"the file is cut off: it ends after {self.size} bytes", offset=self.size
            )
        end = source.read(self.size - envelope.TRAILER_SIZE, envelope.TRAILER_SIZE).tobytes()
        if not envelope.has_trailer(end):
            size = min(envelope.TAIL_SIZE, self.size)
            tail = source.read(self.size - size, size).tobytes()
            raise FormatError(
                "trailer-missing", envelope.describe_end(tail, self.size), offset=self.size - envelope.TRAILER_SIZE
            )
        trailer = envelope.decode_trailer(end, self.size)
        encoded = source.read(trailer.index_offset, trailer.index_size).tobytes()
        trailer.check_index(head[: envelope.PREAMBLE_SIZE], encoded)
        self.index: Index = index.decode(encoded, trailer.index_offset, self.minor)
        first = int(self.index.chunks["offset"][0]) if len(self.index.chunks) else envelope.PREAMBLE_SIZE
        expect_zeros(source.read(envelope.PREAMBLE_SIZE, first - envelope.PREAMBLE_SIZE), envelope.PREAMBLE_SIZE)
        self.index_offset, self.index_size = trailer.index_offset, trailer.index_size
        self.index_checksum = trailer.index_checksum
        self.in_memory = InMemory(self.index)
        # nearly always, and then tiles need not be looked at one by one
        self._all_within = self.budget.allows(self.index.chunks["raw"].sum(dtype=np.float64))

    @property
    def index_is_coded(self) -> bool:
        """Whether the index is stored as a zstd frame."""
        return coded_index.is_coded(self.encoded_index()[:4])

    def encoded_index(self) -> bytes:
        """The index as it stands in the file."""
        return self._source.read(self.index_offset, self.index_size).tobytes()

    @property
    def place(self) -> tuple[str | bytes | Url, Backend] | None:
        """Absolute path and backend of the open file; None of bytes and file objects. Raises ValueError if closed."""
        self._source.read(0, 0)
        return self._source.place

    def expect_open(self) -> None:
        """Raise SparsefmtError (file-closed) if the file is closed, for what might need no byte of it."""
        if self._source.closed:
            raise file_closed(self.path)

    def close(self) -> None:
        """Let go of the file. Arrays already read stay valid."""
        self._arrays.forget_coders()
        self._source.close()

    def tile(self, entry: TensorEntry, number: int, arena: Arena | None = None, *, leave_signs: bool = False) -> Tile:
        """One tile: decoded, verified, frozen. Mapped, not copied, where they are stored raw.

        A tile that is stored raw, and is the same memory each time, is verified the first time only.

        Args:
            arena: where to put them, if given.
            leave_signs: `negative_zeros` will be dropped, and does not go there.
        """
        tile, first = entry.tile(number, {}), entry.first_chunk + number * len(entry.codecs)
        is_verified, is_raw = first in self._verified, self._source.gives_same_memory
        read = self._arrays.read_again if is_verified else self._arrays.read
        try:
            if not self._all_within:
                self.budget.ask(self.in_memory.tile_bytes(entry, number))
            for chunk, array in enumerate(entry.codecs, first):
                record = self.index.chunks.item(chunk)
                place = None if leave_signs and array == NEGATIVE_ZEROS else arena
                tile.put(array, read(record, entry, tile, array, place))
                self.decoded += _decoded_size(record)
                is_raw &= record[1] == record[2]
            if not is_verified:
                tile.check()
        except SparsefmtError as error:
            raise error.within(entry.name, self.path) from None
        if is_raw:
            self._verified.add(first)
        return tile

    def expect(self, entry: TensorEntry, tiles: Iterable[int]) -> None:
        """Hint that these tiles will be read soon: they are asked for together where asking takes long."""
        if not self._source.reads_ahead:
            return
        arrays = len(entry.codecs)
        records = self.index.chunks[entry.first_chunk :][: entry.chunk_count].reshape(-1, arrays)
        self._arrays.expect(records[list(tiles)].reshape(-1))

    def expect_all(self, times: int = 1) -> None:
        """The same for all tensors, each so many times."""
        if self._source.reads_ahead:
            self._arrays.expect(self.index.chunks, times)

    def each_tile(
        self,
        entry: TensorEntry,
        work: Callable[[Tile, int], Result],
        thread_count: int | None = None,
        arena: Arena | None = None,
        *,
        leave_signs: bool = False,
    ) -> Iterator[Result]:
        """Results of work(tile, number) for all tiles of a tensor, in order, done in parallel, a few tiles at a time.

        What the index claims about the tiles together is verified at the end.
        """

        def visit(number: int) -> tuple[int, bool, Result]:
            tile = self.tile(entry, number, arena, leave_signs=leave_signs)
            return tile.nnz, tile.has_negative_zeros, work(tile, number)

        self.expect(entry, range(entry.tiles))
        nnz, has_negative_zeros = 0, False
        for tile_nnz, tile_has_negative_zeros, result in threads.in_order(visit, range(entry.tiles), thread_count):
            nnz += tile_nnz
            has_negative_zeros |= tile_has_negative_zeros
            yield result
        self.check_totals(entry, nnz, has_negative_zeros)

    def check_totals(self, entry: TensorEntry, nnz: int, has_negative_zeros: bool) -> None:
        """Verify what the index claims about all tiles of a tensor together. Raises FormatError.

        nnz, has_negative_zeros: of all tiles.
        """
        if entry.layout.sparse and nnz != entry.nnz:
            raise FormatError("nnz", f"the index says {entry.nnz:,} values, and there are {nnz:,}", tensor=entry.name)
        if NEGATIVE_ZEROS in entry.codecs and not has_negative_zeros:
            raise FormatError(
                "negative-zeros-empty", f"array {NEGATIVE_ZEROS!r} marks none and must be left out", tensor=entry.name
            )

    def tiles(
        self,
        entry: TensorEntry,
        layout: Layout | None = None,
        thread_count: int | None = None,
        taking: Callable[[int], None] = lambda nbytes: None,
        *,
        leave_signs: bool = False,
    ) -> list[Tile]:
        """All tiles of a tensor, in `layout` if given, else as stored. Never dense between sparse layouts.

        Args:
            taking: where tiles are laid out anew, called with the bytes of each array of `layout` before it is
                allocated, from several threads. `in_memory` tells those of tiles that stay as they are stored.
            leave_signs: verify `negative_zeros`, and leave it out.
        """

        def kept(tile: Tile) -> Tile:
            return tile.with_negative_zeros(None) if leave_signs else tile

        target = layout or entry.layout
        same = target.form == entry.layout.form
        if same and self.in_memory.is_raw(entry):
            return list(self.each_tile(entry, lambda tile, number: kept(tile), thread_count))
        arena = Arena(self.in_memory.filling(entry).nbytes(target))
        if same:
            return list(
                self.each_tile(entry, lambda tile, number: kept(tile), thread_count, arena, leave_signs=leave_signs)
            )

        def zeros(length: int, dtype: np.dtype) -> np.ndarray:
            taking(length * dtype.itemsize)
            return arena.zeros(length, dtype)

        def laid_out(tile: Tile, number: int) -> Tile:
            made = kept(tile).to_layout(target, zeros)
            return made if entry.layout.sparse and target.sparse else arena.keep(made)

        return list(self.each_tile(entry, laid_out, thread_count))

    def read_dense(self, entry: TensorEntry, number: int, out: np.ndarray) -> None:
        """Decode and verify one tile of layout `dense`, of a type that is not packed, into its elements' memory.

        out: bits (rows, cols), contiguous.
        """
        # the one array of its layout
        record = self.index.chunks.item(entry.first_chunk + number)
        tile = Tile(entry.layout, entry.dtype, (out.shape[0], entry.cols), {"values": out.reshape(-1)})
        try:
            self._arrays.read_dense(record, entry, tile)
            self.decoded += _decoded_size(record)
            tile.check()
        except SparsefmtError as error:
            raise error.within(entry.name, self.path) from None

    def signs(self, entry: TensorEntry) -> Signs | None:
        """The signs of a tensor's zeros, to be read later; None if they have to be kept with the tensor."""
        if NEGATIVE_ZEROS not in entry.codecs:
            return None
        first, arrays = list(entry.codecs).index(NEGATIVE_ZEROS), len(entry.codecs)
        records = self.index.chunks[entry.first_chunk :][: entry.chunk_count][first::arrays].copy()
        if int(records["raw"].sum()) < WORTH_LEAVING:
            return None
        source = self._source.another()
        if source is None:
            return None

        # these stay as long as the tensor, and one coder with them
        reader = ArrayReader(source, most_coders=1)

        def read(number: int) -> np.ndarray:
            return reader.read(records.item(number), entry, entry.tile(number, {}), NEGATIVE_ZEROS, None)

        return StoredSigns(entry.name, entry.tiles, self.path, read)


def _decoded_size(record: Record) -> int:
    """Bytes that a chunk decodes to; 0 if it is stored raw."""
    _, stored, raw, _, _ = record
    return raw if stored < raw else 0
