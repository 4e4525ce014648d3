"""Scaled weights in files: which tensor has the scales of which, and what quantizing has lost, both in the metadata.

    sparsefmt.scales    {"X.weight": "X.weight_scale", ...}, JSON: names of weights, and of their scales
    sparsefmt.values    what rounding has lost, JSON: `sparsefmt.quantizing.Loss.as_metadata`

A weight and its scales are in one file. `X.input_scale` beside them is the scale of activations in eight bits, where
that is fixed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np

from sparsefmt.errors import FormatError, SparsefmtError, UnsupportedError
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
        FormatError: the metadata is not a JSON object of names, or has a weight twice (`scales-metadata`); one of a
            pair is not in the file (`scales-missing`).
    """
    text = metadata.get(SCALES)
    if text is None:
        return {}
    try:
        # objects become tuples of pairs, which nothing else of JSON becomes
        members = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, tuple) or not all(isinstance(name, str) for _, name in members):
        raise FormatError("scales-metadata", f"metadata {SCALES!r} is not a JSON object of names of tensors")
    pairs = dict(members)
    if len(pairs) < len(members):
        twice = next(weight for weight, count in Counter(weight for weight, _ in members).items() if count > 1)
        raise FormatError("scales-metadata", f"metadata {SCALES!r} names its scales twice", tensor=twice)
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
        FormatError: the two do not fit (`scales-dtype`, `scales-shape`), or the scales are negative, NaN or infinite
            (`scales-value`).
        UnsupportedError: a weight that is not a matrix.
    """
    if len(shape) != 2:
        raise UnsupportedError(
            "scaled-not-matrix", f"it has scales, {scale!r}, and shape {list(shape)}: not a matrix", tensor=weight
        )
    try:
        return Scales(array, *shape).as_rows()
    except SparsefmtError as error:
        raise FormatError(error.code, f"its scales {scale!r} do not fit: {error.message}", tensor=weight) from None


def checked_input_scale(weight: str, name: str, array: np.ndarray) -> float:
    """The fixed scale of activations for a weight. name: of its tensor.

    Raises:
        FormatError: it is not one number, positive and finite (`input-scale`).
    """
    try:
        scaling = Scaling.of(None, INT8, array, (0, 0))
    except SparsefmtError as error:
        raise FormatError(
            error.code, f"the scale {name!r} of its activations: {error.message}", tensor=weight
        ) from None
    assert scaling.input_scale is not None
    return scaling.input_scale
