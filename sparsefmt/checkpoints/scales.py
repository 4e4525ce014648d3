"""Scaled weights in files: which tensor has the scales of which, and what else the metadata says of them.

    sparsefmt.scales         {"X.weight": "X.weight_scale", ...}, JSON: names of weights, and of their scales
    sparsefmt.activations    {"X.weight": "int8", ...}, JSON: weights whose activations are rounded to eight bits
    sparsefmt.values         what rounding has lost, JSON: `sparsefmt.quantizing.Loss.as_metadata`

A weight and its scales are in one file. `X.input_scale` beside them is the scale of activations in eight bits, where
that is fixed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from sparsefmt.adapters import Rows
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.errors import FormatError, SparsefmtError, UnsupportedError
from sparsefmt.scales import INT8, Scales, Scaling

SCALES = "sparsefmt.scales"
ACTIVATIONS = "sparsefmt.activations"
VALUES = "sparsefmt.values"
KEYS = (SCALES, ACTIVATIONS, VALUES)
"""Of the metadata that is about scaled weights."""

_WEIGHT = "weight"
_ZERO_POINTS = ("weight_zero_point", "input_zero_point")
_REFUSED = {
    "weight_g_idx": "columns in another order (actorder) are not supported",
    "weight_global_scale": "scales that have a scale are not supported",
    "input_global_scale": "scales that have a scale are not supported",
    "output_scale": "outputs that are quantized are not supported",
    "output_zero_point": "outputs that are quantized are not supported",
}
"""What checkpoints have in the place of "weight" beside a weight that is more than elements times scales."""


class Beside(NamedTuple):
    """What a file has beside the elements of a scaled weight.

    Attributes:
        scale: name of its scales.
        input_scale: name of the fixed scale of its activations, if there is one.
        activations: "int8" where the file says that they are rounded to eight bits; None elsewhere.
    """

    scale: str
    input_scale: str | None
    activations: str | None

    @property
    def names(self) -> set[str]:
        """Of the other tensors."""
        return {self.scale} if self.input_scale is None else {self.scale, self.input_scale}


def as_metadata(pairs: Mapping[str, str], rounded: Collection[str] = ()) -> dict[str, str]:
    """What a file's metadata says of names of weights and of their scales; nothing if there are none.

    rounded: names of those of these weights whose activations are rounded to eight bits.
    """
    found = {SCALES: pairs, ACTIVATIONS: dict.fromkeys(rounded, INT8)}
    return {key: json.dumps(dict(sorted(members.items()))) for key, members in found.items() if members}


def scale_name(weight: str) -> str:
    """What the scales of a weight are called that is called "weight" or "X.weight", as checkpoints have it."""
    return f"{weight}_scale"


def input_scale_name(weight: str) -> str:
    """What the fixed scale of activations for a weight "weight" or "X.weight" is called."""
    return f"{weight.removesuffix(_WEIGHT)}input_scale"


def zero_points_of(weight: str) -> list[str]:
    """What the zero points of a weight "weight" or "X.weight", and of its activations, are called."""
    return [weight.removesuffix(_WEIGHT) + ending for ending in _ZERO_POINTS]


def expect_nothing_else(weight: str, names: Collection[str]) -> None:
    """Refuse a weight that is more than its elements times scales, by the names of all tensors; zero points aside.

    Raises:
        UnsupportedError: there is more (`quantized-otherwise`); it names both tensors.
    """
    layer = weight.removesuffix(_WEIGHT)
    for ending, reason in _REFUSED.items():
        if layer + ending in names:
            raise UnsupportedError("quantized-otherwise", f"{layer + ending!r} is there, and {reason}", tensor=weight)


def scales_in(metadata: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """Names of the scaled weights of a file, and of their scales.

    Args:
        names: of all tensors of the file.

    Raises:
        FormatError: the metadata is not a JSON object of names, or has a weight twice (`scales-metadata`); one of a
            pair is not in the file (`scales-missing`).
        UnsupportedError: zero points, or what else makes more of a weight than elements times scales, are beside one
            (`quantized-otherwise`).
    """
    pairs = _members(metadata, SCALES, "names its scales twice")
    names = set(names) if pairs else ()
    for weight, scale in pairs.items():
        if scale not in names:
            raise FormatError(
                "scales-missing", f"its scales are {scale!r}, which is not among the tensors", tensor=weight
            )
        if weight not in names:
            raise FormatError(
                "scales-missing", f"it has the scales of {weight!r}, which is not among the tensors", tensor=scale
            )
        expect_nothing_else(weight, names)
        for name in zero_points_of(weight):
            if name in names:
                raise UnsupportedError(
                    "quantized-otherwise",
                    f"{name!r} is there, and weights whose scales are {scale!r} have no zero points",
                    tensor=weight,
                )
    return pairs


def scaled_in(metadata: Mapping[str, str], names: Collection[str], tied: Mapping[str, str]) -> dict[str, Beside]:
    """The scaled weights of a file by each of their names, with what belongs to them.

    Args:
        names, tied: of all tensors of the file, and names by which they are known too.

    Raises:
        FormatError: as `scales_in`; metadata on activations is not a JSON object, names a weight twice or one without
            scales, or has another text than "int8" (`activations-metadata`).
    """
    pairs = scales_in(metadata, names)
    rounded = _members(metadata, ACTIVATIONS, "names it twice")
    for weight, how in rounded.items():
        if weight not in pairs:
            raise FormatError(
                _CODES[ACTIVATIONS], f"metadata {ACTIVATIONS!r} names it, and {SCALES!r} does not", tensor=weight
            )
        if how != INT8:
            raise FormatError(_CODES[ACTIVATIONS], f"metadata {ACTIVATIONS!r} has {how!r}, not {INT8!r}", tensor=weight)
    found = {}
    for name in names:
        weight = name if name in pairs else tied.get(name, name)
        if weight in pairs:
            fixed = next((made for made in map(input_scale_name, (name, weight)) if made in names), None)
            found[name] = Beside(pairs[weight], fixed, rounded.get(weight))
    return found


def checked_pairs(file: TensorFile) -> dict[str, str]:
    """The pairs that the metadata of a file names, each looked at as products do.

    Returns:
        as `scales_in`.

    Raises:
        FormatError, UnsupportedError: as `scaled_in`, `checked_scales` and `checked_input_scale`.

    Cost: reads all scales.
    """
    for fault in pair_faults(file):
        raise fault
    return scales_in(file.metadata, file.names)


def pair_faults(file: TensorFile, damaged: Collection[str] = ()) -> Iterator[FormatError | UnsupportedError]:
    """What is wrong with the pairs that the metadata of a file names, one after the other; as `checked_pairs`.

    After an error of the metadata there is nothing more.

    Args:
        damaged: names of tensors that cannot be read. Nothing is said of their pairs.
    """
    try:
        scaled = scaled_in(file.metadata, file.names, file.aliases)
    except (FormatError, UnsupportedError) as error:
        yield error
        return
    for weight, beside in scaled.items():
        if weight in file.aliases or not beside.names.isdisjoint(damaged):
            continue
        try:
            read_scales(file, weight, beside.scale)
            if beside.input_scale is not None:
                checked_input_scale(weight, beside.input_scale, _read(file, beside.input_scale))
        except (FormatError, UnsupportedError) as error:
            yield error


class _HasRows(Protocol):
    """A file of tensors, or several."""

    def rows_of(self, name: str) -> Rows: ...


def read_scales(file: _HasRows, weight: str, scale: str) -> np.ndarray:
    """The scales of a weight as `checked_scales` gives them. scale: their name. Raises as it does."""
    return checked_scales(weight, file.rows_of(weight).shape, scale, _read(file, scale))


def _read(file: _HasRows, name: str) -> np.ndarray:
    rows = file.rows_of(name)
    return rows.bits(0, rows.rows).view(rows.dtype.numpy).reshape(rows.shape)


_CODES = {SCALES: "scales-metadata", ACTIVATIONS: "activations-metadata"}


def _members(metadata: Mapping[str, str], key: str, twice: str) -> dict[str, str]:
    """A JSON object of texts in metadata, by names of weights; empty if it is not there.

    twice: words for a name that stands there twice.
    """
    text = metadata.get(key)
    if text is None:
        return {}
    try:
        # objects become tuples of pairs, which nothing else of JSON becomes
        members = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, tuple) or not all(isinstance(name, str) for _, name in members):
        raise FormatError(_CODES[key], f"metadata {key!r} is not a JSON object of texts, by names of tensors")
    found = dict(members)
    if len(found) < len(members):
        name = next(weight for weight, count in Counter(weight for weight, _ in members).items() if count > 1)
        raise FormatError(_CODES[key], f"metadata {key!r} {twice}", tensor=name)
    return found


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
