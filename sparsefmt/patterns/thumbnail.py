"""A small picture of where a mask has nonzeros, for notebooks: a PNG in a data URI, transparent where it has none."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

from sparsefmt.patterns.mask import Mask

SIDE = 64
"""Most pixels in each direction."""

INK = (59, 130, 246)
"""The colour of nonzeros, which shows on light and dark pages."""


def thumbnail(mask: Mask, width: int = 128) -> str:
    """An <img> of the mask, so many pixels wide; "" without elements. The fullest box is opaque, others as far as they
    are filled."""
    density = mask.density(SIDE, SIDE)
    if not density.size:
        return ""
    pixels = np.empty((*density.shape, 4), np.uint8)
    pixels[..., :3] = INK
    pixels[..., 3] = np.ceil(255 * density / max(density.max(), 1e-300))
    uri = base64.b64encode(_png(pixels)).decode()
    return (
        f'<img alt="where the tensor is not zero" src="data:image/png;base64,{uri}" style="width:{width}px;'
        f"height:{width}px;"
        'image-rendering:pixelated;border:1px solid gray">'
    )


def _png(pixels: np.ndarray) -> bytes:
    """A PNG of RGBA pixels (height, width, 4)."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 4 * width), np.uint8)  # each row begins with its filter, which is none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
