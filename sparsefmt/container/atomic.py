"""Puts a finished file where the old one was, or leaves the old one alone."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
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
    temporary = ""
    raw: _NamedFile | None = None
    lock: io.FileIO | None = None
    # An interrupt may come between any two steps. So the name is known before the file is made, and every descriptor
    # has an owner from the beginning: what is not removed here is at least not locked any more, and the next one does.
    try:
        with _naming(destination):
            while raw is None:
                temporary = _prefix(target) + secrets.token_hex(_RANDOM_BYTES) + TEMPORARY_SUFFIX
                # until it has the old file's permissions, nobody else may open it
                raw = _create(temporary, 0o666 if old is None else 0o600, destination)
            lock = _owned(os.dup, raw.fileno())
            if old is not None:
                _resemble(temporary, old)
        file = io.BufferedWriter(raw)
        yield file
        with _naming(destination):
            file.flush()
            os.fsync(raw.fileno())
            file.close()
            if fcntl is None:  # open files cannot be renamed
                lock.close()
            os.replace(temporary, target)
    except BaseException:
        try:
            with suppress(OSError):
                if raw is not None:
                    # what is left in the buffer is not worth the try, which would fail again on a full disk
                    raw.close()
                if lock is not None and fcntl is None:
                    lock.close()
        finally:
            with suppress(OSError):
                os.unlink(temporary)
        raise
    finally:
        if lock is not None:
            lock.close()
    with _naming(destination):
        _sync_folder(os.path.dirname(target))


def _owned(opening: Callable[..., int], *arguments: Any) -> io.FileIO:
    """The descriptor that `opening(*arguments)` makes, as a file that closes it when it is no longer used.

    Nothing can come between making the descriptor and giving it its owner, since both happen in one call of `next`.
    """
    return next(map(io.FileIO, map(opening, *([argument] for argument in arguments)), ["wb"]))


class _NamedFile(io.FileIO):
    """A file whose errors have the name that the user knows: those of what is read to be written keep theirs.

    It is written from its beginning to its end. The disk begins with what is there while more is made, so that `fsync`
    in the end need not wait for all of it.
    """

    def __init__(self, path: str, mode: int, destination: str) -> None:
        self._destination = destination
        self._written = self._begun = 0
        super().__init__(path, "xb", opener=partial(os.open, mode=mode))

    def write(self, data: Any, /) -> int:
        with _naming(self._destination):
            count = super().write(data)
        self._written += count or 0
        if self._written - self._begun >= _BEGIN_BYTES:
            _begin_writing(self.fileno(), self._begun, self._written - self._begun)
            self._begun = self._written
        return count


_BEGIN_BYTES = 1 << 23
"""Bytes that are written to the system before the disk is asked to begin with them."""


def _begin_writing(descriptor: int, offset: int, size: int) -> None:
    """Let the disk begin with a part of a file, and do not wait for it. Errors of the disk are for `fsync` to say."""
    begin = _sync_file_range()
    if begin is not None:
        begin(descriptor, offset, size, _SYNC_FILE_RANGE_WRITE)


_SYNC_FILE_RANGE_WRITE = 2


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """The call of Linux, which Python does not have; None elsewhere."""
    if sys.platform != "linux":
        return None
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return call


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
        raise OSError(
            errno.EINVAL, f"is {file_type_of(old.st_mode)}, not a regular file, which alone can be replaced safely"
        )
    if not os.access(destination, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, "is write-protected")
    return os.path.realpath(destination), old


def file_type_of(mode: int) -> str:
    """In words, what something is that is not a regular file."""
    types = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return types.get(stat.S_IFMT(mode), "something else")


def _create(temporary: str, mode: int, destination: str) -> _NamedFile | None:
    """A new, locked file of this name; None if the name is taken, or the file was taken for an abandoned one."""
    try:
        file = _NamedFile(temporary, mode, destination)
    except FileExistsError:
        return None
    except PermissionError as error:
        error.strerror = f"{error.strerror}: its folder must be writable, too"
        raise
    _lock(file.fileno())
    if not os.path.exists(temporary):  # somebody has removed it before it was locked
        file.close()
        return None
    return file


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
    with _owned(os.open, temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(temporary)


def _sync_folder(folder: str) -> None:
    """Make a rename in `folder` durable, where the system can."""
    if os.name == "nt":
        return
    descriptors: list[int] = []
    try:
        try:
            # opened and noted in one step, so that no interrupt can come between; file objects do not take folders
            descriptors.extend(map(os.open, [folder], [os.O_RDONLY]))
        except PermissionError:  # one that may be written to and not be read
            return
        os.fsync(descriptors[0])
    except OSError as error:
        if error.errno not in _NOT_ON_FOLDERS:
            raise
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
