"""Encodes the arrays of a tensor while it is written, each by one codec. With "auto", several are tried on a tile."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparsefmt.codecs import CODECS
from sparsefmt.codecs.contract import ArrayInfo, Chunk, Codec, Each
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling

WORTH_A_MODEL, WORTH_A_MODEL_OF_HALVES = 1 << 12, 1 << 10
"""Bytes of a dense tensor below which "auto" makes no model for it, and of one whose elements have 16 bits: a model
takes longer than all else together (`tools/bench/small.py`, also with `--codec rans`). Of 16 bits it saves a larger
part, and nets in these have most of their small vectors above it (`tools/small_net.py`: 0.5 % of the file)."""

WORTH_A_KIND = 32
"""Bytes that "auto" saves at least where it codes a chunk of layout `dense`: else a kind that names its codec, and a
column of stored sizes, would make a small file larger."""

_KEYS_OF_A_MODEL = 24
"""About what an entry has for a model, beside its bytes."""

_SURELY_LARGER = 1.05
"""How much larger than what another codec makes an estimate has to be, so that a codec is not tried."""

KEPT_BYTES = 1 << 24
"""Tiles of a tensor, 16 MiB in all, that are kept while it is written, since some codecs look several times; the others
are made anew."""


class Tiles:
    """The tiles of one tensor. Codecs with models look at them several times: a part of them is kept.

    Args:
        make: gives tile number t. Called from several threads.
        thread_count: how many of them there may be.
        room: bytes of tiles to keep.
    """

    def __init__(self, make: Callable[[int], Tile], thread_count: int | None, room: int) -> None:
        self._make, self.threads = make, thread_count
        self._kept: dict[int, Tile] = {}
        self._room = room

    def get(self, number: int) -> Tile:
        """Tile `number`. Called from several threads, for tiles of their own."""
        if number in self._kept:
            return self._kept[number]
        tile = self._make(number)
        nbytes = tile.nbytes
        if nbytes <= self._room:
            self._room -= nbytes
            self._kept[number] = tile
        return tile

    def forget(self) -> None:
        """Let go of those that are kept: none will be asked for again."""
        self._kept.clear()
        self._room = 0


class _EachOfArray(Each):
    """The chunks of one array of a tensor."""

    def __init__(self, array: str, tiling: Tiling, tiles: Tiles) -> None:
        super().__init__(tiling.tiles, tiles.threads)
        self._array, self._tiling, self._tiles = array, tiling, tiles

    def chunk(self, number: int) -> Chunk:
        tile, rows = self._tiles.get(number), range(*self._tiling.tile_range(number))
        return Chunk(tile[self._array].view(np.uint8), rows, tile.positions(self._array))


class _Coding:
    """How an array of a tensor is coded.

    Args:
        each: all its chunks, for codecs with models.
        left_out: whether it is not coded at all, since it follows from others.
    """

    def __init__(self, codec: Codec, info: ArrayInfo, each: Each, left_out: bool) -> None:
        self.codec, self.left_out = codec, left_out
        self.model, self._coder = (b"", None) if left_out else codec.fit(info, each)

    def encode(self, chunk: Chunk) -> bytes | memoryview:
        return b"" if self._coder is None else self._coder.encode(chunk.raw, chunk.positions, chunk.rows)

    def estimate(self, chunk: Chunk) -> int:
        return 0 if self._coder is None else self._coder.estimate(chunk.raw, chunk.positions)


class TensorEncoder:
    """Encodes the arrays of one tensor; with "auto", by the codec that did best on the first tile."""

    def __init__(self, codec: str, tiling: Tiling, tiles: Tiles) -> None:
        self._codec, self._tiling, self._tiles = codec, tiling, tiles
        self._codings: dict[str, _Coding] = {}

    def codec_of(self, array: str) -> str:
        return self._codings[array].codec.name

    def has_model(self, array: str) -> bool:
        return self._codings[array].codec.has_models and not self._codings[array].left_out

    def model(self, array: str) -> bytes:
        return self._codings[array].model

    def encode(self, array: str, tile: Tile, number: int) -> bytes | memoryview:
        """The smallest coding of an array: its raw bytes if coding does not make them smaller."""
        raw, coding = tile[array].view(np.uint8), self._codings.get(array)
        if coding is None:
            coding, encoded = self._try_codecs(array, tile, number)
        else:
            encoded = coding.encode(self._chunk(coding.codec, array, tile, number))
        size = memoryview(encoded).nbytes
        least = WORTH_A_KIND if self._codec == "auto" and not self._tiling.layout.sparse else 1
        # what readers would refuse as impossible is not written
        fits = size + least <= raw.nbytes and (raw.nbytes <= size * coding.codec.max_ratio or coding.left_out)
        return encoded if fits else memoryview(raw)

    def _try_codecs(self, array: str, tile: Tile, number: int) -> tuple[_Coding, bytes | memoryview]:
        tiling, layout, raw_size = self._tiling, self._tiling.layout, tile[array].nbytes
        tried: list[tuple[float, _Coding, bytes | memoryview]] = []
        info = ArrayInfo(tile.array_dtype(array).itemsize, tiling.rows, tiling.cols, array == layout.mask)
        each = _EachOfArray(array, tiling, self._tiles)
        # one with models comes first: it is the smallest, nearly always, and others need not be encoded to see that
        for codec in sorted(self._candidates(info), key=lambda codec: not codec.has_models):
            coding = _Coding(codec, info, each, codec.leaves_out_derived and array in layout.derived)
            chunk = self._chunk(codec, array, tile, number)
            if any(coding.estimate(chunk) > _SURELY_LARGER * size for size, *_ in tried):
                continue
            encoded = coding.encode(chunk)
            model = len(coding.model) + _KEYS_OF_A_MODEL if coding.model else 0
            share = model * tiling.height(number) / max(tiling.rows, 1)
            tried.append((min(memoryview(encoded).nbytes, raw_size) + share, coding, encoded))
        _, coding, encoded = min(tried, key=lambda candidate: (candidate[0], candidate[1].codec.has_models))
        self._codings[array] = coding
        return coding, encoded

    def _chunk(self, codec: Codec, array: str, tile: Tile, number: int) -> Chunk:
        """What a codec encodes."""
        told = codec.has_models or array == self._tiling.layout.mask
        rows = range(*self._tiling.tile_range(number))
        return Chunk(tile[array].view(np.uint8), rows, tile.positions(array) if told else None)

    def _candidates(self, info: ArrayInfo) -> list[Codec]:
        if self._codec == "auto":
            least = WORTH_A_MODEL_OF_HALVES if info.width == 2 else WORTH_A_MODEL
            small = info.rows * info.cols * info.width < least
            return [codec for codec in CODECS.values() if codec.name != "raw" and not (codec.has_models and small)]
        return [CODECS[self._codec]]
