"""A stream of symbols in bytes: the states that a decoder begins with, then 16-bit words."""

from __future__ import annotations

import numpy as np

from sparsefmt.codecs import frequencies as freq
from sparsefmt.errors import FormatError

STATES = ((1 << 16, 32), (1 << 10, 8), (0, 1))
"""(symbols, states): from how many symbols on a stream has how many states."""


def _states(symbols: int) -> int:
    return next(states for least, states in STATES if symbols >= least)


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
        self._entries = freq.entries(frequencies)
        self._slots = freq.slots(frequencies, self.dtype)
        self._wide: tuple[np.ndarray, np.ndarray] | None = None

    def pack(self, symbols: np.ndarray, contexts: np.ndarray | None = None) -> bytes:
        """The stream of `symbols`, b"" if there are none. contexts: uint8, the table of each; None for the first."""
        from sparsefmt.codecs.passes import rans as passes

        if not symbols.size:
            return b""
        states, words = np.empty(_states(symbols.size), np.uint64), np.empty(symbols.size, np.uint16)
        count = passes.encode_symbols(symbols, contexts, self._entries, self.precision, self.symbols, states, words)
        return states.astype("<u4").tobytes() + words[words.size - count :].tobytes()

    def unpack(self, stream: np.ndarray, count: int, contexts: np.ndarray | None = None) -> np.ndarray:
        """The `count` symbols of a stream, of `dtype`. Raises FormatError."""
        from sparsefmt.codecs.passes import rans as passes

        states_size, out = 4 * _states(count) if count else 0, np.empty(count, self.dtype)
        if stream.size < states_size or (stream.size - states_size) % 2:
            raise FormatError("rans-stream", "a stream has a size that it cannot have")
        # a copy, aligned: chunks from memory may lie anywhere
        words = np.zeros((stream.size - states_size) // 2 + passes.PADDING, np.uint16)
        words.view(np.uint8)[: stream.size - states_size] = stream[states_size:]
        states = stream[:states_size].view("<u4")
        wide = self._wide_tables() if states.size == 32 else None
        if wide is None:
            status = passes.decode_symbols(
                words, states.astype(np.uint64), self._slots, self._entries, self.precision, self.symbols, contexts, out
            )
        else:
            from sparsefmt.codecs.passes import rans_wide

            status = rans_wide.decode_symbols(words, states.astype(np.uint32), *wide, self.precision, contexts, out)
        refuse(status)
        return out

    def _wide_tables(self) -> tuple[np.ndarray, np.ndarray] | None:
        """For `passes.rans_wide`, or None if the processor or the alphabet is not for that."""
        from sparsefmt.isa import ISA

        if ISA != "avx512" or self.symbols > 1 << 8:
            return None
        if self._wide is None:
            from sparsefmt.codecs.passes import rans_wide

            of_symbols = self._entries.reshape(-1, self.symbols).astype(np.int64)
            if self.precision > rans_wide.ONE_LOOK:
                words = np.zeros((len(of_symbols), 256), np.uint32)
                # what has no frequency is in no slot
                words[:, : self.symbols] = of_symbols - (1 << 16) * (of_symbols >= 1 << 16)
                self._wide = np.concatenate([self._slots, np.zeros(rans_wide.PADDING, np.uint8)]), words.ravel()
            else:
                slots = self._slots.reshape(-1, 1 << self.precision).astype(np.int64)
                entries = np.take_along_axis(of_symbols, slots, axis=1)
                distance = np.arange(slots.shape[1]) - (entries & 0xFFFF)
                words = (slots | ((entries >> 16) - 1) << 8 | distance << 20).astype(np.uint32)
                self._wide = words.ravel(), np.empty(0, np.uint32)
        return self._wide


def refuse(status: int) -> None:
    """Raise what a pass's status means."""
    from sparsefmt.codecs.passes import rans as passes

    text = {
        passes.EARLY_END: "a stream ends too early",
        passes.STATE: "a stream does not begin and end as one does",
        passes.LEFT_OVER: "a stream goes on after its end",
    }
    if status != passes.OK:
        raise FormatError("rans-stream", text[status])
