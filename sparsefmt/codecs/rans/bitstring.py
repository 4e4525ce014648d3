"""Bit strings, in which models are written: numbers of any width, the lowest bit first.

A writer makes them of whole arrays of numbers, without jitted code. What a reader gets has to be taken apart number by
number, which `jitted/models.py` does.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np

from sparsefmt.errors import FormatError

MAX_ZEROS = 32
"""Zeros that a number in exponential Golomb code may start with."""


class BitWriter:
    """Collects bits."""

    def __init__(self) -> None:
        self._values, self._counts = array("Q"), array("B")

    def write(self, value: int, count: int) -> None:
        """The low `count` bits of `value`, 63 at most; it has no others."""
        assert 0 <= value < 1 << count
        self._values.append(value)
        self._counts.append(count)

    def write_bits(self, bits: np.ndarray) -> None:
        """One after the other. bool (n,)."""
        self._write_all(bits, np.ones(bits.size))

    def write_numbers(self, numbers: np.ndarray, orders: np.ndarray) -> None:
        """Numbers >= 0 in exponential Golomb code, which is short for those about as long as their order of bits.

        int64 (n,) both: numbers below 2^33, orders of 16 at most.
        """
        high = (numbers >> orders) + 1
        zeros = bit_lengths(high) - 1
        first = np.left_shift(1, zeros)
        parts = first, high - first, numbers & (np.left_shift(1, orders) - 1)
        self._write_all(np.stack(parts, 1).ravel(), np.stack((zeros + 1, zeros, orders), 1).ravel())

    def _write_all(self, values: np.ndarray, counts: np.ndarray) -> None:
        self._values.frombytes(values.astype(np.uint64).tobytes())
        self._counts.frombytes(counts.astype(np.uint8).tobytes())

    def tobytes(self) -> bytes:
        """All of it, and zeros up to a whole byte."""
        values, counts = np.frombuffer(self._values, np.uint64), np.frombuffer(self._counts, np.uint8)
        ends = np.cumsum(counts, dtype=np.int64)
        size = int(ends[-1]) if ends.size else 0
        words, begins = np.zeros(size // 64 + 2, np.uint64), ends - counts
        first, shifts = begins >> 6, (begins & 63).astype(np.uint64)
        np.bitwise_or.at(words, first, values << shifts)
        # two shifts, since one by 64 is none
        np.bitwise_or.at(words, first + 1, (values >> np.uint64(1)) >> (np.uint64(63) - shifts))
        return words.astype("<u8").tobytes()[: (size + 7) // 8]


def bit_lengths(numbers: np.ndarray) -> np.ndarray:
    """How many bits each number has, 0 of 0. int64 (n,) both, numbers below 2^53."""
    return np.frexp(numbers.astype(np.float64))[1].astype(np.int64)


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

    def read_number(self, order: int) -> int:
        """A number in exponential Golomb code (`BitWriter.write_numbers`)."""
        window = int.from_bytes(self._data[self._at >> 3 : (self._at >> 3) + 16], "little") >> (self._at & 7)
        zeros = (window & -window).bit_length() - 1
        if not 0 <= zeros <= MAX_ZEROS:
            raise FormatError("rans-model", "a model has a number that is too large or has no end")
        self.read(zeros + 1)
        return ((1 << zeros) - 1 + self.read(zeros) << order) + self.read(order)

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
