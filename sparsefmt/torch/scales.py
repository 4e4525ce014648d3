"""What a SparseLinear is given of scales and activations, checked, as the tensors that it keeps."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.weak import WeakIdKeyDictionary

from sparsefmt.adapters.torch import DTYPES_BY_TORCH, rows_of
from sparsefmt.errors import SparsefmtError, UnsupportedError
from sparsefmt.scales import BEYOND, Scales

ACTIVATIONS = (None, "int8")
"""How activations are multiplied: as they are, or rounded to eight bits."""


def tensor_of_scales(scale: ArrayLike | torch.Tensor | Scales, shape: tuple[int, ...]) -> torch.Tensor:
    """Scales of a weight of that shape: float32 (rows, groups), on the CPU. Of several groups, `as_kernels_read`.

    Raises:
        SparsefmtError: a ValueError: they do not fit, or are negative, NaN or infinite, or of a dtype that scales
            cannot have. Codes are those of `Scales`.
    """
    rows, cols = shape
    if isinstance(scale, (int, float)):
        scale = np.float32(scale)
    array = scale.as_rows() if isinstance(scale, Scales) else array_of(scale)
    checked = Scales(array, rows, cols).as_rows()
    with torch.inference_mode(False):
        rows_alone = checked.shape[1] == 1
        if isinstance(scale, torch.Tensor) and scale.dtype == torch.float32 and scale.shape == checked.shape:
            # a tensor that a file or another layer has is not copied, if kernels can read it
            if rows_alone:
                return scale.detach().cpu().contiguous()
            if as_kernels_read(scale):
                return scale.detach()
        if rows_alone:
            return torch.from_numpy(checked)
        groups = checked.shape[1]
        memory = torch.zeros(groups * rows + BEYOND, dtype=torch.float32, device="cpu")
        made = memory[: groups * rows].view(groups, rows).t()
        return made.copy_(torch.from_numpy(checked))


def as_kernels_read(scale: torch.Tensor) -> bool:
    """Whether scales (rows, groups) of several groups lie in memory as `Scales.values` does, so that they need not be
    there twice."""
    if not scale.is_cpu or scale.dim() != 2 or scale.shape[1] == 1 or not scale.t().is_contiguous():
        return False
    behind = scale.storage_offset() + scale.numel() + BEYOND
    return behind * scale.element_size() <= scale.untyped_storage().nbytes()


_saved: Any = WeakIdKeyDictionary()
"""Contiguous copies of scales, as long as somebody keeps them: by the scales."""


def as_saved(scale: torch.Tensor) -> torch.Tensor:
    """Scales contiguous, for who saves them: themselves if they are, else a copy, the same one for layers that share
    their scales."""
    if scale.is_contiguous():
        return scale
    kept = _saved.get(scale)
    made = None if kept is None else kept()
    if made is None:
        made = scale.contiguous()
        _saved[scale] = weakref.ref(made)
    return made


def tensor_of_input_scale(input_scale: float | torch.Tensor) -> torch.Tensor:
    """A scale of activations: float32 ().

    Raises:
        SparsefmtError: a ValueError: it is not one positive number (`input-scale`).
    """
    count = input_scale.numel() if isinstance(input_scale, torch.Tensor) else 1
    value = float(np.float32(float(input_scale))) if count == 1 else math.nan
    if not 0 < value < math.inf:
        raise SparsefmtError("input-scale", f"input_scale must be a positive number, not {input_scale!r}")
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float32, device="cpu")


def checked_activations(activations: object) -> str | None:
    """The argument of public functions. Raises ValueError."""
    if activations is None or activations == "int8":
        return activations
    raise ValueError(f"activations must be None or 'int8', not {activations!r}")


def activations_to_load(asked: object) -> str | None:
    """The argument of functions that load: "int8", "float", or None for what the files say. Raises ValueError."""
    if asked in (None, "int8", "float"):
        return asked
    raise ValueError(f"activations must be None, 'int8' or 'float', not {asked!r}")


def chosen_activations(asked: str | None, stored: str | None) -> str | None:
    """How a layer multiplies activations.

    Args:
        asked: what a caller asked for, as `activations_to_load` has it.
        stored: what the files say of the weight.
    """
    return stored if asked is None else None if asked == "float" else asked


def expect_int8(activations: str | None, elements: str | None, name: str | None = None) -> None:
    """Refuse activations in eight bits for weights that are not scaled elements of int8.

    Args:
        elements: name of the dtype of scaled elements; None for weights without scales.
        name: of the weights, if they have one.

    Raises:
        UnsupportedError: a ValueError: they are others (`activations-dtype`).
    """
    if activations is not None and elements != "I8":
        what = "not scaled" if elements is None else f"scaled elements of {elements}"
        raise UnsupportedError(
            "activations-dtype",
            f"activations={activations!r} is for scaled weights of int8 (I8), and these are {what}",
            tensor=name,
        )


def array_of(scale: ArrayLike | torch.Tensor) -> np.ndarray:
    """Scales as numpy has them, bfloat16 by ml_dtypes.

    Raises:
        SparsefmtError: a ValueError: a dtype that they cannot have (`scales-dtype`).
    """
    if not isinstance(scale, torch.Tensor):
        return np.asarray(scale)
    if scale.dtype not in DTYPES_BY_TORCH:
        raise SparsefmtError("scales-dtype", f"scales are float32, bfloat16 or float16, not {scale.dtype}")
    bits, dtype = rows_of(scale), DTYPES_BY_TORCH[scale.dtype]
    return bits.bits(0, bits.rows).view(dtype.numpy).reshape(tuple(scale.shape))
