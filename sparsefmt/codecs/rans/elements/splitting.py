"""Elements to bins and places in bins, and back."""

from __future__ import annotations

import numpy as np

from sparsefmt.codecs.rans.elements.bins import PREFIX_NBITS, Keys
from sparsefmt.codecs.rans.streams import read_only, refuse
from sparsefmt.errors import FormatError
from sparsefmt.lazily import computed_once


def elements_of(raw: np.ndarray, width: int) -> np.ndarray:
    """The bytes of an array as unsigned integers, read-only."""
    return read_only(raw.view(f"u{width}"))


_NONE = np.empty(0, np.uint64)


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
        words = elements.size * int(self._widths.max()) // 64 + 2
        offsets = (np.zeros if self._wide_tables(elements) is None else np.empty)(words, np.uint64)
        symbols, offset_nbits = self._split(elements, offsets)
        return symbols, offsets, offset_nbits

    def symbols(self, elements: np.ndarray) -> np.ndarray:
        """The number of the bin of each element. Raises FormatError, as `split` does."""
        return self._split(elements, _NONE)[0]

    def _split(self, elements: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, int]:
        """(symbols, bits of the offsets with which it filled `offsets`)."""
        from sparsefmt.codecs.rans.jitted import elements as jitted
        from sparsefmt.codecs.rans.jitted import split_wide

        symbols = np.empty(elements.size, np.uint8 if self._lows.size <= 1 << 8 else np.uint16)
        how = self._keys.key_nbits, self._keys.sign, self._keys.shift
        tables = self._wide_tables(elements)
        if tables is not None:
            scratch = np.empty(3 * split_wide.BLOCK, np.uint64)
            status, offset_nbits = split_wide.split(elements, *tables, *how, scratch, symbols, offsets)
        else:
            known = self._lows, self._widths, self._of_prefixes
            status, offset_nbits = jitted.split(elements, *known, *how, symbols, offsets)
        if status != jitted.OK:
            raise FormatError("tensor-changed", "it changed while it was saved: save a copy")
        return symbols, offset_nbits

    def _wide_tables(self, elements: np.ndarray) -> tuple[np.ndarray, int, int] | None:
        """For `jitted.split_wide`; None where it has nothing for such elements and bins."""
        from sparsefmt.codecs.rans.jitted import split_wide
        from sparsefmt.isa import MOVES_BYTES

        return self._tables_in_registers if MOVES_BYTES and elements.itemsize in split_wide.WIDTHS else None

    @computed_once
    def _tables_in_registers(self) -> tuple[np.ndarray, int, int] | None:
        from sparsefmt.codecs.rans.jitted import split_wide

        return split_wide.make_tables(self._lows, self._widths, self._left_out, self._keys.prefix_nbits)

    @property
    def _left_out(self) -> int:
        """Lower bits of a key that its prefix has not."""
        return max(self._keys.key_nbits - PREFIX_NBITS, 0)

    def join(self, symbols: np.ndarray, offsets: np.ndarray, offset_nbits: int, out: np.ndarray) -> None:
        """Undo `split`. offsets: with `jitted.elements.PADDING` words behind its bits. Raises FormatError."""
        from sparsefmt.codecs.rans.jitted import elements as jitted

        sign, shift = self._keys.sign, self._keys.shift
        refuse(jitted.join(symbols, self._lows, self._widths, offsets, offset_nbits, sign, shift, out))

    @computed_once
    def _of_prefixes(self) -> np.ndarray:
        """For `jitted.elements.split`: uint32, as many as there are prefixes."""
        from sparsefmt.codecs.rans.jitted.elements import SEARCH

        key_nbits, left_out = self._keys.key_nbits, self._left_out
        begins = (self._lows >> np.uint64(left_out)).astype(np.int64)
        # a prefix with which several bins begin has the first of them
        begins, bins = np.unique(begins, return_index=True)
        sizes = np.diff(begins, prepend=0, append=1 << (key_nbits - left_out))
        # those before the first bin go to that, and are in none
        found = np.repeat(np.append(0, bins).astype(np.uint32), sizes) | SEARCH
        whole = self._widths >= left_out
        of_whole = np.flatnonzero(whole).astype(np.uint32) | self._widths[whole].astype(np.uint32) << np.uint32(16)
        sizes = np.left_shift(1, self._widths[whole].astype(np.int64) - left_out)
        firsts = (self._lows[whole] >> np.uint64(left_out)).astype(np.int64)
        places = np.repeat(firsts - (np.cumsum(sizes) - sizes), sizes) + np.arange(int(sizes.sum()))
        found[places] = np.repeat(of_whole, sizes)
        return found
