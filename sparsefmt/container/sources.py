"""Where the bytes of a file come from: a mapping, reads, or memory. All give read-only uint8 arrays."""

from __future__ import annotations

import mmap
import os
import threading
from abc import ABC, abstractmethod
from contextlib import suppress

import numpy as np

from sparsefmt.errors import FormatError
from sparsefmt.layouts.memory import ALIGNMENT, empty, frozen, padded_copy

_MOST_AT_ONCE = 1 << 24
"""Bytes per system call: enough to be fast, little beside the array it is copied to."""


class Source(ABC):
    """Random access to the bytes of one file.

    Attributes:
        size: bytes in the file.
    """

    size: int

    @abstractmethod
    def read(self, offset: int, size: int) -> np.ndarray:
        """`size` bytes at `offset`, both inside the file. At offsets that are multiples of 64 the result is aligned to
        64 bytes, and 64 readable bytes follow it if the file has them there. Raises ValueError after `close`."""

    def forget(self, offset: int, size: int) -> None:  # noqa: B027 (most have nothing to do)
        """Say that these bytes were read for the last time for now. They stay readable."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file. Arrays that were read stay valid."""


class Memory(Source):
    """Bytes that are in memory. `bytes` are used as they are; anything that could change is copied once."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        array = np.frombuffer(data, np.uint8)
        if type(data) is not bytes or array.ctypes.data % ALIGNMENT:
            array = padded_copy(array)
        self.size = array.size
        self._data: np.ndarray | None = frozen(array)

    def read(self, offset: int, size: int) -> np.ndarray:
        if self._data is None:
            raise ValueError("the file is closed")
        return self._data[offset : offset + size]

    def close(self) -> None:
        self._data = None


class MappedFile(Memory):
    """Bytes of a memory mapping: nothing is copied, pages are read when touched, and the mapping itself goes when the
    last array that looks into it goes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            # an empty file cannot be mapped
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else None
        self._data = np.frombuffer(self._mapping or b"", np.uint8)

    def forget(self, offset: int, size: int) -> None:
        """Take the pages out of this process's memory: what was decoded from them takes their place."""
        begin = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        pages = (offset + size - begin) // mmap.PAGESIZE * mmap.PAGESIZE
        mapping = self._mapping  # another thread may close the file
        if pages > 0 and mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            with suppress(OSError, ValueError):
                mapping.madvise(mmap.MADV_DONTNEED, begin, pages)

    def close(self) -> None:
        # the mapping itself goes when the last array that looks into it goes
        self._mapping = None
        super().close()


class ReadFile(Source):
    """Bytes read into fresh memory, for file systems on which mappings are slow, absent or unsafe."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by close)
        self._lock = threading.Lock()
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, size: int) -> np.ndarray:
        data = empty(size, np.dtype(np.uint8))
        done = 0
        while done < size:
            part = self._read_some(offset + done, min(size - done, _MOST_AT_ONCE))
            if not part:
                raise FormatError("file-too-short", "the file was cut off while it was read", offset=offset + done)
            data[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
        return frozen(data)

    def _read_some(self, offset: int, size: int) -> bytes:
        if self._file.closed:
            raise ValueError("the file is closed")
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.read(size)

    def close(self) -> None:
        self._file.close()
