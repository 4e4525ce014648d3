"""Scales of a weight matrix, and how a product uses them: checked once, as one object."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from sparsefmt.errors import SparsefmtError

INT8 = "int8"
"""The only type that activations can be rounded to."""

BEYOND = 64
"""Numbers that may be read behind the last of scales of groups."""

_FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


class Scales:
    """One factor for each row of a matrix, or for each row and group of columns. Immutable.

    Attributes:
        values: float32 (groups, rows), C-contiguous and read-only; if there are several groups, BEYOND numbers behind
            it are readable.
        groups: how many groups of columns there are, all of one size.
    """

    __slots__ = ("groups", "values")

    def __init__(self, scale: Any, rows: int, cols: int, *, copy: bool = True) -> None:
        """Scales of a matrix of so many rows and columns.

        Args:
            scale: finite numbers of 0 or more, of float32, float16 or bfloat16: one for the matrix, () or (1,) or
                (1, 1), one for each row, (rows,) or (rows, 1), or (rows, groups), where the groups divide the columns.
            copy: False to use the memory of float32 scales, which nobody may write to then: of rows; and of groups, if
                they lie there as `values` does, with BEYOND readable numbers behind them.

        Raises:
            SparsefmtError: a ValueError: another dtype (`scales-dtype`) or shape (`scales-shape`); a negative number,
                NaN or Inf (`scales-value`).

        Cost: one copy of the scales, unless `copy` is False.
        """
        scale = np.asarray(scale)
        if scale.dtype not in _FLOATS:
            raise SparsefmtError(
                "scales-dtype", f"the scale has dtype {scale.dtype}; it must be float32, float16 or bfloat16"
            )
        shape = scale.shape
        if scale.ndim == 2 and shape[0] == rows and shape[1] > 1:
            groups = shape[1]
            if cols % groups:
                raise SparsefmtError(
                    "scales-shape", f"the scale has shape {shape}: {groups:,} groups do not divide {cols:,} columns"
                )
        elif shape in ((), (1,), (1, 1), (rows,), (rows, 1)):
            groups = 1
        else:
            raise SparsefmtError(
                "scales-shape",
                f"the scale has shape {shape}; a weight of shape {(rows, cols)} takes one number, {(rows,)}, or"
                f" ({rows}, groups of columns)",
            )
        as_they_are = not copy and scale.dtype == np.float32
        if as_they_are and groups == 1 and scale.size == rows and scale.flags.c_contiguous:
            values = scale.reshape(1, rows)
        elif as_they_are and groups > 1 and scale.flags.f_contiguous:
            values = scale.T
        else:
            values = np.zeros(groups * rows + BEYOND, np.float32)[: groups * rows].reshape(groups, rows)
            values[...] = scale.reshape(-1, groups).T
        if not np.isfinite(values).all():
            raise SparsefmtError("scales-value", "the scale has NaN or Inf")
        if (values < 0).any():
            raise SparsefmtError("scales-value", "the scale has negative numbers")
        values.flags.writeable = False
        self.values, self.groups = values, groups

    def as_rows(self) -> np.ndarray:
        """float32 (rows, groups), as files have them. A copy."""
        return np.array(self.values.T, order="C")

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


class Scaling(NamedTuple):
    """What a scaled product is made with.

    Attributes:
        scales: of the weights; None for 1.
        eight_bits: whether activations are rounded to eight bits.
        input_scale: their scale; None: each token has its own.
    """

    scales: Scales | None
    eight_bits: bool = False
    input_scale: float | None = None

    @classmethod
    def of(cls, scale: Any, activations: str | None, input_scale: Any, shape: tuple[int, int]) -> Scaling:
        """Checked, for a matrix of `shape`.

        Raises:
            SparsefmtError: a scale that does not fit, as for `Scales`; an input scale that is not one number, positive
                and finite (`input-scale`).
            ValueError: unknown activations, or an input scale that nothing uses.
        """
        scales = scale if isinstance(scale, Scales | None) else Scales(scale, *shape)
        if scales is not None and scales.values.shape[1] != shape[0]:
            raise SparsefmtError(
                "scales-shape", f"the scale is one of {scales.values.shape[1]:,} rows; the weights have {shape[0]:,}"
            )
        if scales is not None and shape[1] % scales.groups:
            raise SparsefmtError(
                "scales-shape", f"the scale has {scales.groups:,} groups, which do not divide {shape[1]:,} columns"
            )
        if activations not in (None, INT8):
            raise ValueError(f"activations must be None or 'int8', not {activations!r}")
        if input_scale is not None:
            if activations is None:
                raise ValueError("an input_scale is for activations='int8'")
            input_scale = _input_scale_of(input_scale)
        return cls(scales, activations == INT8, input_scale)


def _input_scale_of(number: Any) -> float:
    """A number of binary32. Raises SparsefmtError."""
    numbers = np.asarray(number)
    if numbers.size != 1:
        raise SparsefmtError("input-scale", f"input_scale must be one number, and has shape {numbers.shape}")
    with np.errstate(over="ignore"):
        rounded = float(numbers.astype(np.float32).item())
    if not 0 < rounded < np.inf:
        raise SparsefmtError("input-scale", f"input_scale must be positive and finite, not {rounded}")
    return rounded
