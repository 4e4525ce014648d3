"""Writes a file in one pass, tensor by tensor, tile by tile, holding no more than the tiles in flight."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from sparsefmt import threads
from sparsefmt.codecs import CODECS
from sparsefmt.container import envelope
from sparsefmt.container.chunks import STORED_RECORD, place_chunks, start
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.in_progress import Contents, EncodedChunk, TensorInProgress
from sparsefmt.container.index import Index
from sparsefmt.container.names import check_metadata, check_name
from sparsefmt.errors import FormatError, LimitError
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.limits import MAX_INDEX_BYTES, MAX_TENSORS
from sparsefmt.shapes import check_shape


class Sink(Protocol):
    """What a writer writes to: a binary file, or io.BytesIO."""

    def write(self, data: bytes | memoryview, /) -> object: ...


class EncodedTensor(NamedTuple):
    """A tensor, and the chunks of all its tiles."""

    tensor: TensorInProgress
    tiles: list[list[EncodedChunk]]


class Writer:
    """A file being written. Feed it with `add` and `add_alias`, then call `finish`; without that it is not a file.

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
        self._records: list[tuple[int, int, int]] = []
        self._offset = 0
        self._write(envelope.encode_preamble())

    def add(self, name: str, tiling: Tiling, contents: Contents) -> TensorEntry:
        """Write one tensor.

        Raises:
            SparsefmtError: it cannot be stored, or it changed meanwhile.
            as `contents.make_tile`.
        """
        tensor = self._begun(name, tiling, contents)
        return self._add(tensor, tensor.encoded_tiles())

    def encode(self, name: str, tiling: Tiling, contents: Contents) -> EncodedTensor:
        """All that `add` does but for writing: any thread may do it ahead, for a small tensor. Raises as `add`."""
        tensor = self._begun(name, tiling, contents)
        return EncodedTensor(tensor, list(tensor.encoded_tiles()))

    def add_encoded(self, encoded: EncodedTensor) -> TensorEntry:
        """Write what `encode` gave. Raises as `add`."""
        return self._add(*encoded)

    def _begun(self, name: str, tiling: Tiling, contents: Contents) -> TensorInProgress:
        check_name(name)
        check_shape(tiling.shape, tiling.dtype)
        return TensorInProgress(name, tiling, contents, self._codec, self._threads)

    def _add(self, tensor: TensorInProgress, tiles: Iterable[list[EncodedChunk]]) -> TensorEntry:
        self._expect_usable()
        name, tiling = tensor.name, tensor.tiling
        self._expect_new(name)
        first_chunk = len(self._records)
        for number, chunks in enumerate(tiles):
            # until the last of its chunks is there
            self._partial = f"tensor {name!r} failed after a part of it was written"
            for chunk in chunks:
                self._write_chunk(chunk)
            if self._progress:
                self._progress(tiling.dtype.nbytes(tiling.tile_elements(number)))
        entry = tensor.finished(first_chunk)
        self._index.tensors[name] = entry
        self._partial = ""
        return entry

    def add_copy(self, name: str, target: str) -> TensorEntry:
        """Say that `name` is another tensor with the elements of the one already written as `target`. Returns the entry
        of that."""
        self.add_alias(name, target)
        self._index.copies.add(name)
        entry = self._index.tensors[target]
        if self._progress:
            self._progress(entry.dense_nbytes)
        return entry

    def add_metadata(self, texts: Mapping[str, str]) -> None:
        """Keep further texts of the user, which take the place of those that are called the same."""
        self._expect_usable()
        check_metadata({**self._index.metadata, **texts})
        self._index.metadata |= texts

    def add_alias(self, name: str, target: str) -> None:
        """Say that `name` is the tensor already written as `target`."""
        self._expect_usable()
        check_name(name)
        self._expect_new(name)
        if target not in self._index.tensors and target not in self._index.copies:
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
        self._index.chunks = place_chunks(np.array(self._records, STORED_RECORD), self._offset)
        # not for those who asked for what readers without zstd can read
        encoded = self._index.encode(coded=self._codec in ("auto", "zstd"))
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

    def _write_chunk(self, chunk: EncodedChunk) -> None:
        size = memoryview(chunk.stored).nbytes
        padding = start(self._offset, size, chunk.raw_size) - self._offset
        if padding:
            self._write(bytes(padding))
        self._records.append((size, chunk.raw_size, chunk.checksum))
        self._write(chunk.stored)

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
