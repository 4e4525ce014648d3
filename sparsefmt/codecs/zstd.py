"""Codec `zstd`: byte planes, then one zstd frame.

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

LEVEL = 3
"""Level 19 makes values and masks of pruned weights 0 to 10 % smaller, at a thirtieth of the speed or less
(tools/bench/codecs.py)."""


_SMALLEST_WINDOW = 1024
"""Bytes: frames that are no single segment cannot state a smaller one."""


class _Contexts(threading.local):
    """Each thread's own: to make one takes longer than to code a small array."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


class Zstd(Codec):
    name = "zstd"
    max_ratio = MAX_ZSTD_RATIO

    def coder(self, model: bytes, info: ArrayInfo) -> Coder:
        return _ZstdCoder(info.width)


class _ZstdCoder(Coder):
    def __init__(self, width: int) -> None:
        self._width = width

    def encode(self, raw: np.ndarray, positions: Positions | None) -> bytes:
        planes = raw if self._width == 1 else np.ascontiguousarray(raw.reshape(-1, self._width).T)
        return _contexts.compressor.compress(planes.data)

    def decode(self, stored: np.ndarray, positions: Positions | None, out: np.ndarray) -> None:
        try:
            frame = zstandard.get_frame_parameters(stored.data)
            if stored.data[:4] != zstandard.FRAME_HEADER or frame.dict_id:
                raise FormatError("zstd-corrupt", "a zstd frame is skippable, or wants a dictionary")
            if frame.content_size != out.size:
                raise FormatError("zstd-size", f"a zstd frame holds {frame.content_size:,} bytes, not {out.size:,}")
            if frame.window_size > max(out.size, _SMALLEST_WINDOW):
                raise FormatError("zstd-corrupt", f"a zstd frame wants a window of {frame.window_size:,} bytes")
            planes = _contexts.decompressor.decompress(stored.data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise FormatError("zstd-corrupt", f"a zstd frame does not decode: {error}") from None
        # one plane after the other: each assignment casts nothing and copies once
        for byte, plane in enumerate(np.frombuffer(planes, np.uint8).reshape(self._width, -1)):
            out[byte :: self._width] = plane
