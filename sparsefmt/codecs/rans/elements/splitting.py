"""Elements to bins and places in bins, and back."""

from __future__ import annotations

import numpy as np

from sparsefmt.codecs.rans.elements.bins import PREFIX_BITS, Keys
from sparsefmt.codecs.rans.streams import read_only, refuse
from sparsefmt.errors import FormatError
from sparsefmt.lazily import computed_once


def elements_of(raw: np.ndarray, width: int) -> np.ndarray:
    """The bytes of an array as unsigned integers, read-only."""
    return read_only(raw.view(f"u{width}"))


class Splitter:
    """The bins of a tensor.

    Args:
        lows, widths: of the bins, uint64 and int64.
    """

    def __init__(self, keys: Keys, lows: np.ndarray, widths: np.ndarray) -> None:
        self._keys, self._lows, self._widths = keys, lows, widths.astype(np.uint8)

    def split(self, elements: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """(number of the bin of each element, places in the bins as bits of uint64, how many bits).

        Raises FormatError if an element was not there when the model was made.
        """
        from sparsefmt.codecs.rans.jitted import elements as jitted

        symbols = np.empty(elements.size, np.uint8 if self._lows.size <= 1 << 8 else np.uint16)
        offsets = np.zeros(elements.size * int(self._widths.max()) // 64 + 2, np.uint64)
        key_bits, sign, shift = self._keys.key_bits, self._keys.sign, self._keys.shift
        status, offset_bits = jitted.split(
            elements, self._lows, self._widths, self._first_bins, key_bits, sign, shift, symbols, offsets
        )
        if status != jitted.OK:
            raise FormatError("tensor-changed", "it changed while it was saved: save a copy")
        return symbols, offsets, offset_bits

    def join(self, symbols: np.ndarray, offsets: np.ndarray, offset_bits: int, out: np.ndarray) -> None:
        """Undo `split`. offsets: with `jitted.elements.PADDING` words behind its bits. Raises FormatError."""
        from sparsefmt.codecs.rans.jitted import elements as jitted

        sign, shift = self._keys.sign, self._keys.shift
        refuse(jitted.join(symbols, self._lows, self._widths, offsets, offset_bits, sign, shift, out))

    @computed_once
    def _first_bins(self) -> np.ndarray:
        """For every prefix, the first bin that may hold a key with it."""
        key_bits = self._keys.key_bits
        prefixes = self._lows >> np.uint64(max(key_bits - PREFIX_BITS, 0))
        # a prefix with which several bins begin has the first of them
        prefixes, bins = np.unique(prefixes, return_index=True)
        bounds = np.concatenate([prefixes[1:], [np.uint64(1 << min(key_bits, PREFIX_BITS))]])
        sizes = np.diff(np.concatenate([[np.uint64(0)], bounds])).astype(np.int64)
        return np.repeat(bins.astype(np.int32), sizes)
