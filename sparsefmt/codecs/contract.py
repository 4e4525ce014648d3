"""What a codec is.

A codec turns the bytes of one array of one tile, a chunk, into fewer bytes and back, losslessly. The rules:

1. `decode(encode(raw))` is `raw`, to the bit. `encode` never changes its input.
2. `decode` reads nothing outside `stored`, writes nothing outside `out`, does bounded work per byte of `out`, and must
   consume `stored` and fill `out` exactly. Anything else is a FormatError.
3. A chunk never grows: where `encode` does not make it smaller, the raw bytes are stored, and "stored size equals raw
   size" is how a reader tells. `decode` is never called for such a chunk. That is the container's business, not the
   codec's.
4. A codec knows the width of an array's elements and nothing else of layouts.
5. Both directions are safe to call from many threads at once and release the GIL where the work is.

Adding a codec is a file beside `zstd.py`, its entry in `__init__.py`, and SPEC.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np


class Codec(ABC):
    """One way to code bytes. Stateless; the instances are in `sparsefmt.codecs.CODECS`.

    Attributes:
        name: name in files and in the API.
        max_ratio: most bytes that one stored byte can decode to; a chunk that claims more is refused unallocated.
    """

    name: str
    max_ratio: int

    @abstractmethod
    def encode(self, raw: np.ndarray, width: int) -> bytes | memoryview:
        """Code uint8 array `raw`, whose elements are `width` bytes each."""

    @abstractmethod
    def decode(self, stored: np.ndarray, width: int, out: np.ndarray) -> None:
        """Decode uint8 array `stored` into uint8 array `out`, whose size is the raw size. Raises FormatError."""
