"""Bit strings, in which models are written: numbers of any width, the lowest bit first (`jitted/models.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparsefmt.errors import FormatError


class BitWriter:
    """Collects bits."""

    def __init__(self) -> None:
        self._words, self._at = np.zeros(64, np.uint64), 0

    def write(self, value: int, count: int) -> None:
        """The low `count` bits of `value`, which has no others."""
        from sparsefmt.codecs.rans.jitted import models

        assert 0 <= value < 1 << count
        self.run(models.put, count, value, count)

    def run(self, put: Callable[..., int], most_bits: int, *arguments: Any) -> None:
        """Write with a pass of `jitted.models`, which writes at most so many bits: put(words, at, *arguments)."""
        from sparsefmt.codecs.rans.jitted import models

        needed = (self._at + most_bits) // 64 + models.PADDING
        if needed > self._words.size:
            self._words = np.concatenate([self._words, np.zeros(needed, np.uint64)])
        self._at = put(self._words, self._at, *arguments)

    def tobytes(self) -> bytes:
        """All of it, and zeros up to a whole byte."""
        return self._words.astype("<u8").tobytes()[: (self._at + 7) // 8]


class BitReader:
    """Reads what a BitWriter wrote, and refuses what it cannot have written."""

    def __init__(self, data: bytes) -> None:
        from sparsefmt.codecs.rans.jitted import models

        self._data, self._at, self._end = data, 0, 8 * len(data)
        words = -(-len(data) // 8) + models.PADDING
        self._words = np.frombuffer(data.ljust(8 * words, b"\0"), "<u8").astype(np.uint64)

    def read(self, count: int) -> int:
        """`count` bits, 63 at most."""
        begin, self._at = self._at, self._at + count
        if self._at > self._end:
            raise FormatError("rans-model", "a model ends too early")
        found = int.from_bytes(self._data[begin >> 3 : (self._at + 7) >> 3], "little")
        return found >> (begin & 7) & ((1 << count) - 1)

    def run(self, get: Callable[..., Any], *arguments: Any) -> Any:
        """Read with a pass of `jitted.models`, get(words, at, end, *arguments), and return what it returns behind its
        status and its position, if anything."""
        from sparsefmt.codecs.rans.jitted import models

        status, self._at, *found = get(self._words, self._at, self._end, *arguments)
        if status != models.OK:
            text = {
                models.EARLY_END: "a model ends too early",
                models.NO_NUMBER: "a model has a number that is too large or has no end",
                models.NO_SYMBOL: "a table of a model has no symbol",
                models.NO_SUM: "the frequencies of a model do not sum to what they must",
                models.WIDE_BIN: "a bin of a model is too wide",
                models.MANY_BINS: "a model has too many bins",
                models.NO_BIN: "a model has no bin",
            }
            raise FormatError("rans-model", text[status])
        return found[0] if found else None

    def rest(self) -> bytes:
        """The bytes behind the one that was read last, whose other bits must be zero."""
        if self.read(-self._at & 7):
            raise FormatError("rans-model", "unused bits of a model are not zero")
        return self._data[self._at >> 3 :]
