"""What people hand in instead of tensors, in their own words, and what to hand in."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsefmt.errors import FormatError


def is_module(value: Any) -> bool:
    """Whether `value` is a model of torch, without importing torch."""
    kind = getattr(sys.modules.get("torch.nn"), "Module", None)
    return kind is not None and isinstance(value, kind)


def expect_tensors(tensors: Any, what: str = "array") -> None:
    """Refuse anything but a mapping of names to tensors, and say what to give instead.

    Raises:
        FormatError: it is not a mapping.
    """
    if not isinstance(tensors, Mapping):
        raise FormatError(
            "tensors-invalid",
            f"tensors must be a dict of name to {what}, not {type(tensors).__name__}{_remedy_for_all(tensors)}",
        )


def _remedy_for_all(tensors: Any) -> str:
    """What to give instead of this, which should be a dict of tensors: words that follow what it is."""
    if is_module(tensors):
        return ": give model.state_dict(), or use sparsefmt.torch.save_model"
    if isinstance(tensors, (str, bytes, os.PathLike)):
        return ": the dict comes first, then the file"
    if isinstance(tensors, (list, tuple)):
        return ": give each a name"
    if hasattr(tensors, "shape"):
        return ": give it a name, as in {'weight': tensor}"
    return ""


def refusal(value: Any) -> str | None:
    """Why this cannot be stored as a tensor, and what to do; None if numpy may try."""
    if value is None:
        return "it is None: leave it out"
    if isinstance(value, Mapping):
        return "it is a dict: give its tensors names of their own, such as 'block.weight', in one flat dict"
    if is_module(value):
        return "it is a torch Module: store the tensors of its state_dict()"
    if isinstance(value, (str, bytes)):
        return "it is text: metadata keeps texts"
    if isinstance(value, os.PathLike):
        return "it is a path: load the file, or let metadata keep its name"
    if isinstance(value, (list, tuple)):
        return _refusal_of_several(value)
    return None


def refusal_of_array(array: np.ndarray, value: Any) -> str | None:
    """Why an array of Python objects, which numpy made of a value, cannot be stored; None for other arrays."""
    if array.dtype.kind != "O":
        return None
    if isinstance(value, np.ndarray):
        return "it is an array of Python objects: cast it to a dtype of numbers"
    return f"its type is {type(value).__name__}, of which numpy makes no array of numbers"


def _refusal_of_several(values: list | tuple) -> str | None:
    kind = type(values).__name__
    for value in values:
        if _is_array(value) and len(getattr(value, "shape", (1,))):
            return f"it is a {kind} of tensors: give each a name of its own, or stack them"
        if value is None or isinstance(value, (Mapping, str, bytes)) or is_module(value):
            return f"it is a {kind} that holds a {type(value).__name__}, not an array of numbers"
    return None


def _is_array(value: Any) -> bool:
    return any(hasattr(value, name) for name in ("__array__", "__array_interface__", "__dlpack__", "shape"))
