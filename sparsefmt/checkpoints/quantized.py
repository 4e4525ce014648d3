"""Quantized weights in checkpoints of compressed-tensors: what stands beside each, and whether it fits.

X.weight              I8 or F8_E4M3 (rows, cols); it may be spelled as a bitmask or packed: see `folding`
X.weight_scale        F32, BF16 or F16: one for all, one a row, or one for each group of columns of a row
X.input_scale         the same, one: what activations are divided by, where that is not found for each token
X.weight_zero_point   zeros, where there is one: of symmetric weights it says nothing
X.weight_g_idx        refused: columns in another order
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from sparsefmt.adapters import Rows
from sparsefmt.checkpoints.compressed_tensors import Quantization, Scheme
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.scales import expect_nothing_else, zero_points_of
from sparsefmt.errors import FormatError, UnsupportedError, in_file

Files = Mapping[str, TensorFile]
"""Which file of a checkpoint has a tensor, by its name."""

WEIGHT, SCALE, INPUT_SCALE = ".weight", ".weight_scale", ".input_scale"
_DTYPES = ("I8", "F8_E4M3")
_SCALES = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight that is elements times scales.

    Attributes:
        name: of the elements, X.weight.
        scheme: how it is quantized.
        files: of its checkpoint.
        others: names of all else that belongs to it: scales, and zero points that say nothing.
    """

    name: str
    scheme: Scheme
    files: Files
    others: tuple[str, ...]

    @property
    def layer(self) -> str:
        return self.name.removesuffix(WEIGHT)

    def rows(self) -> Rows:
        """The elements, to be read a run of rows at a time."""
        return self.files[self.name].rows_of(self.name)

    def scales(self) -> np.ndarray:
        """The scales, float32, in the shape that they have in the file.

        Raises:
            FormatError: one of them is NaN, infinite or negative (`scales-value`); it names both tensors.
            as the file.
        """
        name = self.layer + SCALE
        values = _read(self.files, name)
        wrong = values[~(np.isfinite(values) & (values >= 0))]
        if wrong.size:
            raise FormatError(
                "scales-value",
                f"{wrong.size:,} of its {values.size:,} scales, {name!r}, are not numbers from 0 on: {wrong[0]} is one",
                tensor=self.name,
            )
        return values

    def input_scale(self) -> float | None:
        """What activations are divided by, where the config has them static; else None.

        Raises:
            FormatError: it is not a number above 0 (`input-scale`); it names both tensors.
        """
        if self.scheme.activations != "int8-static":
            return None
        name = self.layer + INPUT_SCALE
        value = float(_read(self.files, name).reshape(-1)[0])
        if not (np.isfinite(value) and value > 0):
            raise FormatError("input-scale", f"the scale of its inputs, {name!r}, is {value}", tensor=self.name)
        return value

    def check(self) -> None:
        """Read all that belongs to the weight but its elements. Raises as `scales`, `input_scale`, with the file."""
        with in_file(self.files[self.name].path):
            self.scales()
            self.input_scale()


def quantized_weights(
    files: Files, quantization: Quantization, scaled: Collection[str] = ()
) -> dict[str, QuantizedWeight]:
    """The quantized weights of a checkpoint, by name, once its tensors are folded (`folding`).

    Scales are not read yet: dtypes and shapes are checked, and zero points.

    Args:
        scaled: names of weights whose scales are known otherwise, and need not be in the config.

    Raises:
        FormatError: a weight or its scales are missing (`scales-missing`), or one does not fit the other or the config
            (`scales-shape`, `scales-dtype`, `scales-unexpected`, `input-scale`); it names both tensors.
        UnsupportedError: there is more beside a weight than scales; it names both tensors (`quantized-otherwise`).
    """
    return {weight.name: weight for weight in _each_weight(files, quantization, scaled)}


def _each_weight(files: Files, quantization: Quantization, scaled: Collection[str]) -> Iterator[QuantizedWeight]:
    layers = dict.fromkeys(name.removesuffix(end) for name in files for end in (WEIGHT, SCALE) if name.endswith(end))
    for layer in layers:
        name, scale, scheme = layer + WEIGHT, layer + SCALE, quantization.scheme_of(layer)
        is_byte = name in files and files[name].rows_of(name).dtype.name in _DTYPES
        if scheme is None and (scale not in files or name in scaled):
            # a layer that has been left out: it is what it is
            continue
        if scale not in files and not is_byte:
            continue
        with in_file(files[name if name in files else scale].path):
            if name not in files:
                words = f"its scales, {scale!r}, are there, and the weight is not"
                raise FormatError("scales-missing", words, tensor=name)
            if scale not in files:
                raise FormatError("scales-missing", f"its scales, {scale!r}, are not there", tensor=name)
            if scheme is None:
                words = f"its scales, {scale!r}, are there, and no group of the config is for it"
                raise FormatError("scales-unexpected", words, tensor=name)
        yield _checked(name, scheme, files)


def _checked(name: str, scheme: Scheme, files: Files) -> QuantizedWeight:
    layer = name.removesuffix(WEIGHT)
    with in_file(files[name].path):
        weight = files[name].rows_of(name)
        if len(weight.shape) != 2:
            raise UnsupportedError(
                "quantized-otherwise",
                f"it is {list(weight.shape)}, and not of two dimensions, times {layer + SCALE!r}",
                tensor=name,
            )
        if weight.dtype.name != scheme.dtype:
            raise FormatError(
                "scales-dtype",
                f"it is {weight.dtype.name}, and by group {scheme.group!r} should be {scheme.dtype}, times"
                f" {layer + SCALE!r}",
                tensor=name,
            )
        nothing = expect_symmetric(files, name)
        _check_scales(name, scheme, files[layer + SCALE].rows_of(layer + SCALE), weight)
        others = [layer + SCALE, *nothing]
        if (found := _input_scale(name, scheme, files)) is not None:
            others.append(found)
    return QuantizedWeight(name, scheme, files, tuple(others))


def _check_scales(name: str, scheme: Scheme, scales: Rows, weight: Rows) -> None:
    rows, cols = weight.shape
    beside = name.removesuffix(WEIGHT) + SCALE
    if scales.dtype.name not in _SCALES:
        raise FormatError(
            "scales-dtype",
            f"its scales, {beside!r}, are {scales.dtype.name}, none of {', '.join(_SCALES)}",
            tensor=name,
        )
    if scheme.group_size is not None and cols % scheme.group_size:
        raise FormatError(
            "scales-shape",
            f"its {cols:,} columns do not divide into groups of {scheme.group_size:,}, for each of which {beside!r} has"
            " a scale",
            tensor=name,
        )
    fitting: dict[str, list[tuple[int, ...]]] = {
        "tensor": [(), (1,), (1, 1)],
        "channel": [(rows, 1), (rows,)],
        "group": [(rows, cols // (scheme.group_size or 1))],
    }
    if scales.shape not in fitting[scheme.strategy]:
        wanted = " or ".join(str(list(shape)) for shape in fitting[scheme.strategy])
        raise FormatError(
            "scales-shape",
            f"it is {[rows, cols]}, and its scales, {beside!r}, are {list(scales.shape)}: by group {scheme.group!r}"
            f" ({scheme.strategy}) they should be {wanted}",
            tensor=name,
        )


def _input_scale(name: str, scheme: Scheme, files: Files) -> str | None:
    """The name of the scale of the inputs, where there is one."""
    scale = name.removesuffix(WEIGHT) + INPUT_SCALE
    if scale not in files:
        if scheme.activations == "int8-static":
            raise FormatError("scales-missing", f"the scale of its inputs, {scale!r}, is not there", tensor=name)
        return None
    if scheme.activations not in ("int8-static", "fp8"):
        raise FormatError(
            "scales-unexpected",
            f"the scale of its inputs, {scale!r}, is there, and group {scheme.group!r} has no static ones",
            tensor=name,
        )
    found = files[scale].rows_of(scale)
    if found.dtype.name not in _SCALES or found.rows * found.cols != 1:
        raise FormatError(
            "input-scale",
            f"the scale of its inputs, {scale!r}, is {found.dtype.name} {list(found.shape)}, and not one number",
            tensor=name,
        )
    return scale


def expect_symmetric(files: Files, weight: str) -> list[str]:
    """Refuse a weight that is more than its elements times scales.

    Args:
        weight: its name, X.weight.

    Returns:
        names of tensors beside it that say nothing: zero points that are 0.

    Raises:
        UnsupportedError: there is more; it names both tensors.
    """
    expect_nothing_else(weight, files)
    nothing = [name for name in zero_points_of(weight) if name in files]
    for name in nothing:
        if _has_nonzero(files[name].rows_of(name)):
            raise UnsupportedError(
                "quantized-otherwise",
                f"{name!r} is not 0 everywhere, and zero points other than 0 are not supported",
                tensor=weight,
            )
    return nothing


def _has_nonzero(rows: Rows) -> bool:
    zeros = [0, rows.dtype.negative_zero]
    return any(not np.isin(rows.bits(*run), zeros).all() for run in rows.runs(0, rows.rows))


def _read(files: Files, name: str) -> np.ndarray:
    """A tensor as float32, which all dtypes of scales are exactly."""
    with in_file(files[name].path):
        rows = files[name].rows_of(name)
        values = rows.bits(0, rows.rows).view(rows.dtype.numpy)
    return values.astype(np.float32).reshape(rows.shape)
