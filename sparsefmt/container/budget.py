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
"""Times its size that a file may decode to. A pruned network decodes to ten times its size, or to a hundred."""


CODE = "decoded-bytes"
"""Of the error for a file that would take more."""

_ARGUMENT = "max_decoded_bytes"
"""What raises the limit, in Python."""


class Budget:
    """The most bytes that may be decoded at a time. Safe to use from many threads.

    The open file has it, and hands it on to what is made of the file. Whoever is about to allocate memory for a tensor
    calls `ask`. Nobody else compares anything with the limit.

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

    def allows(self, nbytes: float) -> bool:
        """Whether so many bytes are within the limit by themselves."""
        return bool(nbytes <= self.limit)

    def ask(self, nbytes: int, tensor: str | None = None) -> None:
        """Ask before so many bytes are allocated, for one tensor or for several. Raises LimitError if it is too much.

        Each call is compared by itself.
        """
        if not self.allows(nbytes):
            raise LimitError(
                CODE,
                f"this file of {self._file_bytes:,} bytes would take {nbytes:,} in memory, over the limit of"
                f" {self.limit:,}: raise {_ARGUMENT} if you trust it",
                tensor=tensor,
                path=self._path,
            )

    def with_limit(self, limit: int | None) -> Budget:
        """The budget with another limit; itself for None."""
        return self if limit is None else Budget(self._file_bytes, limit, self._path)

    def together(self) -> SharedBudget:
        """A budget of this limit for many askers."""
        return SharedBudget(self._file_bytes, self.limit, self._path)


class SharedBudget(Budget):
    """A budget that sums up: all that was asked for, and not given back, is within the limit together."""

    def __init__(self, file_bytes: int, limit: int | None = None, path: str | None = None) -> None:
        super().__init__(file_bytes, limit, path)
        self._lock = threading.Lock()
        self._taken = 0

    def ask(self, nbytes: int, tensor: str | None = None) -> None:
        with self._lock:
            super().ask(self._taken + nbytes, tensor)
            self._taken += nbytes

    def give_back(self, nbytes: int) -> None:
        """Say that so many bytes that were asked for are not needed after all."""
        with self._lock:
            self._taken -= nbytes

    def together(self) -> SharedBudget:
        """Itself."""
        return self


class _NoBudget(Budget):
    """Of tensors that do not come from a file."""

    def __init__(self) -> None:
        super().__init__(0, 0)

    def ask(self, nbytes: int, tensor: str | None = None) -> None:
        """Nothing is too much."""

    def with_limit(self, limit: int | None) -> Budget:
        return self


NO_BUDGET: Budget = _NoBudget()
"""Of tensors that do not come from a file: nobody but their user has said how large they are."""


class TooMuchError(Exception):
    """An attempt takes more bytes than make it worth while, or more than are left."""


class Attempt:
    """The memory of one tensor, where it shows only array after array how much that is. Safe to use from many threads.

    Args:
        budget: what it takes is asked for here.
        tensor: its name.
        most: bytes from which on the attempt is given up. None: it is never given up, and fails where the budget does.
    """

    def __init__(self, budget: SharedBudget, tensor: str, most: int | None) -> None:
        self._budget, self._tensor, self._most = budget, tensor, most
        self._lock = threading.Lock()
        self._taken = 0

    def ask(self, nbytes: int) -> None:
        """As `Budget.ask`.

        Raises:
            TooMuchError: the attempt is to be given up.
            LimitError: it cannot be given up, and takes too much.
        """
        with self._lock:
            if self._most is not None and self._taken + nbytes > self._most:
                raise TooMuchError
            try:
                self._budget.ask(nbytes, self._tensor)
            except LimitError:
                if self._most is None:
                    raise
                raise TooMuchError from None
            self._taken += nbytes

    def give_up(self) -> None:
        """Give everything back. Threads that are still working get no more."""
        with self._lock:
            self._budget.give_back(self._taken)
            self._taken, self._most = 0, -1


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
