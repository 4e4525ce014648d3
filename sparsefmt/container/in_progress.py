"""A tensor while it is written: its tiles encoded one after the other, and its entry once all of them are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from sparsefmt import threads
from sparsefmt.codecs import CODECS
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.envelope import checksum
from sparsefmt.container.tensor_encoder import KEPT_BYTES, TensorEncoder, Tiles
from sparsefmt.errors import FormatError, LimitError
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.limits import MAX_CHUNK_BYTES


@dataclass(frozen=True)
class Contents:
    """What a tensor has, besides its tiling.

    Attributes:
        make_tile: gives tile number t; called from several threads, about in order, and several times for
            each: codecs with models look at all tiles before the first is written.
        nnz: values stored, for sparse layouts.
        negative_zeros: whether any tile has that array; tiles without it are written as having none set.
        negative_zeros_dropped: how many signs of zero the caller cleared.
    """

    make_tile: Callable[[int], Tile]
    nnz: int | None = None
    negative_zeros: bool = False
    negative_zeros_dropped: int = 0


class EncodedChunk(NamedTuple):
    """An array of a tile as it goes to the file.

    Attributes:
        stored: what is written; as many bytes as `raw_size` if they are the raw ones.
        raw_size: bytes of the array.
        checksum: of what is written. Who writes need not wait for it.
    """

    stored: bytes | memoryview
    raw_size: int
    checksum: int


class TensorInProgress:
    """One tensor. First all of its tiles are encoded, in order, then its entry can be had.

    Args:
        codec: "auto", or the name of the codec for all arrays.

    Attributes:
        name, tiling: as given.
    """

    def __init__(self, name: str, tiling: Tiling, contents: Contents, codec: str, thread_count: int | None) -> None:
        self.name, self.tiling, self._contents, self._threads = name, tiling, contents, thread_count
        optional = [NEGATIVE_ZEROS] if contents.negative_zeros else []
        self._arrays = sorted([*tiling.layout.arrays, *optional])
        several = codec == "auto" or CODECS[codec].has_models
        self._tiles = Tiles(self._completed, thread_count, KEPT_BYTES if several else 0)
        self._encoder = TensorEncoder(codec, tiling, self._tiles)
        self._coded: set[str] = set()
        self._nnz, self._has_negative_zeros = 0, False

    def encoded_tiles(self) -> Iterator[list[EncodedChunk]]:
        """The chunks of each tile, in order of its arrays' names. Encoded in parallel, a few tiles at a time."""
        # the first tile by itself: it decides the codecs, whatever the number of threads
        first = map(self._encoded, range(min(self.tiling.tiles, 1)))
        rest = threads.in_order(self._encoded, range(1, self.tiling.tiles), self._threads)
        for tile_nnz, has_negative_zeros, chunks in chain(first, rest):
            self._nnz += tile_nnz
            self._has_negative_zeros |= has_negative_zeros
            for array, chunk in zip(self._arrays, chunks, strict=True):
                if chunk.raw_size > MAX_CHUNK_BYTES:
                    raise LimitError(
                        "chunk-limit",
                        f"a tile takes {chunk.raw_size:,} bytes, over {MAX_CHUNK_BYTES:,}",
                        tensor=self.name,
                    )
                if memoryview(chunk.stored).nbytes < chunk.raw_size:
                    self._coded.add(array)
            yield chunks
        self._tiles.forget()

    def finished(self, first_chunk: int) -> TensorEntry:
        """The entry, once all tiles are written.

        Args:
            first_chunk: number of its first chunk in the file.

        Raises:
            FormatError: the tiles were not those that the contents promised.
        """
        tiling, contents, encoder = self.tiling, self._contents, self._encoder
        if (self._nnz, self._has_negative_zeros) != (contents.nnz or 0, contents.negative_zeros):
            raise FormatError("tensor-changed", "it changed while it was saved: save a copy", tensor=self.name)
        modelled = [array for array in self._arrays if array in self._coded and encoder.has_model(array)]
        return TensorEntry(
            tiling.dtype,
            tiling.shape,
            tiling.layout,
            tiling.tile_rows,
            self.name,
            {array: encoder.codec_of(array) if array in self._coded else "raw" for array in self._arrays},
            first_chunk if tiling.tiles else 0,
            contents.nnz,
            contents.negative_zeros_dropped,
            {array: encoder.model(array) for array in modelled},
            row_dims=tiling.row_dims,
        )

    def _completed(self, number: int) -> Tile:
        """A tile with all arrays that it is to have in the file."""
        tile = self._contents.make_tile(number)
        return tile.with_sign_array() if self._contents.negative_zeros else tile

    def _encoded(self, number: int) -> tuple[int, bool, list[EncodedChunk]]:
        """Values stored in a tile, whether it has a -0.0, and its chunks."""
        tile = self._tiles.get(number)
        chunks = []
        for array in self._arrays:
            stored = self._encoder.encode(array, tile, number)
            chunks.append(EncodedChunk(stored, tile[array].nbytes, checksum(stored)))
        return tile.nnz, tile.has_negative_zeros, chunks
