"""Codec `raw`: the bytes as they are, ready to be mapped and computed on."""

from __future__ import annotations

import numpy as np

from sparsefmt.codecs.contract import Before, Codec, Place


class Raw(Codec):
    name = "raw"
    max_ratio = 1

    def encode(self, raw: np.ndarray, place: Place, model: bytes, before: Before) -> memoryview:
        return memoryview(raw)
