"""A stream of symbols in bytes: the states that a decoder begins with, then 16-bit words."""

from __future__ import annotations

import numpy as np

from sparsefmt.codecs.rans.bitstring import bit_lengths
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
        """The stream of `symbols`, b"" if there are none.

        contexts: uint8, the table of each; None for the first.

        Raises:
            FormatError: a table has no frequency for a symbol.
        """
        return b"".join(self.encoded(symbols, contexts))

    def encoded(self, symbols: np.ndarray, contexts: np.ndarray | None = None) -> list[memoryview]:
        """`encode` in parts, which lie one after the other there."""
        from sparsefmt.codecs.rans.jitted import eight_lanes, rans, rans_avx2

        if not symbols.size:
            return []
        contexts, lanes = _NONE if contexts is None else contexts, _states(symbols.size)
        if self._isa == "portable":
            states, words = np.empty(lanes, np.uint64), np.empty(symbols.size + 1, np.uint16)
            count = rans.encode_symbols(symbols, contexts, self._recipes, self.symbols, states, words)
        else:
            symbols, shuffles = symbols.astype(np.uint8, copy=False), eight_lanes.TOGETHER
            states, words = np.empty(lanes, np.uint32), np.empty(symbols.size + rans_avx2.BEFORE, np.uint16)
            recipes, precision = self._recipes_of_bytes, self.precision
            count = rans_avx2.encode_symbols(symbols, contexts, recipes, precision, shuffles, states, words)
        if count < 0:
            raise FormatError("tensor-changed", "it changed while it was saved: save a copy")
        return [states.astype("<u4").data, words[words.size - count :].data]

    def decode(self, stream: np.ndarray, count: int, contexts: np.ndarray | None = None) -> np.ndarray:
        """The `count` symbols of a stream, of `dtype`. Raises FormatError."""
        lanes, out, isa = _states(count), np.empty(count, self.dtype), self._isa
        if not count:
            if stream.size:
                raise FormatError("rans-stream", "a stream goes on after its end")
            return out
        if isa == "avx512" and lanes == 32:
            decode = self._decode_wide
        else:
            decode = self._decode_narrow if isa == "portable" else self._decode_eight
        refuse(decode(stream, lanes, contexts, out))
        return out

    def _decode_narrow(self, stream: np.ndarray, lanes: int, contexts: np.ndarray | None, out: np.ndarray) -> int:
        from sparsefmt.codecs.rans.jitted import rans as jitted

        if contexts is None and out.size < MANY_SYMBOLS:
            contexts = np.zeros(out.size, np.uint8)  # only large streams are worth code of their own for one table
        states, words = _parts(stream, lanes, jitted.PADDING)
        states, slots_and_entries = states.astype(np.uint64), self._narrow
        return jitted.decode_symbols(words, states, *slots_and_entries, self.precision, self.symbols, contexts, out)

    def _decode_eight(self, stream: np.ndarray, lanes: int, contexts: np.ndarray | None, out: np.ndarray) -> int:
        from sparsefmt.codecs.rans.jitted import eight_lanes
        from sparsefmt.codecs.rans.jitted import rans_avx2 as jitted

        (states, words), (slots, entries) = _parts(stream, lanes, jitted.PADDING), self._wide
        slots, contexts = slots.view(np.uint8), _NONE if contexts is None else contexts
        return jitted.decode_symbols(words, states, slots, entries, self.precision, contexts, eight_lanes.APART, out)

    def _decode_wide(self, stream: np.ndarray, lanes: int, contexts: np.ndarray | None, out: np.ndarray) -> int:
        from sparsefmt.codecs.rans.jitted import rans_wide as jitted

        states, words = _parts(stream, lanes, jitted.PADDING)
        return jitted.decode_symbols(words, states, *self._wide, self.precision, contexts, out)

    @computed_once
    def _recipes(self) -> np.ndarray:
        """For `jitted.rans.encode_symbols`: uint64, two for each symbol of each table, flat.

        With x a state below 2^32, f a frequency and n the precision, the first is m = ceil(2^64 / f). So `x * m >> 64`
        is floor(x / f), since m is too large by less than 2^-32 of itself. The second are three numbers, from the
        lowest bits on: the symbol's first slot; 2^n - f; and f << (16 - n), from which on the high half of a state is
        too large. If f is 1, m would not fit, and 2^64 - 1 makes the quotient too small by 1. Then 2^n - 1 more than
        the first slot make up for it.
        """
        frequencies, total = self._frequencies.astype(np.uint64), np.uint64(1 << self.precision)
        ones, some = frequencies == 1, np.maximum(frequencies, 1)
        most = np.uint64((1 << 64) - 1)
        reciprocals = np.where(ones, most, most // some + np.uint64(1) * ~ones)
        first = self._first_slots.astype(np.uint64) + np.where(ones, total - np.uint64(1), np.uint64(0))
        limits = frequencies << np.uint64(16 - self.precision)
        return np.stack(
            [reciprocals, limits << np.uint64(32) | (total - frequencies) << np.uint64(16) | first], -1
        ).ravel()

    @computed_once
    def _recipes_of_bytes(self) -> np.ndarray:
        """For `jitted.rans_avx2`: uint64 (tables * 256,)."""
        frequencies = np.zeros((len(self._frequencies), 1 << 8), np.uint64)
        frequencies[:, : self.symbols] = self._frequencies
        first = np.cumsum(frequencies, 1) - frequencies
        some = np.maximum(frequencies, 1)
        highest = (bit_lengths(some.ravel()) - 1).reshape(some.shape).astype(np.uint64)
        # 2^32 / f, with as many bits behind it as make it 32 bits
        reciprocals = np.minimum((np.uint64(1) << highest + np.uint64(32)) // some, (1 << 32) - 1)
        return (reciprocals << np.uint64(32) | frequencies << np.uint64(16) | first).ravel()

    @property
    def _isa(self) -> str:
        """Whose instructions code streams."""
        from sparsefmt.isa import ISA

        return ISA if self.symbols <= 1 << 8 else "portable"

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
        """Slots and entries, for `jitted.rans_wide`; the slots also for `jitted.rans_avx2`."""
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
