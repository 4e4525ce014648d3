"""A file of a checkpoint, as the client has seen it and a worker opens it: the same file, or an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import xxhash

from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.folding import FoldedFile, Group
from sparsefmt.checkpoints.formats import FileFormat
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.container.remote_path import Place, RemotePath
from sparsefmt.errors import FormatError, SparsefmtError, in_file


@dataclass(frozen=True)
class SourceFile:
    """A file of the source, as the client has seen it.

    Attributes:
        called: its path as the client's user gave it, for messages.
        header: a checksum of its size and of its header: names, dtypes, shapes and metadata.
        stamp: when it was last changed, or what its store says in place of that.
        folding: how it is folded.
        max_decoded_bytes: as of a Checkpoint.
    """

    place: Place
    called: str
    file_format: FileFormat
    header: str
    stamp: str
    folding: Folding | None = None
    max_decoded_bytes: int | None = None

    @classmethod
    def of(cls, file: TensorFile, file_format: FileFormat) -> SourceFile:
        inner, folding = file, None
        if isinstance(file, FoldedFile):
            inner = file.inner
            elsewhere = {part: cls.of(other, file_format) for part, other in file.elsewhere.items()}
            folding = Folding(tuple(file.groups), elsewhere, file.dropped)
        place, header, stamp = seen_by_all(inner.path), header_checksum(inner), _stamp_of(inner.path)
        limit = inner.reader.budget.limit if isinstance(inner, SparsefmtFile) else None
        return cls(place, str(inner.path), file_format, header, stamp, folding, limit)

    @contextmanager
    def opened(self) -> Iterator[TensorFile]:
        """The file, open. Raises FormatError if it is not the one that the client has seen."""
        with ExitStack() as stack:
            file = stack.enter_context(self._opened_alone())
            if self.folding is not None:
                parts = self.folding.elsewhere
                others = {place: stack.enter_context(place.opened()) for place in set(parts.values())}
                elsewhere = {part: others[place] for part, place in parts.items()}
                file = FoldedFile(file, self.folding.groups, elsewhere, self.folding.dropped)
            yield file

    @contextmanager
    def _opened_alone(self) -> Iterator[TensorFile]:
        with Checkpoint(self.place, [self.file_format], self.max_decoded_bytes) as checkpoint:
            (file,) = checkpoint.files
            if header_checksum(file) != self.header or _stamp_of(self.place) != self.stamp:
                raise FormatError("file-changed", "it has been replaced since this began", path=str(self.place))
            yield file

    @contextmanager
    def called_by_client(self) -> Iterator[None]:
        """Let the errors of a block name this file, as the client calls it, unless they name another one."""
        try:
            with in_file(self.place):
                yield
        except SparsefmtError as error:
            self.rename_in(error)
            raise

    def rename_in(self, error: SparsefmtError) -> None:
        """Let an error of this file, or of one with parts of it, name it as the client's user does."""
        for file in (self, *(self.folding.elsewhere.values() if self.folding else ())):
            if error.path == str(file.place):
                error.path = file.called
                return


@dataclass(frozen=True)
class Folding:
    """What makes a FoldedFile of a file: its attributes, with files of the source in place of open ones."""

    groups: tuple[Group, ...]
    elsewhere: dict[str, SourceFile] = field(hash=False)
    dropped: frozenset[str]


def seen_by_all(place: Place) -> Place:
    """The same place for processes with another working directory."""
    return place if isinstance(place, RemotePath) else place.absolute()


def header_checksum(file: TensorFile) -> str:
    """A checksum of the size of a file and of all that its header says."""
    ranges = getattr(file, "tensors", {})
    said: list[Any] = [file.nbytes, sorted(file.metadata.items()), sorted(file.aliases.items())]
    if isinstance(file, SparsefmtFile):
        said.append(file.reader.index_checksum)
    else:
        for name in file.names:
            rows = file.rows_of(name)
            said.append([name, rows.dtype.name, rows.shape, getattr(ranges.get(name), "begin", 0)])
    return xxhash.xxh3_128_hexdigest(json.dumps(said).encode())


def _stamp_of(place: Place) -> str:
    if isinstance(place, RemotePath):
        return repr(place.identity())
    return str(place.stat().st_mtime_ns)
