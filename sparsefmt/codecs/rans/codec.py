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

    def fit(self, info: ArrayInfo, each: Each) -> tuple[bytes, Coder | None]:
        if info.is_mask:
            of_masks, row_symbols = masks.fit(info, each)
            return masks.write_model(of_masks), masks.MaskCoder(of_masks, info, row_symbols)
        of_elements = elements.fit(info, each)
        if of_elements is None:
            return b"", None
        model, row_classes = of_elements
        return elements.write_model(model), elements.ElementCoder(model, info, row_classes)

    def coder(self, model: bytes, info: ArrayInfo) -> Coder:
        if info.is_mask:
            return masks.MaskCoder(masks.read_model(model, info.cols), info)
        return elements.ElementCoder(elements.read_model(model, 8 * info.width, info.cols), info)
