"""Tensors that pruning left in two: the original, and a mask to multiply it with.

torch.nn.utils.prune keeps a tensor `X` as `X_orig` and `X_mask` in the state of a model, until pruning is made
permanent.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sparsefmt.adapters.rows import Rows
from sparsefmt.errors import FormatError

ORIGINAL = "_orig"
MASK = "_mask"


def masked_pairs(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """For each tensor that `names` have in two: its own name, and those of its original and its mask."""
    known = {name: None for name in names if isinstance(name, str)}
    stems = (name.removesuffix(ORIGINAL) for name in known if name.endswith(ORIGINAL))
    return {
        stem: (stem + ORIGINAL, stem + MASK)
        for stem in stems
        if stem + MASK in known and stem and not stem.endswith(".")
    }


def expect_one_shape(original: tuple[int, ...], mask: tuple[int, ...]) -> None:
    """Raise FormatError if a mask does not fit its original."""
    if original != mask:
        raise FormatError("mask-shape", f"its mask has shape {list(mask)}, and its original {list(original)}")


class MaskedRows(Rows):
    """The product of an original and its mask, a run of rows at a time.

    Where the mask is 1, elements keep their bits. Elsewhere they are the product in the dtype of the original, as torch
    computes it: a mask of 0 gives 0.0 with the sign of the element, and NaN for Inf and NaN.

    Raises:
        FormatError: the two differ in shape.
    """

    def __init__(self, original: Rows, mask: Rows) -> None:
        expect_one_shape(original.shape, mask.shape)
        super().__init__(original.dtype, original.shape)
        self._original = original
        self._mask = mask
        self.stack(self.row_dims)

    def stack(self, row_dims: int) -> None:
        super().stack(row_dims)
        self._original.stack(row_dims)
        self._mask.stack(row_dims)

    def bits(self, begin: int, end: int) -> np.ndarray:
        original = self._original.bits(begin, end)
        elements = original.view(self.dtype.numpy)
        with np.errstate(all="ignore"):
            mask = self._mask.bits(begin, end).view(self._mask.dtype.numpy).astype(self.dtype.numpy)
            product = np.asarray(elements * mask, self.dtype.numpy)
        return np.where(mask == mask.dtype.type(1), original, product.view(self.dtype.bits_dtype))
