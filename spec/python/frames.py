"""Section 5.2 of SPEC.md: frames of zstd, in chunks and in the index."""

from __future__ import annotations

import zstandard
from faults import Fault, require

ZSTD_MAGIC = bytes.fromhex("28 B5 2F FD")


def decode_frame(chunk: bytes, size: int) -> bytes:
    """One frame that states this content size, uses no dictionary, and fills the chunk exactly."""
    try:
        require(chunk[:4] == ZSTD_MAGIC, "zstd-corrupt", "no zstd frame")
        frame = zstandard.get_frame_parameters(chunk)
        require(frame.dict_id == 0, "zstd-corrupt", "frame with a dictionary")
        require(frame.content_size == size, "zstd-size", f"content size {frame.content_size}, not {size}")
        require(frame.window_size <= max(size, 1024), "zstd-corrupt", f"window of {frame.window_size} bytes")
        return zstandard.ZstdDecompressor().decompress(chunk, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Fault("zstd-corrupt", str(error)) from None
