"""Writes a file in one pass, tensor by tensor, tile by tile, holding no more than the tiles in flight."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Protocol

import numpy as np

from sparsefmt import threads
from sparsefmt.codecs import CODECS
from sparsefmt.codecs.contract import ArrayInfo, Chunk, Codec, Each, Result
from sparsefmt.container import envelope
from sparsefmt.container.chunks import CHUNK_RECORD
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.index import Index
from sparsefmt.container.names import check_metadata, check_name
from sparsefmt.dtypes import DType
from sparsefmt.errors import FormatError, LimitError
from sparsefmt.layouts import LAYOUTS
from sparsefmt.layouts.contract import NEGATIVE_ZEROS, Layout, Tile
from sparsefmt.limits import MAX_CHUNK_BYTES, MAX_INDEX_BYTES, MAX_TENSORS
from sparsefmt.positions import Positions
from sparsefmt.shapes import check_shape, matrix_view

WORTH_A_MODEL = 1 << 12
"""Bytes of a dense tensor below which "auto" makes no model for it: that takes longer than all else together
(`tools/bench/small.py`, also with `--codec rans`)."""

KEPT_BYTES = 1 << 24
"""Tiles of a tensor, 16 MiB in all, that are kept while it is written, since some codecs look several times; the others
are made anew."""


class Sink(Protocol):
    """What a writer writes to: a binary file, or io.BytesIO."""

    def write(self, data: bytes | memoryview, /) -> object: ...


class Writer:
    """A file being written. Feed it with `add` and `add_alias`, then call `finish`; without that it is no file.

    A tensor that is refused before anything of it is written leaves the writer as it was. One that fails later, or a
    sink that fails, leaves bytes that no reader accepts: from then on the writer refuses everything.

    Args:
        sink: where the bytes go, from offset 0 on.
        codec: "raw", "auto", or a codec name, for all arrays.
        metadata: the user's texts.
        thread_count: threads that lay out and encode tiles; the bytes written do not depend on it.
        progress: called with the dense bytes of each tile once its chunks are written, by the thread that calls `add`.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        codec: str = "auto",
        metadata: Mapping[str, str] | None = None,
        thread_count: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        if codec != "auto" and codec not in CODECS:
            raise ValueError(f"codec must be 'auto' or one of {', '.join(map(repr, CODECS))}, not {codec!r}")
        threads.expect_count(thread_count)
        metadata = dict(metadata or {})
        check_metadata(metadata)
        self._sink = sink
        self._codec = codec
        self._threads = thread_count
        self._progress = progress
        self._index = Index(metadata=metadata)
        self._partial = ""
        self._finished = False
        self._records: list[tuple[int, int, int, int]] = []
        self._offset = 0
        self._write(envelope.encode_preamble())
        self._pad()

    def add(
        self,
        name: str,
        dtype: DType,
        shape: tuple[int, ...],
        layout: str,
        tile_rows: int,
        make_tile: Callable[[int], Tile],
        *,
        nnz: int | None = None,
        negative_zeros: bool = False,
        negative_zeros_dropped: int = 0,
    ) -> TensorEntry:
        """Write one tensor.

        Args:
            make_tile: gives the arrays of tile number t; called from several threads, about in order, and several times
                for each: codecs with models look at all tiles before the first is written.
            nnz: values stored, for sparse layouts.
            negative_zeros: whether any tile has that array; tiles without it are written as having none set.
            negative_zeros_dropped: how many signs of zero the caller cleared.
        """
        self._expect_usable()
        check_name(name)
        self._expect_new(name)
        check_shape(shape, dtype)
        rows, cols = matrix_view(shape)
        arrays = sorted([*LAYOUTS[layout].arrays, *([NEGATIVE_ZEROS] if negative_zeros else [])])
        tiles = -(-rows // tile_rows) if tile_rows else 0

        def complete(number: int) -> Tile:
            tile = make_tile(number)
            if negative_zeros and NEGATIVE_ZEROS not in tile:
                tile_nnz = LAYOUTS[layout].nnz(tile)
                pruned = min(tile_rows, rows - number * tile_rows) * cols - tile_nnz
                tile = {**tile, NEGATIVE_ZEROS: np.zeros((pruned + 7) // 8, np.uint8)}
            return tile

        several = self._codec == "auto" or CODECS[self._codec].has_models
        source = _Tiles(complete, tiles, self._threads, KEPT_BYTES if several else 0)
        chooser = _CodecChooser(self._codec, LAYOUTS[layout], dtype, rows, cols, tile_rows, source)
        first_chunk = len(self._records)

        def encode(number: int) -> tuple[int, bool, list[tuple[bytes | memoryview, int]]]:
            tile = source.get(number)
            tile_nnz = LAYOUTS[layout].nnz(tile) if LAYOUTS[layout].sparse else 0
            has_negative_zeros = NEGATIVE_ZEROS in tile and bool(tile[NEGATIVE_ZEROS].any())
            chunks = [(chooser.encode(array, tile, number), tile[array].nbytes) for array in arrays]
            return tile_nnz, has_negative_zeros, chunks

        # the first tile by itself: it decides the codecs, whatever the number of threads
        first = map(encode, range(min(tiles, 1)))
        rest = threads.in_order(encode, range(1, tiles), self._threads)
        found_nnz, found_negative_zeros = 0, False
        for number, (tile_nnz, has_negative_zeros, chunks) in enumerate(chain(first, rest)):
            # until the last of its chunks is there
            self._partial = f"tensor {name!r} failed after a part of it was written"
            found_nnz += tile_nnz
            found_negative_zeros |= has_negative_zeros
            for stored, raw_size in chunks:
                if raw_size > MAX_CHUNK_BYTES:
                    raise LimitError(
                        "chunk-limit", f"a tile takes {raw_size:,} bytes, over {MAX_CHUNK_BYTES:,}", tensor=name
                    )
                self._write_chunk(stored, raw_size)
            if self._progress:
                self._progress(dtype.nbytes(min(tile_rows, rows - number * tile_rows) * cols))
        if (found_nnz, found_negative_zeros) != (nnz or 0, negative_zeros):
            raise FormatError("tensor-changed", "it changed while it was saved: save a copy", tensor=name)
        coded = self._coded_arrays(first_chunk, arrays)
        entry = TensorEntry(
            name,
            dtype,
            shape,
            LAYOUTS[layout],
            {array: chooser.chosen(array) if array in coded else "raw" for array in arrays},
            tile_rows,
            first_chunk if tiles else 0,
            nnz,
            negative_zeros_dropped,
            {array: chooser.model(array) for array in arrays if array in coded and chooser.has_model(array)},
        )
        self._index.tensors[name] = entry
        self._partial = ""
        return entry

    def add_alias(self, name: str, target: str) -> None:
        """Say that `name` is the tensor already written as `target`."""
        self._expect_usable()
        check_name(name)
        self._expect_new(name)
        if target not in self._index.tensors:
            raise FormatError(
                "alias-invalid", f"it is to be an alias of {target!r}, which is not written yet", tensor=name
            )
        self._index.aliases[name] = target

    def finish(self) -> Index:
        """Write index and trailer. The file is whole once these bytes are on the disk.

        Raises:
            FormatError: a tensor failed after a part of it was written, or the file is finished already.
        """
        self._expect_usable()
        self._index.chunks = np.array(self._records, CHUNK_RECORD)
        encoded = self._index.encode()
        if len(encoded) > MAX_INDEX_BYTES:
            raise LimitError("index-size", f"the index has {len(encoded):,} bytes; the limit is {MAX_INDEX_BYTES:,}")
        trailer = envelope.Trailer(self._offset, len(encoded), envelope.checksum(envelope.encode_preamble(), encoded))
        self._partial = "the end of the file failed while it was written"
        self._write(encoded)
        self._write(trailer.encode())
        self._partial, self._finished = "", True
        return self._index

    @property
    def written(self) -> int:
        """Bytes that went to the sink so far."""
        return self._offset

    def _expect_usable(self) -> None:
        """Raise FormatError if what was written so far can not become a file any more, or is one."""
        if self._partial:
            raise FormatError("writer-failed", f"this file cannot be finished: {self._partial}. Write a new one")
        if self._finished:
            raise FormatError("writer-finished", "this file is finished: nothing can be added to it")

    def _expect_new(self, name: str) -> None:
        if name in self._index.tensors or name in self._index.aliases:
            raise FormatError("name-duplicate", "there is already a tensor with this name", tensor=name)
        if len(self._index.tensors) + len(self._index.aliases) >= MAX_TENSORS:
            raise LimitError("tensor-count", f"a file holds at most {MAX_TENSORS:,} tensors", tensor=name)

    def _coded_arrays(self, first_chunk: int, arrays: list[str]) -> set[str]:
        """Arrays of the tensor just written of which at least one chunk is smaller than its raw bytes."""
        records = self._records[first_chunk:]
        return {arrays[number % len(arrays)] for number, (_, stored, raw, _) in enumerate(records) if stored < raw}

    def _write_chunk(self, stored: bytes | memoryview, raw_size: int) -> None:
        size = memoryview(stored).nbytes
        self._records.append((self._offset, size, raw_size, envelope.checksum(stored)))
        self._write(stored)
        self._pad()

    def _write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        self._offset += rest.nbytes
        while rest.nbytes:
            written = self._sink.write(rest)
            if not isinstance(written, int):
                if isinstance(self._sink, io.RawIOBase):
                    written = 0
                else:
                    break  # it does not count, and takes all
            if not written:
                raise BlockingIOError(errno.EAGAIN, "the file takes no more bytes at the moment: open it as blocking")
            # raw files and pipes may take a part
            rest = rest.cast("B")[written:]

    def _pad(self) -> None:
        padding = envelope.aligned(self._offset) - self._offset
        if padding:
            self._write(bytes(padding))


class _Tiles:
    """The tiles of one tensor, which codecs with models look at several times: `room` bytes of them are kept."""

    def __init__(self, make: Callable[[int], Tile], count: int, thread_count: int | None, room: int) -> None:
        self._make, self._count, self._threads = make, count, thread_count
        self._kept: dict[int, Tile] = {}
        self._room = room

    def get(self, number: int) -> Tile:
        """Tile `number`. Called from several threads, for tiles of their own."""
        if number in self._kept:
            return self._kept[number]
        tile = self._make(number)
        nbytes = sum(data.nbytes for data in tile.values())
        if nbytes <= self._room:
            self._room -= nbytes
            self._kept[number] = tile
        return tile

    def each(self, work: Callable[[Tile, int], Result]) -> Iterator[Result]:
        """Results of work(tile, number) for all tiles, in order, done in parallel."""
        return threads.in_order(lambda number: work(self.get(number), number), range(self._count), self._threads)


class _Coding:
    """How an array of a tensor is coded.

    Args:
        each: all its chunks, for codecs with models.
        left_out: whether it is not coded at all, since it follows from others.
    """

    def __init__(self, codec: Codec, info: ArrayInfo, each: Each, left_out: bool) -> None:
        self.codec, self.left_out = codec, left_out
        self.model = b"" if left_out else codec.fit(info, each)
        # of nothing but empty chunks, there is no model
        nothing = left_out or (codec.has_models and not self.model)
        self._coder = None if nothing else codec.coder(self.model, info)

    def encode(self, raw: np.ndarray, positions: Positions | None) -> bytes | memoryview:
        return b"" if self._coder is None else self._coder.encode(raw, positions)


class _CodecChooser:
    """Encodes the arrays of one tensor; with "auto", by the codec that did best on the first tile."""

    def __init__(
        self, codec: str, layout: Layout, dtype: DType, rows: int, cols: int, tile_rows: int, source: _Tiles
    ) -> None:
        self._codec, self._layout, self._dtype, self._source = codec, layout, dtype, source
        self._rows, self._cols, self._tile_rows = rows, cols, tile_rows
        self._chosen: dict[str, _Coding] = {}

    def chosen(self, array: str) -> str:
        return self._chosen[array].codec.name

    def has_model(self, array: str) -> bool:
        return self._chosen[array].codec.has_models and not self._chosen[array].left_out

    def model(self, array: str) -> bytes:
        return self._chosen[array].model

    def encode(self, array: str, tile: Tile, number: int) -> bytes | memoryview:
        """The smallest coding of an array: its raw bytes if coding does not make them smaller."""
        raw, coding = tile[array].view(np.uint8), self._chosen.get(array)
        if coding is None:
            coding, encoded = self._choose(array, tile, number)
        else:
            encoded = self._encode(coding, array, tile, number)
        size = memoryview(encoded).nbytes
        # what readers would refuse as impossible is not written
        fits = size < raw.nbytes and (raw.nbytes <= size * coding.codec.max_ratio or coding.left_out)
        return encoded if fits else memoryview(raw)

    def _choose(self, array: str, tile: Tile, number: int) -> tuple[_Coding, bytes | memoryview]:
        layout, tried = self._layout, []
        width = layout.array_dtype(array, self._dtype, self._cols).itemsize
        info = ArrayInfo(width, self._rows, self._cols, array == layout.mask)

        def each(work: Callable[[Chunk], Result]) -> Iterator[Result]:
            return self._source.each(lambda tile, number: work(self._chunk(array, tile, number)))

        for codec in self._candidates(info):
            coding = _Coding(codec, info, each, codec.leaves_out_derived and array in layout.derived)
            encoded = self._encode(coding, array, tile, number)
            share = len(coding.model) * len(self._rows_of(number)) / max(self._rows, 1)
            tried.append((memoryview(encoded).nbytes + share, coding, encoded))
        _, coding, encoded = min(tried, key=lambda candidate: candidate[0])
        self._chosen[array] = coding
        return coding, encoded

    def _encode(self, coding: _Coding, array: str, tile: Tile, number: int) -> bytes | memoryview:
        if not coding.codec.has_models:
            return coding.encode(tile[array].view(np.uint8), None)
        chunk = self._chunk(array, tile, number)
        return coding.encode(chunk.raw, chunk.positions)

    def _chunk(self, array: str, tile: Tile, number: int) -> Chunk:
        """An array of a tile, as codecs with models see it."""
        rows = self._rows_of(number)
        positions = self._layout.positions(array, tile, self._dtype, len(rows), self._cols)
        return Chunk(tile[array].view(np.uint8), rows, positions)

    def _rows_of(self, number: int) -> range:
        begin = number * self._tile_rows
        return range(begin, min(begin + self._tile_rows, self._rows))

    def _candidates(self, info: ArrayInfo) -> list[Codec]:
        if self._codec == "auto":
            small = info.rows * info.cols * info.width < WORTH_A_MODEL
            return [codec for codec in CODECS.values() if codec.name != "raw" and not (codec.has_models and small)]
        return [CODECS[self._codec]]
