"""Binary file objects of others: what can be read or written through one, and what to say where it cannot."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from sparsefmt.container import envelope
from sparsefmt.container.atomic import file_type_of, replacing
from sparsefmt.errors import SparsefmtError, UnsupportedError
from sparsefmt.urls import Url, shown

Path = str | os.PathLike[str]


def is_path(place: Any) -> bool:
    """Whether this is the name of a file, rather than a file object or a mistake."""
    return isinstance(place, (str, bytes, os.PathLike))


def name_of(place: Any) -> str:
    """What to call a path or a file object in a message."""
    name = os.fspath(place) if is_path(place) else getattr(place, "url", getattr(place, "name", None))
    name = shown(name) if isinstance(name, str) else name
    return repr(name) if isinstance(name, (str, bytes)) else f"the {type(place).__name__}"


def expect_readable(file: Any) -> None:
    """Refuse what is not a binary file that can be read at any place.

    Raises:
        TypeError: it is not a binary file object.
        UnsupportedError: it cannot be read, or not at any place.
    """
    if isinstance(file, (bytearray, memoryview)):
        raise TypeError("these are bytes, not a path or a file: sparsefmt.load takes them")
    if not all(callable(getattr(file, method, None)) for method in ("read", "seek", "tell")):
        raise TypeError(f"a path or an open binary file is needed, not {type(file).__name__}")
    _expect_open(file)
    _expect_binary(file, "rb")
    if not _can(file, "readable"):
        raise UnsupportedError("file-object", f"{name_of(file)} is not open for reading: open it with mode 'rb'")
    if not _can(file, "seekable"):
        raise UnsupportedError(
            "file-object", f"{name_of(file)} cannot be read at any place, as a pipe cannot: sparsefmt.load(file.read())"
        )


def real_file(file: BinaryIO) -> int | None:
    """Descriptor of the file of the disk whose bytes a file object reads, if it is nothing more than that."""
    raw = getattr(file, "raw", None) if isinstance(file, (io.BufferedReader, io.BufferedRandom)) else file
    # not what has a descriptor: gzip.GzipFile has that of the compressed bytes
    if type(raw) is not io.FileIO or not hasattr(os, "pread"):
        return None
    if isinstance(file, io.BufferedRandom):
        file.flush()
    descriptor = raw.fileno()
    return descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


@contextmanager
def destination(place: Path | BinaryIO | Url) -> Iterator[BinaryIO]:
    """A file to write: one that takes the name `place` once it is whole, or the file object given, left open.

    Raises:
        TypeError: it is neither.
        UnsupportedError: a file that is not open for writing.
        OSError: what is there is not a file that can be replaced, and what `replacing` raises.
    """
    if isinstance(place, Url):
        from sparsefmt.container.remote import RemoteObject

        with RemoteObject(place, alone=True).writing() as file:
            yield file
        return
    if is_path(place):
        _expect_replaceable(place)
        with replacing(place) as file:  # type: ignore[arg-type]
            yield file
        return
    sink: Any = place
    if not callable(getattr(sink, "write", None)):
        raise TypeError(f"a path or an open binary file is needed to save to, not {type(sink).__name__}")
    _expect_open(sink)
    _expect_binary(sink, "wb")
    if not _can(sink, "writable"):
        raise UnsupportedError("file-object", f"{name_of(sink)} is not open for writing: open it with mode 'wb'")
    yield sink
    if callable(getattr(sink, "flush", None)):
        sink.flush()


def expect_no_content(path: Any) -> None:
    """Refuse the bytes of a file where its name is wanted."""
    if isinstance(path, bytes) and path.startswith(envelope.MAGIC):
        raise TypeError("these are the bytes of a file, not its name: sparsefmt.load takes them")


def _expect_replaceable(path: Any) -> None:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(
            errno.EINVAL,
            f"is {file_type_of(mode)}, not a regular file, which alone can be replaced: open it with mode 'wb' and save"
            " to the open file",
            os.fspath(path),
        )


def _expect_open(file: Any) -> None:
    if getattr(file, "closed", False) is True:
        raise SparsefmtError("file-closed", f"{name_of(file)} is closed")


def _expect_binary(file: Any, mode: str) -> None:
    if isinstance(file, io.TextIOBase) or isinstance(getattr(file, "file", None), io.TextIOBase):
        raise TypeError(f"{name_of(file)} is a text file: open it with mode {mode!r}")


def _can(file: Any, what: str) -> bool:
    """What a file object says of itself; those that say nothing are tried."""
    asked = getattr(file, what, None)
    return bool(asked()) if callable(asked) else True
