"""Puts a finished file where the old one was, or leaves the old one alone."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

TEMPORARY_SUFFIX = ".sparsefmt-tmp"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write; when the block ends it takes the name `path`, durably.

    The bytes go to a temporary file of a unique name in the same folder (`.NAME.<random>.sparsefmt-tmp`), which is
    synced to the disk, then renamed, then the folder is synced: at every moment `path` is the whole old file or the
    whole new one. A mapping of the old file stays valid. If the block raises, the temporary file is removed and `path`
    is untouched. Symbolic links are followed. The new file has the old one's permissions, or what the umask gives.
    """
    target = os.path.realpath(os.fspath(path))
    permissions = None
    with suppress(FileNotFoundError):
        status = os.stat(target)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
        permissions = stat.S_IMODE(status.st_mode)
    folder, name = os.path.split(target)
    # a long name is cut, so that the temporary name is no longer than file systems allow
    temporary = os.path.join(folder, f".{name[:100]}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(descriptor, "wb") as file:
            if permissions is not None:
                os.chmod(temporary, permissions)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, temporary):
            # "no space left" shall say for which file, by the name that the user knows
            error.filename, error.filename2 = os.fspath(path), None
        raise
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Make a rename in `folder` durable, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
