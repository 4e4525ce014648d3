"""What a codec is.

A codec turns the bytes of one array of one tile, a chunk, into fewer bytes and back, losslessly. The rules:

1. `decode(encode(raw))` is `raw`, to the bit. `encode` never changes its input.
2. `decode` reads nothing outside `stored`, writes nothing outside `out`, does bounded work per byte of `out`, and must
   consume `stored` and fill `out` exactly. Anything else is a FormatError.
3. A chunk never grows: where `encode` does not make it smaller, the raw bytes are stored, and "stored size equals raw
   size" is how a reader tells. `decode` is never called for such a chunk. That is the container's business, not the
   codec's.
4. A codec may look at all chunks of an array before any is encoded, and make a model of them. The model is kept in the
   index, and given to `encode` and `decode`: bytes from a file, as little to be trusted as chunks are.
5. A codec knows an array's name and the width of its elements, the size of the tile, and the tile's arrays that come
   before by name. It may derive an array from these, and then stores no byte of it. It knows nothing else of layouts.
6. Both directions are safe to call from many threads at once and release the GIL where the work is.

Adding a codec is a file beside `zstd.py`, its entry in `__init__.py`, and SPEC.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np


class Place(NamedTuple):
    """Whose bytes they are.

    Attributes:
        array: its name.
        width: bytes of each element.
        rows, cols: of the tile.
    """

    array: str
    width: int
    rows: int
    cols: int


Before = Mapping[str, np.ndarray]
"""The arrays of a tile that come before another by name."""

Each = Callable[[Callable[[np.ndarray, Before, range], object]], Iterator]
"""each(work): work(data, arrays before, rows) for every tile, in order, perhaps in parallel."""


class Codec(ABC):
    """One way to code bytes. Stateless; the instances are in `sparsefmt.codecs.CODECS`.

    Attributes:
        name: name in files and in the API.
        max_ratio: most bytes that one stored byte can decode to; a chunk that claims more is refused unallocated.
        has_models: whether arrays that are not derived have a model.
    """

    name: str
    max_ratio: int
    has_models = False

    def derives(self, array: str) -> bool:
        """Whether this array is derived from others of its tile: 0 bytes, if it is not raw."""
        return False

    def fit(self, place: Place, each: Each) -> bytes:
        """The model of an array: `each` gives the uint8 array of every tile, `place` has the rows of all of them."""
        return b""

    @abstractmethod
    def encode(self, raw: np.ndarray, place: Place, model: bytes, before: Before) -> bytes | memoryview:
        """Code uint8 array `raw`. before: the arrays of the tile that come before this one by name."""

    def decode(self, stored: np.ndarray, place: Place, model: bytes, before: Before, out: np.ndarray) -> None:
        """Decode uint8 array `stored` into uint8 array `out`, whose size is the raw size. Raises FormatError.

        Not called for chunks as long as the raw bytes, which they are then, whatever the codec; so `raw` has none.

        before: the arrays of the tile that come before this one by name, decoded, their layout not yet checked.
        """
        raise NotImplementedError
