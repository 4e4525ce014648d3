"""Codec `raw`: the bytes as they are, ready to be mapped and computed on."""

from __future__ import annotations

import numpy as np

from sparsefmt.codecs.contract import ArrayInfo, Codec, Coder
from sparsefmt.positions import Positions


class Raw(Codec):
    name = "raw"
    max_ratio = 1

    def coder(self, model: bytes, info: ArrayInfo) -> Coder:
        return _RawCoder()


class _RawCoder(Coder):
    def encode(self, raw: np.ndarray, positions: Positions | None, rows: range | None = None) -> memoryview:
        return memoryview(raw)
