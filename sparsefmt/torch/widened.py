"""Tensors that had 16 bits and are float32 while a model computes: which they are, and how they are stored again.

A module notes the dtype that each of its own tensors had, by attribute. The note is an ordinary attribute of the
module, so that copies and pickles of it have it as well, wherever in another model they are put.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np
import torch

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
"""dtypes whose tensors are widened. All of their values are float32 values."""

_NOTE = "_sparsefmt_stored_dtypes"


def note(module: torch.nn.Module, attribute: str, dtype: torch.dtype) -> None:
    """Note that a parameter or buffer of a module had this dtype of 16 bits, and is float32."""
    module.__dict__.setdefault(_NOTE, {})[attribute] = dtype


def noted(module: torch.nn.Module) -> dict[str, torch.dtype]:
    """What has been noted for a module, by attribute."""
    return module.__dict__.get(_NOTE, {})


def pass_on(old: torch.nn.Module, new: torch.nn.Module, attributes: Iterable[str]) -> None:
    """Note for a module what is noted for the one that it replaces."""
    for attribute in attributes:
        if attribute in noted(old):
            note(new, attribute, noted(old)[attribute])


def stored_dtypes(model: torch.nn.Module) -> dict[str, torch.dtype]:
    """What has been noted in a whole model, by the names that `state_dict` has, all of those that share a tensor."""
    return {
        f"{name}.{attribute}" if name else attribute: dtype
        for name, module in model.named_modules(remove_duplicate=False)
        for attribute, dtype in noted(module).items()
    }


def as_stored(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor as it is stored: in the 16 bits that it was widened from, if none of its bits is lost by that.

    A tensor that is not float32 any more, or has been changed to values that need float32, is returned as it is.

    Cost: a pass over the tensor, and the tensor of 16 bits.
    """
    if tensor.dtype != torch.float32 or tensor.device.type == "meta":
        return tensor
    if not tensor.numel():
        return tensor.detach().to(dtype)
    flat = tensor.detach().reshape(-1)
    if dtype == torch.bfloat16:
        # by its halves, since a cast does not keep the bits of a NaN
        halves = flat.view(torch.int16).view(-1, 2).unbind(1)
        low, high = halves if sys.byteorder == "little" else halves[::-1]
        return tensor if low.any() else high.contiguous().view(dtype).reshape(tensor.shape)
    elements = flat.cpu().numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        made = elements.astype(np.float16)
        is_same = np.array_equal(made.astype(np.float32).view(np.uint32), elements.view(np.uint32))
    return torch.from_numpy(made).to(tensor.device).reshape(tensor.shape) if is_same else tensor
