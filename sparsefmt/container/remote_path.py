"""RemotePath: a file or folder behind a URL, with what of pathlib.Path checkpoints need."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import numpy as np

from sparsefmt.container.remote import RemoteObject, identity_of
from sparsefmt.container.remote_file import Ends, RemoteFile
from sparsefmt.container.sources import ReadFile, Source
from sparsefmt.urls import Url, as_place, shown

WITHOUT_TAIL = Ends(1 << 18, 0)
"""What is read at once of files that begin with what is needed, as safetensors and texts do."""

_FILES = (".json", ".safetensors", ".sparsefmt")
"""How files are called, and folders are not: those end with a slash if they are."""

MOST_AT_ONCE = 1 << 24
"""Bytes that are held of a file that is copied."""


class _Stat(NamedTuple):
    st_size: int


class RemotePath(Url):
    """A Url with methods of pathlib.Path, which do there what they do on the disk.

    As a text, it is the URL without what may be secret, for messages. Each method that asks the store raises OSError,
    and what opening a URL raises (`RemoteObject`).
    """

    known: Literal["file", "folder"] | None = None
    """What it was when its folder was listed."""

    _head: RemoteFile | None = None

    def __str__(self) -> str:
        return shown(self.url)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __lt__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._key < other._key

    def __reduce__(self) -> tuple[Any, ...]:
        return RemotePath, (self.url, self.options)

    @property
    def _key(self) -> str:
        return self.url.rstrip("/")

    @property
    def is_web(self) -> bool:
        """Whether a web server has it, which takes %41 in the path for an A."""
        return self.url.rpartition("::")[2].startswith(("http://", "https://"))

    @property
    def _inside(self) -> PurePosixPath:
        """What stands behind the scheme."""
        inner = self.url.rpartition("::")[2]
        if self.is_web:
            parts = urlsplit(inner)
            return PurePosixPath(parts.netloc + unquote(parts.path))
        return PurePosixPath(inner.partition("://")[2])

    @property
    def name(self) -> str:
        return self._inside.name

    @property
    def stem(self) -> str:
        return self._inside.stem

    @property
    def suffix(self) -> str:
        return self._inside.suffix

    @property
    def parent(self) -> RemotePath:
        return self._with_path(lambda path: path.rstrip("/").rpartition("/")[0] or "/")

    def __truediv__(self, below: str | PurePath) -> RemotePath:
        """What lies below a folder. Each part is a name; it never leads anywhere else."""
        parts = PurePosixPath(below.as_posix() if isinstance(below, PurePath) else below).parts
        if any(part in ("/", "..") for part in parts):
            raise ValueError(f"{str(below)!r} is not below {self}")
        names = [quote(part, safe="") if self.is_web else part for part in parts]
        return self._with_path(lambda path: "/".join([path.rstrip("/"), *names]))

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def with_suffix(self, suffix: str) -> RemotePath:
        return self.with_name(self.stem + suffix)

    def _with_path(self, change: Any) -> RemotePath:
        outer, chained, inner = self.url.rpartition("::")
        if not self.is_web:  # what looks like a query is a part of a name
            scheme, mark, path = inner.partition("://")
            host, slash, rest = path.partition("/")
            return RemotePath(outer + chained + scheme + mark + host + change(slash + rest), self.options)
        parts = urlsplit(inner)
        return RemotePath(outer + chained + urlunsplit(parts._replace(path=change(parts.path))), self.options)

    def resolve(self) -> RemotePath:
        return self

    def looked_at(self) -> RemotePath:
        """The same, which knows what it is, as far as its name does not say it."""
        found = RemotePath(self.url, self.options)
        is_named = self.suffix in _FILES and not self.url.endswith("/")
        found.known = self.known or ("file" if is_named else found._asked())
        return found

    def _asked(self) -> Literal["file", "folder"] | None:
        return self.known or RemoteObject(self).kind()

    def exists(self) -> bool:
        return RemoteObject(self).kind() is not None

    def is_dir(self) -> bool:
        return self._asked() == "folder"

    def is_file(self) -> bool:
        return self._asked() == "file"

    def iterdir(self) -> Iterator[RemotePath]:
        """What is in a folder, sorted; nothing in one that is not there."""
        for name, is_folder in RemoteObject(self).entries().items():
            entry = self / name
            entry.known = "folder" if is_folder else "file"
            yield entry

    def stat(self) -> _Stat:
        return _Stat(int(RemoteObject(self).info().get("size") or 0))

    def identity(self) -> object:
        """What is another object once it has been replaced by others, as far as its store tells them apart."""
        return identity_of(RemoteObject(self).info())

    def read_bytes(self) -> bytes:
        opened = self.opened()
        try:
            return opened.read(0, opened.size).tobytes()
        finally:
            opened.close()

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            RemoteObject(self).remove()
        except FileNotFoundError:
            if not missing_ok:
                raise

    def head(self, size: int) -> bytes:
        """The first bytes. What was read with them is there for who opens it next."""
        if self._head is None:
            self._head = self.opened()
        return self._head.read(0, min(size, self._head.size)).tobytes()

    def opened(self) -> RemoteFile:
        """The file, to be read. What is read at once is what files of its name begin or end with."""
        opened, self._head = self._head, None
        return opened or RemoteFile(self, None if self.suffix == ".sparsefmt" else WITHOUT_TAIL)


Place = Path | RemotePath
"""Where a file or a folder is."""


def place_of(given: str | os.PathLike[str] | Url, options: Mapping[str, Any] | None = None) -> Place:
    """The place that a user gives.

    Args:
        options: of fsspec's file system, for a URL.

    Raises:
        ValueError: there are options, and it is not a URL.
    """
    if isinstance(given, RemotePath):
        return given
    place = as_place(given, options)
    return RemotePath(place.url, place.options) if isinstance(place, Url) else Path(place)


def reading(place: Place) -> Source:
    """The bytes of a file, read and not mapped, so that memory use is what is being worked on."""
    return place.opened() if isinstance(place, RemotePath) else ReadFile(place)


def head_of(place: Place, size: int) -> bytes:
    """The first bytes of a file; all of a shorter one."""
    if isinstance(place, RemotePath):
        return place.head(size)
    with open(place, "rb") as file:
        return file.read(size)


def is_same(one: Place, other: Place) -> bool:
    """Whether two places, the second of which is there, are one."""
    if isinstance(one, RemotePath) or isinstance(other, RemotePath):
        return one == other
    return os.path.samefile(one, other)


def can_list(folder: Place) -> bool:
    """Whether the files of a folder can be listed. A web server may show a page of links, or nothing."""
    return not isinstance(folder, RemotePath) or not folder.is_web


def is_there(place: Place) -> bool:
    """Whether something is there; of the disk, also a link that leads nowhere."""
    return place.exists() if isinstance(place, RemotePath) else os.path.lexists(place)


def is_protected(place: Place) -> bool:
    """Whether something is there that may not be replaced, though its folder may be written to."""
    return not isinstance(place, RemotePath) and place.exists() and not os.access(place, os.W_OK)


def copy(source: Place, sink: Any) -> None:
    """Write the bytes of a file to anything with `write`, a part at a time."""
    opened = reading(source)
    opened.check_reads()
    try:
        for offset in range(0, opened.size, MOST_AT_ONCE):
            sink.write(np.asarray(opened.read(offset, min(MOST_AT_ONCE, opened.size - offset))).data)
    finally:
        opened.close()
