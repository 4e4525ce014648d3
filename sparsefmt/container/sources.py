"""Where the bytes of a file come from: a mapping, reads, or memory. All give read-only uint8 arrays."""

from __future__ import annotations

import mmap
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, BinaryIO, Literal, get_args

import numpy as np

from sparsefmt.container import envelope, file_objects
from sparsefmt.container.disk_file import CannotBeMapped, DiskFile
from sparsefmt.errors import FormatError, file_closed
from sparsefmt.layouts.memory import ALIGNMENT, OVERREAD, empty, frozen, padded_copy
from sparsefmt.urls import Url

Backend = Literal["mmap", "pread"]
BACKENDS = get_args(Backend)

_MOST_AT_ONCE = 1 << 24
"""Bytes per system call: enough to be fast, and an interrupt need not wait for long."""


class Source(ABC):
    """Random access to the bytes of one file.

    Attributes:
        size: bytes in the file.
        place: absolute path, or URL, and backend of what was opened by it; None of bytes and of file objects.
        path: that path as it was given, for errors.
        gives_same_memory: whether bytes that are read again are the same memory, and not read anew.
        reads_ahead: whether `expect` does anything.
    """

    size: int
    gives_same_memory: bool = False
    reads_ahead: bool = False
    place: tuple[str | bytes | Url, Backend] | None = None
    path: str | None = None

    @abstractmethod
    def read(self, offset: int, size: int) -> np.ndarray:
        """`size` bytes at `offset`, both inside the file. At offsets that are multiples of 64 the result is aligned to
        64 bytes, and 64 readable bytes follow it. Raises SparsefmtError
        (file-closed) after `close`."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether it was closed. Another thread may close it right after."""

    def forget(self, offset: int, size: int) -> None:  # noqa: B027 (most have nothing to do)
        """Hint that these bytes will not be read again soon. They stay readable."""

    def expect(self, ranges: Iterable[tuple[int, int]], times: int = 1) -> None:  # noqa: B027
        """Hint that these ranges, (offset, size) each, will be read soon. Those that will be several times are asked
        for once, and kept until `forget`."""

    def check_reads(self) -> None:  # noqa: B027
        """From now on, expect after each request of what may change, too, that it is unchanged: for files without
        checksums. All that was read until then is of one content."""

    def expect_unchanged(self) -> None:  # noqa: B027
        """Raise FormatError (file-changed) if the bytes are known to be others now: for who finds them damaged."""

    def another(self) -> Source | None:
        """A source of the same bytes that is closed separately. None if this one is closed, or if keeping the bytes
        would cost more than it saves: for bytes in memory, and on Windows, where nobody could replace the file."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of the file. Arrays that were read stay valid."""


class Memory(Source):
    """Bytes that are in memory, copied once: they could change, and hardly any lie where arrays have to."""

    gives_same_memory = True

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        array = padded_copy(np.frombuffer(data, np.uint8))
        self._hold(array, array.size + OVERREAD)

    def _hold(self, array: np.ndarray, readable: int) -> None:
        """These are the bytes. `readable`: how many can be read from their start on."""
        self.size = array.size
        self._followed = readable - OVERREAD
        self._data: np.ndarray | None = frozen(array)

    def read(self, offset: int, size: int) -> np.ndarray:
        data = self._data  # another thread may close the file
        if data is None:
            raise file_closed(self.path)
        part = data[offset : offset + size]
        # the index and the trailer of a small file are shorter than what kernels may read behind an array
        return part if offset + size <= self._followed else frozen(padded_copy(part))

    @property
    def closed(self) -> bool:
        return self._data is None

    def close(self) -> None:
        self._data = None


class MappedFile(Memory):
    """Bytes of a memory mapping: nothing is copied, pages are read when touched, and the mapping itself goes when the
    last array that looks into it goes.

    Args:
        begin: where in the file the bytes begin, a multiple of 64.

    Raises:
        CannotBeMapped: its file system does not do that.
        OSError: it cannot be opened.
    """

    def __init__(self, file: str | os.PathLike[str] | DiskFile, begin: int = 0) -> None:
        file = file if isinstance(file, DiskFile) else DiskFile(file)
        self._mapping = file.mapped()
        self._file: DiskFile | None = file
        self._begin = begin
        content = np.frombuffer(self._mapping or b"", np.uint8)
        # the rest of the last page can be read, too
        self._hold(content[begin:], -(-content.size // mmap.PAGESIZE) * mmap.PAGESIZE - begin)

    def forget(self, offset: int, size: int) -> None:
        """Take the pages out of this process's memory: what was decoded from them takes their place."""
        if size < mmap.PAGESIZE:
            return
        offset += self._begin
        begin = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        pages = (offset + size - begin) // mmap.PAGESIZE * mmap.PAGESIZE
        mapping = self._mapping  # another thread may close the file
        if pages > 0 and mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            with suppress(OSError, ValueError):
                mapping.madvise(mmap.MADV_DONTNEED, begin, pages)

    def another(self) -> Source | None:
        # read, since a mapping of a file that is truncated later would end the process
        return _read_on(self._file, self._begin)

    def close(self) -> None:
        # the mapping itself goes when the last array that looks into it goes
        self._mapping = self._file = None
        super().close()


class ReadFile(Source):
    """Bytes read into fresh memory, for file systems on which mappings are slow, absent or unsafe.

    Args:
        begin: where in the file the bytes begin.
    """

    def __init__(self, file: str | os.PathLike[str] | DiskFile, begin: int = 0) -> None:
        self._file: DiskFile | None = file if isinstance(file, DiskFile) else DiskFile(file)
        self._begin = begin
        self.size = max(0, self._file.size() - begin)

    def read(self, offset: int, size: int) -> np.ndarray:
        file = self._file  # another thread may close it
        if file is None:
            raise file_closed(self.path)
        data = empty(size, np.dtype(np.uint8))
        room, done = memoryview(data), 0
        while done < size:
            count = file.read_into(self._begin + offset + done, room[done : done + _MOST_AT_ONCE])
            if not count:
                raise FormatError("file-too-short", "the file was cut off while it was read", offset=offset + done)
            done += count
        return frozen(data)

    @property
    def closed(self) -> bool:
        return self._file is None

    def another(self) -> Source | None:
        return _read_on(self._file, self._begin)

    def close(self) -> None:
        self._file = None


def _read_on(file: DiskFile | None, begin: int) -> Source | None:
    return None if file is None or os.name == "nt" else ReadFile(file, begin)


class FileObject(Source):
    """Bytes of a file object that is not a file of the disk, from its position to its end.

    Each read goes there and back again, so that the position stays what it was. Nobody else may use the file object
    while a tensor is read. It is left open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file: BinaryIO | None = file
        self._lock = threading.Lock()
        self._begin = file.tell()
        file.seek(0, os.SEEK_END)
        self.size = max(0, file.tell() - self._begin)
        file.seek(self._begin)

    def read(self, offset: int, size: int) -> np.ndarray:
        try:
            return self._read(offset, size)
        except ValueError:
            # what a file object says whose owner closes it during the read
            if self.closed:
                raise file_closed(self.path) from None
            raise

    def _read(self, offset: int, size: int) -> np.ndarray:
        data = empty(size, np.dtype(np.uint8))
        done = 0
        with self._lock:
            file = self._file
            if file is None or getattr(file, "closed", False):
                raise file_closed(self.path)
            before = file.tell()
            try:
                file.seek(self._begin + offset)
                while done < size:
                    part = file.read(min(size - done, _MOST_AT_ONCE))
                    if not part:
                        raise FormatError(
                            "file-too-short", "the file was cut off while it was read", offset=offset + done
                        )
                    data[done : done + len(part)] = np.frombuffer(part, np.uint8)
                    done += len(part)
            finally:
                file.seek(before)
        return frozen(data)

    @property
    def closed(self) -> bool:
        file = self._file
        return file is None or bool(getattr(file, "closed", False))

    def close(self) -> None:
        self._file = None


def source_of(place: str | os.PathLike[str] | BinaryIO | Url, backend: Backend = "mmap") -> Source:
    """The bytes of a file, mapped where they shall and can be, else read.

    Args:
        place: a path, or a URL; or a binary file object, whose bytes from its position to its end are meant. It is not
            closed, its position stays, and a file of the disk may be closed by its owner.

    Raises:
        TypeError: it is none of these.
        UnsupportedError: a file object that cannot be read at any place.
        FormatError: nothing of ours is where a file object stands.
        OSError: it cannot be opened or read.
        ValueError: another backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be 'mmap' or 'pread', not {backend!r}")
    if isinstance(place, Url):
        from sparsefmt.container.remote_file import RemoteFile

        remote = RemoteFile(place)
        remote.place = place, backend
        return remote
    if file_objects.is_path(place):
        file_objects.expect_no_content(place)
        source = _source_of_path(place, backend)  # type: ignore[arg-type]
        source.place = os.path.abspath(place), backend  # type: ignore[arg-type]
        source.path = os.fsdecode(place)  # type: ignore[arg-type]
        return source
    file_objects.expect_readable(place)
    file: Any = place
    begin = file.tell()
    source = _source_of_object(file, backend, begin)
    # an old position is the usual slip: of what was just written, or looked into
    if begin and source.read(0, min(len(envelope.MAGIC), source.size)).tobytes() != envelope.MAGIC:
        raise FormatError(
            "not-sparsefmt",
            f"no sparsefmt file begins at byte {begin:,}, where the file object stands: seek(0) for one at the start",
            offset=begin,
        )
    return source


def _source_of_path(path: str | os.PathLike[str], backend: Backend) -> Source:
    if backend == "mmap":
        with suppress(CannotBeMapped):
            return MappedFile(path)
    return ReadFile(path)


def _source_of_object(file: BinaryIO, backend: Backend, begin: int) -> Source:
    descriptor = file_objects.real_file(file)
    if descriptor is None:
        return FileObject(file)
    name = getattr(file, "name", "")
    opened = DiskFile(os.fsdecode(name) if isinstance(name, (str, bytes)) else "", os.dup(descriptor))
    if backend == "mmap" and begin % ALIGNMENT == 0:
        with suppress(CannotBeMapped):
            return MappedFile(opened, begin)
    return ReadFile(opened, begin)


def source_of_content(data: bytes | bytearray | memoryview | BinaryIO) -> Source:
    """The bytes given, or those of a file object as `source_of` has them.

    Raises:
        TypeError: it is neither; a path is not.
        as `source_of`.
    """
    if isinstance(data, (str, os.PathLike)):
        raise TypeError(f"load takes the bytes of a file, or an open one: load_file takes a path, such as {data!r}")
    try:
        memoryview(data)  # type: ignore[arg-type]
    except TypeError:
        return source_of(data)  # type: ignore[arg-type]
    return Memory(data)  # type: ignore[arg-type]
