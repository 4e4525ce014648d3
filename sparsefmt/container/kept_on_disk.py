"""KeptOnDisk: blocks of bytes in a temporary file, for what will be read again and is too much for memory."""

from __future__ import annotations

import tempfile
import threading
from typing import Any


class KeptOnDisk:
    """Blocks of bytes, each as large as one of them may be. Their file is made with the first, and goes with this
    object; it grows to as much as is kept at a time. Safe to use from many threads.

    Args:
        block: most bytes of one.
    """

    def __init__(self, block: int) -> None:
        self._block, self._blocks = block, 0
        self._free: list[int] = []
        self._lock = threading.Lock()
        self._file: Any = None

    def put(self, data: bytes) -> int | None:
        """Keep a block, and return its number; None if the disk is full, or cannot be written to."""
        with self._lock:
            number = self._free.pop() if self._free else self._blocks
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
                self._file.seek(number * self._block)
                if self._file.write(data) != len(data):
                    raise OSError("the disk is full")
            except OSError:
                if number < self._blocks:
                    self._free.append(number)
                return None
            self._blocks = max(self._blocks, number + 1)
            return number

    def part(self, number: int, begin: int, size: int) -> bytes | None:
        """Bytes of a block; None if they cannot be read."""
        with self._lock:
            try:
                if self._file is None:
                    return None
                self._file.seek(number * self._block + begin)
                found: bytes = self._file.read(size)
            except OSError:
                return None
            return found if len(found) == size else None

    def free(self, number: int) -> None:
        """Let go of a block: the next one takes its place."""
        with self._lock:
            self._free.append(number)

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None
