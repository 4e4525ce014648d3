"""Codec `zstd`: byte planes, or the rows of a mask, then one zstd frame.

The bytes of an array of `width`-byte elements are first regrouped: all first bytes, then all second bytes, and so on.
Sign and exponent bytes of floats lie together then, which makes values about 10 % smaller than without (measured by
`tools/bench/codecs.py`) at no cost in speed.
"""

from __future__ import annotations

import threading

import numpy as np
import zstandard

from sparsefmt.codecs.contract import ArrayInfo, Codec, Coder
from sparsefmt.errors import FormatError
from sparsefmt.limits import MAX_ZSTD_RATIO
from sparsefmt.positions import Positions
from sparsefmt.positions.masks import in_slices, put_slices, room_for_slices, row_bytes

LEVEL = 3
"""Level 19 makes values and masks of pruned weights 0 to 10 % smaller, at a thirtieth of the speed or less
(tools/bench/codecs.py)."""


_SAMPLED = 1 << 15
"""Bytes of each plane of which the size is estimated."""

_WORTH_ESTIMATING = 1 << 17
"""Bytes of an array below which it takes no longer to encode it."""

_WINDOW_LOG = 21
"""How far back, in bits of a number of bytes, LEVEL looks for repeats."""

_SOME_REPEATS = 0.98
"""Share of the lowest bytes, all by themselves, below which there are repeats that a sample does not show."""

_SMALLEST_WINDOW = 1024
"""Bytes: frames of several segments cannot state a smaller one."""


class _Contexts(threading.local):
    """Each thread's own: to make one takes longer than to code a small array."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
        # it finds repeats, and does little else
        parameters = zstandard.ZstdCompressionParameters.from_level(-1, window_log=_WINDOW_LOG)
        self.finder = zstandard.ZstdCompressor(compression_params=parameters)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


class Zstd(Codec):
    name = "zstd"
    max_ratio = MAX_ZSTD_RATIO

    def coder(self, model: bytes, info: ArrayInfo) -> Coder:
        return _MaskCoder(1) if info.is_mask else _ZstdCoder(info.width)


class _ZstdCoder(Coder):
    def __init__(self, width: int) -> None:
        self._width = width

    def encode(self, raw: np.ndarray, positions: Positions | None, rows: range | None = None) -> bytes:
        planes = raw if self._width == 1 else np.ascontiguousarray(raw.reshape(-1, self._width).T)
        return _contexts.compressor.compress(planes.data)

    def estimate(self, raw: np.ndarray, positions: Positions | None) -> int:
        """From a sample of each plane; 0 where a part of the array seems to repeat another that is far away.

        What repeats does so in the lowest bytes of elements too, which are next to random otherwise: so they are
        searched for repeats, and that is fast. Of 107 arrays (values of a pruned MiniLM and made-up ones, in three
        types), the estimate was 5.6 % too low to 10.5 % too high; none that `auto` left out would have been smaller.
        """
        if raw.size < _WORTH_ESTIMATING:
            return 0
        planes = raw.reshape(-1, self._width).T
        lowest = np.ascontiguousarray(planes[0])
        if len(_contexts.finder.compress(lowest.data)) < _SOME_REPEATS * lowest.size:
            return 0
        begin = max(lowest.size - _SAMPLED, 0) // 2
        sample = np.ascontiguousarray(planes[:, begin : begin + _SAMPLED])
        return len(_contexts.compressor.compress(sample.data)) * raw.size // sample.size

    def decode(self, stored: np.ndarray, positions: Positions | None, out: np.ndarray) -> None:
        planes = _decompressed(stored, out.size)
        # one plane after the other: each assignment casts nothing and copies once
        for byte, plane in enumerate(planes.reshape(self._width, -1)):
            out[byte :: self._width] = plane


class _MaskCoder(_ZstdCoder):
    """Masks are compressed row by row: patterns such as 2:4 lie along rows."""

    def encode(self, raw: np.ndarray, positions: Positions | None, rows: range | None = None) -> bytes:
        assert positions is not None
        height, cols = positions.rows, positions.cols
        return super().encode(row_bytes(in_slices(raw, height, cols), height).reshape(-1), None)

    def estimate(self, raw: np.ndarray, positions: Positions | None) -> int:
        return 0  # masks are short

    def decode(self, stored: np.ndarray, positions: Positions | None, out: np.ndarray) -> None:
        from sparsefmt.positions.jitted import masks as jitted

        assert positions is not None
        rows, cols = positions.rows, positions.cols
        of_rows = _decompressed(stored, rows * -(-cols // 8)).reshape(rows, -1)
        mask = room_for_slices(out, rows, cols)
        if not jitted.from_row_bytes(of_rows, mask):
            raise FormatError("zstd-corrupt", "a row of a mask has bits beyond its columns")
        put_slices(mask, rows, out)


def _decompressed(stored: np.ndarray, size: int) -> np.ndarray:
    """The bytes of the frame that a chunk is, which must be so many: uint8, read-only."""
    return np.frombuffer(decompressed(stored.data, size), np.uint8)


def decompressed(stored: bytes | memoryview, size: int) -> bytes:
    """The content of a zstd frame that fills `stored`, which must be so many bytes. Raises FormatError."""
    try:
        frame = zstandard.get_frame_parameters(stored)
        if stored[:4] != zstandard.FRAME_HEADER or frame.dict_id:
            raise FormatError("zstd-corrupt", "a zstd frame is skippable, or wants a dictionary")
        if frame.content_size != size:
            raise FormatError("zstd-size", f"a zstd frame holds {frame.content_size:,} bytes, not {size:,}")
        if frame.window_size > max(size, _SMALLEST_WINDOW):
            raise FormatError("zstd-corrupt", f"a zstd frame wants a window of {frame.window_size:,} bytes")
        return _contexts.decompressor.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError("zstd-corrupt", f"a zstd frame does not decode: {error}") from None
