"""Codec `rans`: entropy coding with a model of the whole tensor. Masks are coded as such, other arrays as elements.

Models stand in the index, so that a tile can be decoded by itself and tables are paid for once.
"""

from __future__ import annotations

from sparsefmt.codecs.contract import ArrayInfo, Codec, Coder, Each
from sparsefmt.codecs.rans import elements, masks
from sparsefmt.limits import MAX_RANS_RATIO


class Rans(Codec):
    name = "rans"
    max_ratio = MAX_RANS_RATIO
    has_models = True
    leaves_out_derived = True

    def fit(self, info: ArrayInfo, each: Each) -> bytes:
        return masks.fit(info, each) if info.is_mask else elements.fit(info, each)

    def coder(self, model: bytes, info: ArrayInfo) -> Coder:
        return masks.MaskCoder(model, info) if info.is_mask else elements.ElementCoder(model, info)
