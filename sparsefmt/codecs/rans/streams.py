"""A stream of symbols in bytes: the states that a decoder begins with, then 16-bit words."""

from __future__ import annotations

import numpy as np

from sparsefmt.errors import FormatError
from sparsefmt.lazily import computed_once

FEW_SYMBOLS, MANY_SYMBOLS = 1 << 10, 1 << 16
"""Symbols from which on a stream has eight states, and 32, instead of one."""


def _states(symbols: int) -> int:
    return 32 if symbols >= MANY_SYMBOLS else 8 if symbols >= FEW_SYMBOLS else 1


_NONE = np.empty(0, np.uint8)


class Tables:
    """Tables of frequencies as coders want them.

    Attributes:
        precision: the frequencies of a table sum to 2^precision.
        symbols: size of the alphabet.
        dtype: of decoded symbols.
    """

    def __init__(self, frequencies: np.ndarray, precision: int) -> None:
        """frequencies: (symbols,), or (tables, symbols)."""
        self.precision, self.symbols = precision, frequencies.shape[-1]
        self.dtype = np.dtype(np.uint8 if self.symbols <= 1 << 8 else np.uint16)
        self._frequencies = np.atleast_2d(frequencies)

    def encode(self, symbols: np.ndarray, contexts: np.ndarray | None = None) -> bytes:
        """The stream of `symbols`, b"" if there are none. contexts: uint8, the table of each; None for the first."""
        from sparsefmt.codecs.rans.jitted import rans as jitted

        if not symbols.size:
            return b""
        states, words = np.empty(_states(symbols.size), np.uint64), np.empty(symbols.size, np.uint16)
        _, entries = self._narrow
        contexts = _NONE if contexts is None else contexts
        count = jitted.encode_symbols(symbols, contexts, entries, self.precision, self.symbols, states, words)
        return states.astype("<u4").tobytes() + words[words.size - count :].tobytes()

    def decode(self, stream: np.ndarray, count: int, contexts: np.ndarray | None = None) -> np.ndarray:
        """The `count` symbols of a stream, of `dtype`. Raises FormatError."""
        from sparsefmt.codecs.rans.jitted import rans as jitted

        lanes, out = _states(count) if count else 0, np.empty(count, self.dtype)
        if lanes == 32 and self._is_wide:
            refuse(self._decode_wide(stream, contexts, out))
            return out
        if contexts is None and count < MANY_SYMBOLS:
            contexts = np.zeros(count, np.uint8)  # only large streams are worth code of their own for one table
        states, words = _parts(stream, lanes, jitted.PADDING)
        refuse(
            jitted.decode_symbols(
                words, states.astype(np.uint64), *self._narrow, self.precision, self.symbols, contexts, out
            )
        )
        return out

    def _decode_wide(self, stream: np.ndarray, contexts: np.ndarray | None, out: np.ndarray) -> int:
        from sparsefmt.codecs.rans.jitted import rans_wide

        states, words = _parts(stream, rans_wide.STATES, rans_wide.PADDING)
        return rans_wide.decode_symbols(words, states, *self._wide, self.precision, contexts, out)

    @property
    def _is_wide(self) -> bool:
        """Whether processor and alphabet are for `jitted.rans_wide`."""
        from sparsefmt.isa import ISA

        return ISA == "avx512" and self.symbols <= 1 << 8

    @computed_once
    def _narrow(self) -> tuple[np.ndarray, np.ndarray]:
        """Slots and entries, for `jitted.rans`."""
        entries = (self._frequencies << 16) | self._first_slots
        return self._in_slots(np.arange(self.symbols, dtype=self.dtype)), entries.astype(np.uint64).ravel()

    @property
    def _first_slots(self) -> np.ndarray:
        """The first slot of each symbol: int64 (tables, symbols)."""
        return np.cumsum(self._frequencies, 1) - self._frequencies

    def _in_slots(self, of_symbols: np.ndarray) -> np.ndarray:
        """What stands for symbols, (symbols,) or (tables, symbols), in every slot of each of them. Flat."""
        return np.repeat(np.broadcast_to(of_symbols, self._frequencies.shape).ravel(), self._frequencies.ravel())

    @computed_once
    def _wide(self) -> tuple[np.ndarray, np.ndarray]:
        """Slots and entries, for `jitted.rans_wide`."""
        from sparsefmt.codecs.rans.jitted import rans_wide as jitted

        tables, frequencies, symbols = len(self._frequencies), self._frequencies, np.arange(self.symbols)
        if self.precision <= jitted.ONE_LOOK:
            # a frequency of 0 has no slot
            whole = self._in_slots(symbols | np.maximum(frequencies - 1, 0) << 8).astype(np.uint32)
            distances = np.tile(np.arange(1 << self.precision), tables) - self._in_slots(self._first_slots)
            return whole | distances.astype(np.uint32) << 20, np.empty(0, np.uint32)
        slots = np.zeros((tables << self.precision) + jitted.PADDING, np.uint8)
        slots[: -jitted.PADDING] = self._in_slots(symbols)
        entries = np.zeros((tables, 256), np.uint32)
        entries[:, : self.symbols] = np.where(frequencies, (frequencies - 1) << 16 | self._first_slots, 0)
        return slots, entries.ravel()


def _parts(stream: np.ndarray, lanes: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """(states, uint32; words, uint16, with so many more behind them). Copies, aligned: chunks may lie anywhere."""
    begin = 4 * lanes
    size = stream.size - begin
    if size < 0 or size % 2:
        raise FormatError("rans-stream", "a stream has a size that it cannot have")
    words = np.empty(size // 2 + padding, np.uint16)
    words.view(np.uint8)[:size], words[size // 2 :] = stream[begin:], 0
    return stream[:begin].view("<u4").astype(np.uint32), words


def read_only(array: np.ndarray) -> np.ndarray:
    """A read-only view, which jitted code takes for a type of its own."""
    view = array.view()
    view.flags.writeable = False
    return view


def refuse(status: int) -> None:
    """Raise what a pass's status means."""
    from sparsefmt.codecs.rans.jitted import rans as jitted

    text = {
        jitted.EARLY_END: "a stream ends too early",
        jitted.STATE: "a stream does not begin and end as one does",
        jitted.LEFT_OVER: "a stream goes on after its end",
    }
    if status != jitted.OK:
        raise FormatError("rans-stream", text[status])
