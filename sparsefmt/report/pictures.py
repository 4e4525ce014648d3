"""Pictures of masks as PNG in data URIs. Nonzeros have a colour that shows on light and dark pages, zeros have none."""

from __future__ import annotations

import base64
import io

import numpy as np

from sparsefmt.patterns.thumbnail import INK
from sparsefmt.report.figures import Picture

LEVELS = 16
"""Shades of a picture: so few take half a byte for each box."""


def density_png(picture: Picture) -> str:
    """The share of nonzeros in each box. The fullest is opaque, and what is not empty can be seen."""
    highest = picture.density.max(initial=0.0)
    levels = np.ceil((LEVELS - 1) * picture.density / highest) if highest else np.zeros_like(picture.density)
    return _png(levels.astype(np.uint8), LEVELS)


def corner_png(picture: Picture) -> str:
    """A pixel for each element of the corner."""
    return _png(picture.corner.astype(np.uint8), 2)


def _png(levels: np.ndarray, count: int) -> str:
    """A data URI of a picture (height, width) of uint8 below `count`, from transparent to opaque."""
    from PIL import Image

    image = Image.fromarray(levels, "L").convert("P")
    image.putpalette([*INK] * count)
    buffer = io.BytesIO()
    opacity = bytes(255 * level // (count - 1) for level in range(count))
    image.save(buffer, "PNG", bits=(count - 1).bit_length(), transparency=opacity, optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
