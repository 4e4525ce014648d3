"""The errors of sparsefmt.

There is one base class, so that `except SparsefmtError` catches everything that can be wrong with a file or an
argument. Its subclasses differ in what the caller can do: get an intact file (`FormatError`, `ChecksumError`), get
another version of the library (`UnsupportedError`), or raise a limit (`LimitError`). Each error has a stable `code`
from SPEC.md, so that programs and other implementations can compare faults without comparing sentences.
"""

from __future__ import annotations


class SparsefmtError(ValueError):
    """Base of all errors of this library.

    Attributes:
        code: short stable name of the fault, for example ``"chunk-overlap"``.
        tensor: name of the tensor at fault, or None.
        offset: byte offset in the file where the fault lies, or None.
    """

    def __init__(self, code: str, message: str, *, tensor: str | None = None, offset: int | None = None) -> None:
        super().__init__(code, message, tensor, offset)
        self.code = code
        self.message = message
        self.tensor = tensor
        self.offset = offset

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.code, self.message, self.tensor, self.offset))

    def __str__(self) -> str:
        where = ""
        if self.tensor is not None:
            where += f"tensor {self.tensor!r}: "
        text = f"{where}{self.message} [{self.code}]"
        if self.offset is not None:
            text += f" (at byte {self.offset:,})"
        return text

    def within(self, tensor: str) -> SparsefmtError:
        """The same error with the name of the tensor that it is about."""
        return type(self)(self.code, self.message, tensor=self.tensor or tensor, offset=self.offset)


def file_closed(what: str = "the file") -> SparsefmtError:
    """The error for every use of a closed file, also if another thread closes it during a read."""
    return SparsefmtError("file-closed", f"{what} is closed")


def _rebuild(kind: type[SparsefmtError], code: str, message: str, tensor: str | None, offset: int | None) -> object:
    return kind(code, message, tensor=tensor, offset=offset)


class FormatError(SparsefmtError):
    """The bytes are not a valid sparsefmt file, or the arrays are not a valid layout."""


class ChecksumError(SparsefmtError):
    """The bytes are not the ones that were written."""


class UnsupportedError(SparsefmtError):
    """The input may be valid, but this version cannot handle it."""


class LimitError(SparsefmtError):
    """The input exceeds a limit of `sparsefmt.limits`, or the memory of the machine."""
