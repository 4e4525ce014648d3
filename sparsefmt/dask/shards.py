"""One shard of a checkpoint, converted on a worker: what it is told, what it does, and what it notes beside the shard.

A task may run twice, or in two places at once: each writes under a name of its own, and takes the shard's name in the
end; the bytes are equal. What was finished is noted in a small file beside it, so that a client that begins again
knows it: by the size of the shard, and by a checksum of the source's header, of what else is known of the source, and
of all options.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import xxhash

import sparsefmt
from sparsefmt.adapters import Survey
from sparsefmt.checkpoints.conversion import ConvertedTensor, write_converted
from sparsefmt.container.file_objects import destination
from sparsefmt.container.index import Index
from sparsefmt.container.reader import Reader
from sparsefmt.container.remote_path import Place
from sparsefmt.container.sources import source_of
from sparsefmt.container.writer import Sink
from sparsefmt.dask.running import check_version, teller
from sparsefmt.dask.source_files import SourceFile
from sparsefmt.errors import FormatError, in_file
from sparsefmt.layouts.sizes import Stored
from sparsefmt.quantizing import Loss, Quantization
from sparsefmt.save_options import SaveOptions

_READ_BYTES = 1 << 23
_MOST_STATE_BYTES = 1 << 28


@dataclass(frozen=True)
class ShardTask:
    """All that a worker has to know to convert a shard.

    Attributes:
        source: the file to convert.
        options, quantization: as of a conversion on one machine; without a number of threads, one is used.
        destination: where the shard goes.
        state: where what has been finished is noted; None if nobody would look.
        fingerprint: a checksum of everything that the bytes of the shard follow from.
        topic: where the dense bytes that are done are told; "" for nowhere.
    """

    source: SourceFile
    options: SaveOptions
    quantization: Quantization | None
    destination: Any
    state: Place | None = None
    fingerprint: str = ""
    topic: str = ""
    version: str = sparsefmt.__version__

    def with_places(self, place: Place, state: Place | None) -> ShardTask:
        return replace(self, destination=place, state=state)


@dataclass(frozen=True)
class ShardDone:
    """A shard that is whole.

    Attributes:
        nbytes: of the file.
        index_checksum: as of a Reader: the index has the checksums of all chunks.
        tensors: of each tensor that was counted, in order, what its index does not say: nnz, negative zeros and the two
            numbers of `Stored`, bytes in the source, and what quantizing has lost.
    """

    nbytes: int
    index_checksum: int
    tensors: dict[str, tuple[list[int], int, list[Any] | None]]

    @classmethod
    def of(cls, nbytes: int, index_checksum: int, converted: list[ConvertedTensor]) -> ShardDone:
        return cls(nbytes, index_checksum, {tensor.name: _counted(tensor) for tensor in converted})

    def converted(self, index: Index) -> list[ConvertedTensor]:
        """What a conversion on one machine would return, with what the shard's own index says."""
        made = []
        for name, (counts, source_nbytes, lost) in self.tensors.items():
            nnz, negative_zeros, *stored = counts
            entry, is_copy = index.entry(name), name in index.copies
            sizes = (0, 0) if is_copy else (index.stored_nbytes(entry), index.sign_nbytes(entry))
            survey, loss = Survey(nnz, negative_zeros, Stored(*stored)), None if lost is None else Loss(*lost)
            made.append(ConvertedTensor(name, entry, survey, is_copy, *sizes, source_nbytes, loss))
        return made


def convert_shard(task: ShardTask) -> ShardDone:
    """Convert a shard, read it again, and note that it is finished. Runs on a worker; holds a few tiles.

    Raises:
        UnsupportedError: the worker has another version of sparsefmt (`worker-version`).
        FormatError: the source has been replaced meanwhile, or the shard reads differently from what was written.
        as a conversion on one machine.
    """
    check_version(task.version)
    options = replace(task.options, threads=task.options.threads or 1)
    with task.source.called_by_client(), task.source.opened() as file, destination(task.destination) as sink:
        written = _CountingSink(sink)
        converted = write_converted(file, written, options, task.quantization, teller(task.topic, task.fingerprint))
    index_checksum = _read_again(task.destination, written)
    done = ShardDone.of(written.nbytes, index_checksum, converted)
    if task.state is not None:
        with destination(task.state) as sink:
            sink.write(_encoded(task.fingerprint, done))
    return done


def found_done(task: ShardTask) -> ShardDone | None:
    """What is noted beside a shard, if that is finished, and is what this task would make."""
    if task.state is None:
        return None
    try:
        done = _decoded(_whole(task.state, _MOST_STATE_BYTES), task.fingerprint)
        if done is not None:
            index_of(task.destination, done)
        return done
    except (OSError, ValueError):
        return None


def index_of(place: Place, done: ShardDone) -> Index:
    """The index of a finished shard.

    Raises:
        FormatError: it is not the shard that the worker wrote.
        OSError: it is not there: client and workers do not see the same files.
    """
    with in_file(place):
        source = source_of(place)
        try:
            reader = Reader(source)
            if (reader.size, reader.index_checksum) != (done.nbytes, done.index_checksum):
                raise FormatError("shard-differs", "it is not the file that its worker has written")
            return reader.index
        finally:
            source.close()


class _CountingSink:
    """Passes on what is written, and keeps its length and its checksum."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self._state, self.nbytes = sink, xxhash.xxh3_128(), 0

    def write(self, data: bytes | memoryview, /) -> int:
        self._sink.write(data)
        self._state.update(data)
        nbytes = memoryview(data).nbytes
        self.nbytes += nbytes
        return nbytes

    @property
    def checksum(self) -> bytes:
        return self._state.digest()


def _read_again(place: Place, written: _CountingSink) -> int:
    """Read a shard, compare it with what was written, and return the checksum of its index."""
    with in_file(place):
        source = source_of(place)
        try:
            state = xxhash.xxh3_128()
            for begin in range(0, source.size, _READ_BYTES):
                state.update(source.read(begin, min(_READ_BYTES, source.size - begin)).data)
            if (source.size, state.digest()) != (written.nbytes, written.checksum):
                raise FormatError("shard-differs", "other bytes are read than were written")
            return Reader(source).index_checksum
        finally:
            source.close()


def _counted(tensor: ConvertedTensor) -> tuple[list[int], int, list[Any] | None]:
    survey = tensor.survey
    counts = [survey.nnz, survey.negative_zeros, survey.stored.columns, survey.stored.gaps]
    lost = (
        None
        if tensor.loss is None
        else [number.item() if hasattr(number, "item") else number for number in tensor.loss]
    )
    return [int(count) for count in counts], int(tensor.source_nbytes), lost


def _encoded(fingerprint: str, done: ShardDone) -> bytes:
    said = {"fingerprint": fingerprint, "nbytes": done.nbytes, "index_checksum": done.index_checksum}
    return json.dumps(said | {"tensors": done.tensors}).encode()


def _decoded(state: bytes, fingerprint: str) -> ShardDone | None:
    """What was noted; None if it is of something else. Raises ValueError for what is no note."""
    said = json.loads(state)
    if not isinstance(said, dict) or said.get("fingerprint") != fingerprint:
        return None
    try:
        tensors = {name: (counts, nbytes, lost) for name, (counts, nbytes, lost) in said["tensors"].items()}
        return ShardDone(said["nbytes"], said["index_checksum"], tensors)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("it is no note on a shard") from error


def _whole(place: Place, most: int) -> bytes:
    source = source_of(place)
    try:
        if source.size > most:
            raise ValueError("it is too large")
        return source.read(0, source.size).tobytes()
    finally:
        source.close()
