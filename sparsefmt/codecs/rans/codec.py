"""Codec `rans`: entropy coding with a model of the whole tensor (`elements.py`, `positions.py`).

Masks are coded as positions, every other array as elements; row offsets, which follow from the mask, are not stored.
Models stand in the index, so that a tile can be decoded by itself and tables are paid for once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from sparsefmt.codecs.contract import Before, Codec, Each, Place
from sparsefmt.codecs.rans import elements, positions
from sparsefmt.codecs.rans.streams import read_only
from sparsefmt.errors import FormatError
from sparsefmt.limits import MAX_RANS_RATIO


class Rans(Codec):
    name = "rans"
    max_ratio = MAX_RANS_RATIO
    has_models = True

    def derives(self, array: str) -> bool:
        return array == "row_offsets"

    def fit(self, place: Place, each: Each) -> bytes:
        if self.derives(place.array):
            return b""
        if place.array == "mask":

            def each_mask(work: Callable[[np.ndarray, range], object]) -> Iterator:
                return each(lambda raw, _, rows: work(_mask(raw, place.cols), rows))

            return positions.fit(each_mask, place.rows, place.cols)

        def each_elements(work: Callable[[np.ndarray, Before, range], object]) -> Iterator:
            return each(lambda raw, before, rows: work(_elements(raw, place.width), _before(place, before), rows))

        return elements.fit(each_elements, 8 * place.width, place.rows, place.cols)

    def encode(self, raw: np.ndarray, place: Place, model: bytes, before: Before) -> bytes:
        if self.derives(place.array) or not raw.size:
            return b""
        if place.array == "mask":
            return positions.coder(model, place.cols).encode(_mask(raw, place.cols))
        return elements.coder(model, 8 * place.width, place.cols).encode(
            _elements(raw, place.width), _before(place, before), place.rows
        )

    def decode(self, stored: np.ndarray, place: Place, model: bytes, before: Before, out: np.ndarray) -> None:
        if self.derives(place.array):
            from sparsefmt.codecs.rans.jitted import masks

            masks.row_offsets(_mask(before["mask"], place.cols), out.view(np.uint32))
        elif place.array == "mask":
            positions.coder(model, place.cols).decode(stored, out.view(np.uint64).reshape(place.rows, -1))
        elif not stored.size:
            raise FormatError("rans-stream", "a chunk ends too early")
        else:
            coder = elements.coder(model, 8 * place.width, place.cols)
            coder.decode(stored, _before(place, before), place.rows, out.view(f"u{place.width}"))


def _before(place: Place, before: Before) -> Before:
    """What says where elements stand: nothing does for arrays other than values."""
    return before if place.array == "values" else {"": np.empty(0, np.uint8)}


def _elements(raw: np.ndarray, width: int) -> np.ndarray:
    return read_only(raw.view(f"u{width}"))


def _mask(raw: np.ndarray, cols: int) -> np.ndarray:
    return _elements(raw, 8).reshape(-1, -(-cols // 64))
