"""Scaled weights in files: which tensor has the scales of which, and what quantizing has lost, both in the metadata.

    sparsefmt.scales    {"X.weight": "X.weight_scale", ...}, JSON: names of weights, and of their scales
    sparsefmt.values    what rounding has lost, JSON: `sparsefmt.quantizing.Loss.as_metadata`

A weight and its scales are in one file. `X.input_scale` beside them is the scale of activations in eight bits, where
that is fixed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

import numpy as np

from sparsefmt.errors import FormatError
from sparsefmt.scales import INT8, Scales, Scaling

SCALES = "sparsefmt.scales"
VALUES = "sparsefmt.values"

_WEIGHT = "weight"


def as_metadata(pairs: Mapping[str, str]) -> dict[str, str]:
    """What a file's metadata says of names of weights and of their scales; nothing if there are none."""
    return {SCALES: json.dumps(dict(sorted(pairs.items())))} if pairs else {}


def scale_name(weight: str) -> str:
    """What the scales of a weight are called that is called "weight" or "X.weight", as checkpoints have it."""
    return f"{weight}_scale"


def input_scale_name(weight: str) -> str:
    """What the fixed scale of activations for a weight "weight" or "X.weight" is called."""
    return f"{weight.removesuffix(_WEIGHT)}input_scale"


def scales_in(metadata: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """Names of the scaled weights of a file, and of their scales.

    Args:
        names: of all tensors of the file.

    Raises:
        FormatError: the metadata is damaged, or one of a pair is not in the file.
    """
    text = metadata.get(SCALES)
    if text is None:
        return {}
    try:
        pairs = json.loads(text)
    except (ValueError, RecursionError):
        pairs = None
    if not isinstance(pairs, dict) or not all(isinstance(name, str) for name in pairs.values()):
        raise FormatError("scales-metadata", f"metadata {SCALES!r} is not a JSON object of names of tensors")
    for weight, scale in pairs.items():
        if scale not in names:
            raise FormatError(
                "scales-missing", f"its scales are {scale!r}, which is not among the tensors", tensor=weight
            )
        if weight not in names:
            raise FormatError(
                "scales-missing", f"it has the scales of {weight!r}, which is not among the tensors", tensor=scale
            )
    return pairs


def checked_scales(weight: str, shape: tuple[int, ...], scale: str, array: np.ndarray) -> np.ndarray:
    """Scales as products take them: float32 (rows, groups).

    Args:
        weight, scale: names of the two tensors.
        shape: of the weight.
        array: the scales as they are stored.

    Raises:
        FormatError: the two do not fit, or the scales are negative, NaN or infinite.
    """
    try:
        if len(shape) != 2:
            raise ValueError(f"a tensor of shape {list(shape)} is not a matrix, and has no scales")
        return Scales(array, *shape).as_rows()
    except ValueError as error:
        raise FormatError("scales-invalid", f"its scales {scale!r} do not fit: {error}", tensor=weight) from None


def checked_input_scale(weight: str, name: str, array: np.ndarray) -> float:
    """The fixed scale of activations for a weight. name: of its tensor.

    Raises:
        FormatError: it is not one positive number.
    """
    try:
        if array.size != 1:
            raise ValueError(f"input_scale has shape {list(array.shape)}, and must be one number")
        scaling = Scaling.of(None, INT8, array.astype(np.float32).reshape(()), (0, 0))
    except ValueError as error:
        raise FormatError("scales-invalid", f"the scale {name!r} of its activations: {error}", tensor=weight) from None
    assert scaling.input_scale is not None
    return scaling.input_scale
