"""What a codec is.

A codec turns the bytes of one array of one tile, a chunk, into fewer bytes and back, losslessly. The rules:

1. `decode(encode(raw))` is `raw`, to the bit. `encode` never changes its input.
2. `decode` reads nothing outside `stored`, writes nothing outside `out`, does bounded work per byte of `out`, and must
   consume `stored` and fill `out` exactly. Anything else is a FormatError.
3. A chunk never grows: where `encode` does not make it smaller, the raw bytes are stored, and "stored size equals raw
   size" is how a reader tells. `decode` is never called for such a chunk. That is the container's business, not the
   codec's.
4. A codec may look at all chunks of an array before any is encoded, and make a model of them. The model is kept in the
   index: bytes from a file, as little to be trusted as chunks are. `coder` makes it ready, once for all chunks of the
   array, and the caller keeps what it gets.
5. A codec knows what `ArrayInfo` and `Positions` say of an array, and nothing else of layouts.
6. All methods are safe to call from many threads at once and release the GIL where the work is.

Adding a codec is a file beside `zstd.py`, its entry in `__init__.py`, and SPEC.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from sparsefmt.positions import Positions
from sparsefmt.threads import in_order

Result = TypeVar("Result")


class ArrayInfo(NamedTuple):
    """What is the same for all chunks of an array.

    Attributes:
        width: bytes of each element.
        rows, cols: of the whole tensor.
        is_mask: whether it has a bit for each position (`positions.masks` says how its bytes lie).
    """

    width: int
    rows: int
    cols: int
    is_mask: bool = False


class Chunk(NamedTuple):
    """The array of one tile.

    Attributes:
        raw: its bytes, uint8.
        rows: which rows of the tensor the tile has.
        positions: where its elements, or the bits of a mask, stand; None if they are not those of positions of the
            matrix.
    """

    raw: np.ndarray
    rows: range
    positions: Positions | None


class Each(ABC):
    """each(work): the results of work(chunk) for all chunks of an array, in order, done in parallel.

    Args:
        count: how many chunks there are.
        threads: as in `threads.in_order`.
    """

    def __init__(self, count: int, threads: int | None) -> None:
        self._numbers, self._threads = range(count), threads

    @abstractmethod
    def chunk(self, number: int) -> Chunk:
        """A chunk. Called from several threads, and again for each work."""

    def __call__(self, work: Callable[[Chunk], Result]) -> Iterator[Result]:
        return in_order(lambda number: work(self.chunk(number)), self._numbers, self._threads)


class Coder(ABC):
    """A codec and the model of an array, ready for its chunks. Never changes, and is safe to share between threads."""

    @abstractmethod
    def encode(self, raw: np.ndarray, positions: Positions | None, rows: range | None = None) -> bytes | memoryview:
        """Code uint8 array `raw`. Raises FormatError if the model was made of something else.

        positions, rows: as in `Chunk`. With rows, a coder that comes from `Codec.fit` need not find out again what was
        found out of them then.
        """

    def estimate(self, raw: np.ndarray, positions: Positions | None) -> int:
        """About how many bytes `encode` would make of `raw`, in a part of its time; 0 if only `encode` can tell."""
        return 0

    def decode(self, stored: np.ndarray, positions: Positions | None, out: np.ndarray) -> None:
        """Decode uint8 array `stored` into uint8 array `out`, whose size is the raw size. Raises FormatError.

        Not called for chunks as long as the raw bytes, which they are then, whatever the codec; so `raw` has none.

        positions: as in `Chunk`.
        """
        raise NotImplementedError


class Codec(ABC):
    """One way to code bytes. Stateless; the instances are in `sparsefmt.codecs.CODECS`.

    Attributes:
        name: name in files and in the API.
        max_ratio: most bytes that one stored byte can decode to; a chunk that claims more is refused unallocated.
        has_models: whether arrays have a model. Only these codecs are told positions, but for those of masks.
        leaves_out_derived: whether arrays that follow from others of their tile take no byte, and have no model. The
            codec never sees them: layouts derive them.
    """

    name: str
    max_ratio: int
    has_models = False
    leaves_out_derived = False

    def fit(self, info: ArrayInfo, each: Each) -> tuple[bytes, Coder | None]:
        """The model of an array, b"" if the codec has none, and what encodes its chunks: as `coder` gives it.

        If all chunks are empty, a codec that has models gives neither.
        """
        return b"", self.coder(b"", info)

    @abstractmethod
    def coder(self, model: bytes, info: ArrayInfo) -> Coder:
        """What encodes and decodes the chunks of an array. Raises FormatError if the model cannot be.

        Reading a model takes milliseconds: the caller keeps the coder for the chunks to come. Of codecs that have no
        models, it costs nothing.
        """
