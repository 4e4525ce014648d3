"""Files in object stores and behind other URLs, by fsspec: what is asked of them, and how their errors are told."""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal, NoReturn, TypeVar
from urllib.parse import unquote

from sparsefmt.errors import FormatError, SparsefmtError, UnsupportedError
from sparsefmt.urls import Url, shown, without_secrets

Result = TypeVar("Result")

_IDENTITY = (
    *("ETag", "etag", "generation", "version_id", "VersionId", "md5", "checksum", "blob_id", "created"),
    *("LastModified", "Last-Modified", "Content-MD5", "Digest", "mtime"),
)
"""Where stores say which content an object has."""


_OF_A_COMMIT = re.compile(r"hf://((datasets|spaces)/)?[^/@]+/[^/@]+@[0-9a-f]{40}/")
"""Files of Hugging Face in a commit that is named by its hash."""


class RemoteObject:
    """What a URL names.

    Attributes:
        place: as it was given, with whatever is secret in it.
        name: the URL for messages.

    Raises:
        UnsupportedError: fsspec is not installed, or what it needs for this kind of URL (`remote-library`); or there is
            no such kind (`url-unknown`).
    """

    def __init__(self, place: Url, *, alone: bool = False) -> None:
        """`alone`: with a file system of its own, whose transactions are nobody else's."""
        self.place, self.name = place, shown(place.url)
        try:
            import fsspec
        except ImportError:
            raise UnsupportedError(
                "remote-library", "a URL needs fsspec: pip install 'sparsefmt[remote]'", path=self.name
            ) from None
        own = {"skip_instance_cache": True} if alone else {}
        try:
            self._files, self._path = fsspec.core.url_to_fs(place.url, **own, **place.options)
        except ImportError as error:
            raise UnsupportedError("remote-library", without_secrets(str(error), place), path=self.name) from None
        except ValueError as error:
            raise UnsupportedError("url-unknown", without_secrets(str(error), place), path=self.name) from None

    def info(self) -> Mapping[str, Any]:
        """What the store knows of it now. Raises OSError."""
        with self._telling():
            self._files.invalidate_cache(self._path)
            found: Mapping[str, Any] = self._files.info(self._path)
        if found.get("type") == "directory":
            raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", self.name)
        return found

    @property
    def lists(self) -> bool:
        """Whether its store can tell folders from files. A web server cannot, and gives a page for either."""
        return not {"http", "https"} & {*_names(self._files.protocol)}

    @property
    def is_fixed(self) -> bool:
        """Whether what the URL names can never be replaced."""
        return _OF_A_COMMIT.match(self.place.url) is not None

    def kind(self) -> Literal["file", "folder"] | None:
        """What is there now; None if nothing is. Raises OSError."""
        if not self.lists and self.place.url.endswith("/"):
            return "folder"
        with self._telling():
            self._files.invalidate_cache(self._path)
            try:
                found = self._files.info(self._path)
            except FileNotFoundError as error:
                if error.__cause__ is None or getattr(error.__cause__, "status", 0) == 404:
                    return None
                raise
        return "folder" if found.get("type") == "directory" else "file"

    def entries(self) -> dict[str, bool]:
        """The names in a folder, sorted, and whether each is a folder. None of what is not there. Raises OSError."""
        found = {}
        with self._telling():
            self._files.invalidate_cache(self._path)
            try:
                listed = self._files.ls(self._path, detail=True)
            except FileNotFoundError as error:
                if error.__cause__ is None:
                    return {}
                raise
            folder = self._path.rstrip("/")
            for entry in listed:
                path = entry["name"].rstrip("/")
                name = path.rpartition("/")[2] if self.lists else unquote(path.removeprefix(f"{folder}/"))
                # a store may list the folder itself, as an object of its name; a web page links to whatever it likes
                if path.strip("/") != folder.strip("/") and is_plain_name(name):
                    found[name] = entry.get("type") == "directory"
        return dict(sorted(found.items()))

    def remove(self) -> None:
        """Remove it. Raises OSError."""
        with self._telling():
            self._files.rm_file(self._path)

    def knows_ranges(self, size: int) -> bool:
        """Whether a part of a file of that size can be asked for. Raises OSError."""
        if self.lists:
            return True
        with self._telling(), self._files.open(self._path, "rb", block_size=1, size=size, cache_type="none") as file:
            try:
                file.seek(size - 1)
                return len(file.read(1)) == 1
            except ValueError:
                return False

    def download(self, file: BinaryIO) -> None:
        """Write all of it to a file, a part at a time. Raises OSError."""
        with self._telling():
            self._files.get_file(self._path, file)

    def read(self, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end`; all of the file from servers that know no ranges. Raises OSError."""
        with self._telling():
            return bytes(self._files.cat_file(self._path, start=begin, end=end))

    def read_both(self, first: tuple[int, int], second: tuple[int, int]) -> list[bytes]:
        """Two ranges at once, where the store can. Raises OSError."""
        with self._telling():
            begins, ends = zip(first, second, strict=True)
            return list(map(bytes, self._files.cat_ranges([self._path] * 2, list(begins), list(ends), max_gap=None)))

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """A file to write. The object appears, whole, when the block ends; if it raises, the upload is given up.

        Raises:
            OSError: it cannot be written, or the store has another number of bytes afterwards.
        """
        with self._telling():
            transaction = self._files.transaction
            transaction.__enter__()
        file: _Upload | None = None
        try:
            with self._telling():
                file = _Upload(self._files.open(self._path, "wb"), self._telling)
            yield file  # type: ignore[misc]
            with self._telling():
                file.close()
                transaction.__exit__(None, None, None)
        except BaseException as error:
            with self._quietly():
                transaction.__exit__(type(error), error, None)
            if file is not None:
                with self._quietly():
                    file.give_up()
            raise
        size = self.info().get("size")
        if size != file.written:
            raise OSError(errno.EIO, f"has {size:,} bytes after {file.written:,} were written", self.name)

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """An error while an upload is given up is not worth more than the one that it is given up for."""
        try:
            yield
        except Exception:
            return

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell the errors of a store's library as what they are for a file, without what is secret in the URL."""
        try:
            yield
        except SparsefmtError:
            raise
        except FileNotFoundError as error:
            cause = error.__cause__
            if isinstance(cause, Exception) and getattr(cause, "status", 404) != 404:
                refused = getattr(cause, "status", 0) in (401, 403)
                self._tell(PermissionError if refused else OSError, errno.EACCES if refused else errno.EIO, cause)
            if isinstance(cause, OSError):  # a server that cannot be reached
                self._tell(OSError, errno.EIO, cause)
            raise FileNotFoundError(errno.ENOENT, "no such object", self.name) from None
        except NotImplementedError:
            said = "this kind of URL can be read, and not written to"
            raise UnsupportedError("url-read-only", said, path=self.name) from None
        except PermissionError as error:
            self._tell(PermissionError, errno.EACCES, error)
        except Exception as error:
            refused = "credential" in f"{type(error).__name__} {error}".lower()
            self._tell(PermissionError if refused else OSError, errno.EACCES if refused else errno.EIO, error)

    def _tell(self, kind: type[OSError], number: int, error: Exception) -> NoReturn:
        text = without_secrets(str(error), self.place) or "no reason was given"
        raise kind(number, f"{type(error).__name__}: {text}", self.name) from None


class _Upload(io.RawIOBase):
    """A file of fsspec that is written to, and how many bytes that were."""

    def __init__(self, file: Any, telling: Callable[[], Any]) -> None:
        self._file, self._telling, self.written = file, telling, 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        with self._telling():
            self._file.write(view)
        self.written += view.nbytes
        return view.nbytes

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def give_up(self) -> None:
        """Let what has been uploaded be forgotten, and nothing more be uploaded when this is freed."""
        try:
            self._file.discard()
        finally:
            self._file.forced = self._file.closed = True
            self._file = io.BytesIO()


def is_plain_name(name: str) -> bool:
    """Whether this is the name of something in a folder, and no way out of it."""
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def _names(protocol: str | tuple[str, ...]) -> tuple[str, ...]:
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def identity_of(info: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells one content of an object from another, as far as its store says it."""
    return (info.get("size"), *(info.get(name) for name in _IDENTITY))


def changed(name: str) -> FormatError:
    return FormatError("file-changed", "the object has been replaced while it was read", path=name)
