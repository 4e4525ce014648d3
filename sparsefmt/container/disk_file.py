"""A file of the disk, open for reading: what the system does with its descriptor."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sparsefmt.container.atomic import file_type_of

_NOT_MAPPED = {errno.ENODEV, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems answer that cannot map files, as some network and FUSE file systems do."""


class CannotBeMapped(OSError):
    """The file system of a file cannot map it. Reading may work."""


class DiskFile:
    """A regular file, open until the last who uses it lets go.

    Args:
        descriptor: of the file if it is open already; it is ours from then on.

    If another thread closed the descriptor during a read, its number could be reused by another file, and the read
    would go there.

    Raises:
        OSError: it cannot be opened, or is not a regular file: to open a pipe would wait for its other end.
    """

    descriptor = -1
    # here, since what is not a path fails before anything is set, and is deleted all the same

    def __init__(self, path: str | os.PathLike[str], descriptor: int | None = None) -> None:
        self._path = os.fspath(path)
        self._lock = threading.Lock()
        if descriptor is None:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        self.descriptor = descriptor
        mode = os.fstat(self.descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(
                errno.EISDIR,
                "is a folder, not a file: give one of its files, or the folder to sparsefmt.torch.load_into",
                self._path,
            )
        if not stat.S_ISREG(mode):
            remedy = "read it to its end and give sparsefmt.load its bytes"
            raise OSError(errno.EINVAL, f"is {file_type_of(mode)}, not a regular file: {remedy}", self._path)

    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def mapped(self) -> mmap.mmap | None:
        """A mapping of the whole file; None of an empty one, which cannot be mapped.

        Raises:
            CannotBeMapped: its file system does not do that.
            OSError: something else is wrong with it.
        """
        with self._naming():
            try:
                return mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ) if self.size() else None
            except OSError as error:
                if error.errno in _NOT_MAPPED:
                    raise CannotBeMapped(error.errno, error.strerror) from None
                raise

    def read_some(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes; none at the end of the file."""
        with self._naming():
            if hasattr(os, "pread"):
                return os.pread(self.descriptor, size, offset)
            with self._lock:
                os.lseek(self.descriptor, offset, os.SEEK_SET)
                return os.read(self.descriptor, size)

    def read_into(self, offset: int, room: memoryview) -> int:
        """Fill the beginning of writable bytes, without a copy where the system can. How many; 0 at the end of the
        file."""
        if not hasattr(os, "preadv"):
            part = self.read_some(offset, len(room))
            room[: len(part)] = part
            return len(part)
        with self._naming():
            return os.preadv(self.descriptor, [room], offset)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """What the system cannot do with a descriptor, it says without the name of the file."""
        try:
            yield
        except OSError as error:
            error.filename = self._path
            raise

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
