"""Codec `raw`: the bytes as they are, ready to be mapped and computed on."""

from __future__ import annotations

import numpy as np

from sparsefmt.codecs.contract import Before, Codec, Place
from sparsefmt.errors import FormatError


class Raw(Codec):
    name = "raw"
    max_ratio = 1

    def encode(self, raw: np.ndarray, place: Place, model: bytes, before: Before) -> memoryview:
        return memoryview(raw)

    def decode(self, stored: np.ndarray, place: Place, model: bytes, before: Before, out: np.ndarray) -> None:
        if stored.size != out.size:
            raise FormatError("chunk-size", f"a raw chunk has {stored.size:,} bytes, not {out.size:,}")
        out[:] = stored
