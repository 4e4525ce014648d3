"""A stream of symbols in bytes: the states that a decoder begins with, then 16-bit words."""

from __future__ import annotations

import numpy as np

from sparsefmt.errors import FormatError

STATES = ((1 << 16, 32), (1 << 10, 8), (0, 1))
"""(symbols, states): from how many symbols on a stream has how many states."""

PADDING = 64
"""Words that a decoder may read in vain before it notices that there are no more."""


def _states(symbols: int) -> int:
    return next(states for least, states in STATES if symbols >= least)


def pack_stream(symbols: np.ndarray, contexts: np.ndarray, entries: np.ndarray, precision: int, alphabet: int) -> bytes:
    """The stream of `symbols`, b"" if there are none. See `passes.rans.encode_symbols`."""
    from sparsefmt.codecs.passes import rans as passes

    if not symbols.size:
        return b""
    states, words = np.empty(_states(symbols.size), np.uint64), np.empty(symbols.size, np.uint16)
    count = passes.encode_symbols(symbols, contexts, entries, precision, alphabet, states, words)
    return states.astype("<u4").tobytes() + words[words.size - count :].tobytes()


def unpack_stream(stream: np.ndarray, symbols: int) -> tuple[np.ndarray, np.ndarray]:
    """(words, states) of a stream of so many symbols, neither checked; behind the words, PADDING zeros."""
    states = 4 * _states(symbols) if symbols else 0
    if stream.size < states or (stream.size - states) % 2:
        raise FormatError("rans-stream", "a stream has a size that it cannot have")
    # a copy, aligned: chunks from memory may lie anywhere
    words = np.zeros((stream.size - states) // 2 + PADDING, np.uint16)
    words.view(np.uint8)[: stream.size - states] = stream[states:]
    return words, stream[:states].view("<u4").astype(np.uint64)
