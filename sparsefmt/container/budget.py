"""How much a file may decode to. Zeros take next to nothing, and so a kilobyte can validly claim to be a terabyte."""

from __future__ import annotations

from sparsefmt.errors import LimitError

FLOOR = 1 << 30
"""1 GiB, which any file may decode to."""

RATIO = 1024
"""Times its size that a file may decode to. A pruned model decodes to ten times its size, or to a hundred."""


class Budget:
    """The most bytes that may be decoded at a time. It is compared with what the index says, before memory is taken.

    Attributes:
        limit: bytes.
    """

    def __init__(self, file_bytes: int, limit: int | None = None) -> None:
        """limit: None for FLOOR, or RATIO times the size of the file if that is more."""
        self.limit = max(FLOOR, RATIO * file_bytes) if limit is None else limit
        self._file_bytes = file_bytes

    def expect(self, nbytes: int, tensor: str | None = None, *, limit: int | None = None) -> None:
        """Raise LimitError if these bytes, of one tensor or of several, are too many. limit: in place of the usual."""
        limit = self.limit if limit is None else limit
        if nbytes > limit:
            raise LimitError(
                "decoded-bytes",
                f"this file of {self._file_bytes:,} bytes would take {nbytes:,} in memory, over the limit of"
                f" {limit:,}: raise max_decoded_bytes if you trust it",
                tensor=tensor,
            )
