"""The errors of sparsefmt.

There is one base class, so that `except SparsefmtError` catches everything that can be wrong with a file or an
argument. Its subclasses differ in what the caller can do: get an intact file (`FormatError`, `ChecksumError`), get
another version of the library (`UnsupportedError`), or raise a limit (`LimitError`). Each error has a stable `code`
from SPEC.md, so that programs and other implementations can compare faults without comparing sentences.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sparsefmt.urls import Url, shown


class SparsefmtError(ValueError):
    """Base of all errors of this library.

    Attributes:
        code: short stable name of the fault, for example ``"chunk-overlap"``.
        tensor: name of the tensor at fault, or None.
        offset: byte offset in the file where the fault lies, or None.
        path: the file at fault, or None: of bytes, of file objects, and where no file is involved.
    """

    def __init__(
        self, code: str, message: str, *, tensor: str | None = None, offset: int | None = None, path: str | None = None
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.tensor = tensor
        self.offset = offset
        self.path = path

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path is not None and self.path not in self.message else ""
        if self.tensor is not None:
            where += f"tensor {self.tensor!r}: "
        text = f"{where}{self.message} [{self.code}]"
        if self.offset is not None:
            text += f" (at byte {self.offset:,})"
        return text

    def within(self, tensor: str, path: str | None = None) -> SparsefmtError:
        """The same error with the name of the tensor that it is about, and with its file."""
        return type(self)(
            self.code, self.message, tensor=self.tensor or tensor, offset=self.offset, path=self.path or path
        )


@contextmanager
def in_file(place: Any) -> Iterator[None]:
    """Let the errors of a block say to which file they belong, unless they do already.

    Args:
        place: the path or URL. Anything else, such as a file object, has none, and is not named.
    """
    try:
        yield
    except SparsefmtError as error:
        name = place.url if isinstance(place, Url) else place
        if error.path is None and isinstance(name, (str, bytes, os.PathLike)):
            error.path = shown(os.fsdecode(name))
        raise


@contextmanager
def in_tensor(name: str) -> Iterator[None]:
    """Let the errors of a block say to which tensor they belong: those of this library, unless they do already, and
    NotImplementedError, which torch raises for a tensor without data."""
    try:
        yield
    except SparsefmtError as error:
        raise error.within(name) from None
    except NotImplementedError as error:
        raise NotImplementedError(f"tensor {name!r}: {error}") from None


def file_closed(path: str | None = None) -> SparsefmtError:
    """The error for every use of a closed file, also if another thread closes it during a read."""
    return SparsefmtError("file-closed", "the file is closed", path=path)


class FormatError(SparsefmtError):
    """The bytes are not a valid sparsefmt file, or the arrays are not a valid layout."""


class ChecksumError(SparsefmtError):
    """The bytes are not the ones that were written."""


class UnsupportedError(SparsefmtError):
    """The input may be valid, but this version cannot handle it."""


class LimitError(SparsefmtError):
    """The input exceeds a limit of `sparsefmt.limits`, or the memory of the machine."""
