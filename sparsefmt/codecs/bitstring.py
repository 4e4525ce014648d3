"""Bit strings, in which models are written: numbers of any width, the lowest bit first."""

from __future__ import annotations

import numpy as np

from sparsefmt.errors import FormatError

MAX_ZEROS = 32
"""Zeros that a number in exponential Golomb code may start with."""


class BitWriter:
    """Collects bits."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, int]] = []

    def write(self, value: int, count: int) -> None:
        """The low `count` bits of `value`, which has no others."""
        assert 0 <= value < 1 << count
        self._parts.append((value, count))

    def write_number(self, value: int, order: int) -> None:
        """A number >= 0 in exponential Golomb code, which is short for numbers about as long as `order` bits."""
        high = (value >> order) + 1
        length = high.bit_length()
        self.write(1 << (length - 1), length)
        self.write(high - (1 << (length - 1)), length - 1)
        self.write(value & ((1 << order) - 1), order)

    def tobytes(self) -> bytes:
        """All of it, and zeros up to a whole byte."""
        value, size = 0, 0
        for part, count in self._parts:
            value |= part << size
            size += count
        return value.to_bytes((size + 7) // 8, "little")


class BitReader:
    """Reads what a BitWriter wrote, and refuses what it cannot have written."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        # as text, in which Python finds and slices faster than it shifts
        self._bits = f"{int.from_bytes(data, 'little'):0{8 * len(data)}b}"[::-1] if data else ""

    def read(self, count: int) -> int:
        bits = self._take(count)
        return int(bits[::-1], 2) if bits else 0

    def read_flags(self, count: int) -> np.ndarray:
        """So many single bits, as booleans."""
        return np.frombuffer(self._take(count).encode(), np.uint8) == ord("1")

    def read_number(self, order: int) -> int:
        first = self._bits.find("1", self._at, self._at + MAX_ZEROS + 1)
        if first < 0:
            raise FormatError("rans-model", "a model has a number that is too large or has no end")
        zeros, self._at = first - self._at, first + 1
        high = (1 << zeros) + self.read(zeros)
        return ((high - 1) << order) + self.read(order)

    def rest(self) -> bytes:
        """The bytes behind the one that was read last, whose other bits must be zero."""
        if self.read(-self._at & 7):
            raise FormatError("rans-model", "unused bits of a model are not zero")
        return self._data[self._at >> 3 :]

    def _take(self, count: int) -> str:
        begin, end = self._at, self._at + count
        if end > len(self._bits):
            raise FormatError("rans-model", "a model ends too early")
        self._at = end
        return self._bits[begin:end]
