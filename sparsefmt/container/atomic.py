"""Puts a finished file where the old one was, or leaves the old one alone."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY_SUFFIX = ".sparsefmt-tmp"

_RANDOM_BYTES = 8

_NAME_BYTES = 100
"""How much of the destination's name a temporary name has: file systems allow 255 bytes for all of it."""

_NOT_ON_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""What file systems answer that cannot sync a folder."""


@contextmanager
def replacing(path: str | bytes | os.PathLike[Any]) -> Iterator[BinaryIO]:
    """A binary file to write; when the block ends it takes the name `path`, durably.

    The bytes go to a temporary file of a unique name in the same folder (`.NAME.<random>.sparsefmt-tmp`), which is
    synced to the disk, then renamed, then the folder is synced: at every moment `path` is the whole old file or the
    whole new one. A mapping of the old file stays valid, and so do its other hard links. Symbolic links are followed.
    The new file has the old one's permissions and, where the system allows it, owner; or what the umask gives.

    If the block raises, the temporary file is removed and `path` is untouched. What a writer that was killed has left,
    the next one to the same name removes: a temporary file is locked for as long as its writer lives.

    Raises:
        OSError: it cannot be written; with `path` as the filename. Only where the folder alone could not be synced, the
            new file is there.
        PermissionError: also for an old file that is write-protected, though its folder is not.
    """
    destination = os.fsdecode(path)
    with _naming(destination):
        target, old = _look_at(destination)
        _remove_abandoned(target)
        temporary, descriptor = _create(target, old)
    file = io.BufferedWriter(_NamedFile(descriptor, destination))
    lock = -1
    try:
        lock = os.dup(descriptor)
        yield file
        with _naming(destination):
            file.flush()
            os.fsync(descriptor)
            file.close()
            if fcntl is None:  # open files cannot be renamed
                os.close(lock)
                lock = -1
            os.replace(temporary, target)
    except BaseException:
        # what is left in the buffer is not worth the try, which would fail again on a full disk
        with suppress(OSError):
            file.raw.close()
        with suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        if lock >= 0:
            os.close(lock)
    with _naming(destination):
        _sync_folder(os.path.dirname(target))


class _NamedFile(io.FileIO):
    """A file whose errors have the name that the user knows: those of what is read to be written keep theirs."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "wb")
        self._destination = name

    def write(self, data: Any, /) -> int:
        with _naming(self._destination):
            return super().write(data)


@contextmanager
def _naming(destination: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = destination
        del error.filename2  # the temporary name
        raise


def _look_at(destination: str) -> tuple[str, os.stat_result | None]:
    """The file to replace, links followed, and what it is now, if it is there."""
    if not destination:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    try:
        old = os.stat(destination)
    except FileNotFoundError:
        if os.path.basename(destination) in ("", os.curdir, os.pardir):
            raise IsADirectoryError(errno.EISDIR, "names a folder; a name for the file is missing") from None
        return os.path.realpath(destination), None
    if stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a regular file")
    if not stat.S_ISREG(old.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file, which alone can be replaced safely")
    if not os.access(destination, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, "is write-protected")
    return os.path.realpath(destination), old


def _create(target: str, old: os.stat_result | None) -> tuple[str, int]:
    """A new, locked file beside the target: its name and descriptor."""
    while True:
        temporary = _prefix(target) + secrets.token_hex(_RANDOM_BYTES) + TEMPORARY_SUFFIX
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            # until it has the old file's permissions, nobody else may open it
            descriptor = os.open(temporary, flags, 0o666 if old is None else 0o600)
        except PermissionError as error:
            error.strerror = f"{error.strerror}: its folder must be writable, too"
            raise
        try:
            _lock(descriptor)
            # before it was locked, somebody may have taken it for abandoned
            still_there = os.path.exists(temporary)
            if still_there and old is not None:
                _resemble(temporary, old)
        except BaseException:
            os.close(descriptor)
            os.unlink(temporary)
            raise
        if still_there:
            return temporary, descriptor
        os.close(descriptor)


def _prefix(target: str) -> str:
    """Beginning of the paths of the target's temporary files."""
    folder, name = os.path.split(target)
    while len(os.fsencode(name)) > _NAME_BYTES:
        name = name[:-1]
    return os.path.join(folder, f".{name}.")


def _resemble(temporary: str, old: os.stat_result) -> None:
    new = os.stat(temporary)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid) and hasattr(os, "chown"):
        for owner in (old.st_uid, -1):
            # only root gives files away; others may give them to their groups
            with suppress(OSError):
                os.chown(temporary, owner, old.st_gid)
                break
    os.chmod(temporary, stat.S_IMODE(old.st_mode))


def _lock(descriptor: int) -> None:
    """Mark a temporary file as in use, until its writer closes it or dies, where the file system can."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _remove_abandoned(target: str) -> None:
    """Remove temporary files for this target whose writers have died. What cannot be locked or removed stays."""
    if fcntl is None:
        return
    prefix = _prefix(target)
    ours = re.compile(f"{re.escape(prefix)}[0-9a-f]{{{2 * _RANDOM_BYTES}}}{re.escape(TEMPORARY_SUFFIX)}", re.DOTALL)
    with suppress(OSError):  # a folder that may be written to and not be listed
        for name in os.listdir(os.path.dirname(target)):
            path = os.path.join(os.path.dirname(target), name)
            if ours.fullmatch(path):
                with suppress(OSError):
                    _remove_if_abandoned(path)


def _remove_if_abandoned(temporary: str) -> None:
    # open for writing, since NFS gives no lock otherwise
    descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(temporary)
    finally:
        os.close(descriptor)


def _sync_folder(folder: str) -> None:
    """Make a rename in `folder` durable, where the system can."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # one that may be written to and not be read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_ON_FOLDERS:
            raise
    finally:
        os.close(descriptor)
