"""How much a file may decode to. Zeros take next to nothing, so a valid file of a kilobyte can decode to a terabyte."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real

from sparsefmt.errors import LimitError

FLOOR = 1 << 30
"""1 GiB, which any file may decode to."""

RATIO = 1024
"""Times its size that a file may decode to. A pruned model decodes to ten times its size, or to a hundred."""


CODE = "decoded-bytes"
"""Of the error for a file that would take more."""

_ARGUMENT = "max_decoded_bytes"
"""What raises the limit, in Python."""


class Budget:
    """The most bytes that may be decoded at a time. It is compared with what the index says, before memory is taken.

    Attributes:
        limit: bytes.
    """

    def __init__(self, file_bytes: int, limit: int | None = None, path: str | None = None) -> None:
        """
        Args:
            limit: None for FLOOR, or RATIO times the size of the file if that is more.
            path: of the file, for errors.
        """
        if limit is not None and not (isinstance(limit, Real) and limit >= 0):
            raise ValueError(f"{_ARGUMENT} must be a number of bytes, 0 or more, not {limit!r}")
        self.limit = max(FLOOR, RATIO * file_bytes) if limit is None else limit
        self._file_bytes = file_bytes
        self._path = path

    def expect(self, nbytes: int, tensor: str | None = None, *, limit: int | None = None) -> None:
        """Raise LimitError if these bytes, of one tensor or of several, are too many. limit: in place of the usual."""
        limit = self.limit if limit is None else limit
        if nbytes > limit:
            raise LimitError(
                CODE,
                f"this file of {self._file_bytes:,} bytes would take {nbytes:,} in memory, over the limit of"
                f" {limit:,}: raise {_ARGUMENT} if you trust it",
                tensor=tensor,
                path=self._path,
            )

    def account(self) -> Account:
        """An account for one call that takes memory more than once."""
        return Account(self)


class Account:
    """What one call takes, array after array, all together within the budget. Safe to use from many threads."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._taken = 0

    def take(self, nbytes: int, tensor: str | None = None) -> None:
        """Say that so many bytes are about to be allocated. Raises LimitError if they are too many by now."""
        with self._lock:
            self._budget.expect(self._taken + nbytes, tensor)
            self._taken += nbytes

    def give_back(self, nbytes: int) -> None:
        """Say that so many bytes that were taken are not needed after all."""
        with self._lock:
            self._taken -= nbytes


@contextmanager
def calling_it(argument: str) -> Iterator[None]:
    """Let the errors of a budget name what raises the limit for this caller, where that is not `max_decoded_bytes`."""
    try:
        yield
    except LimitError as error:
        if error.code == CODE:
            # the same error, which may have the name of its file as a note
            error.message = error.message.replace(f"raise {_ARGUMENT} ", f"raise {argument} ")
        raise
