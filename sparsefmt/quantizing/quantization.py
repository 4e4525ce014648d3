"""How weights are quantized, and what that has lost. No arithmetic: what asks for settings imports this."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from sparsefmt.errors import UnsupportedError

VALUES = ("int8", "fp8")
GROUP_SIZES = (32, 64, 128)
SCALES = ("absmax", "mse")

_DTYPES = {"int8": "I8", "fp8": "F8_E4M3"}
_LARGEST = {"int8": 127, "fp8": 448}


@dataclass(frozen=True)
class Quantization:
    """How weights are quantized.

    Attributes:
        values: "int8", or "fp8" for F8_E4M3.
        group_size: columns that share a scale, 32, 64 or 128; None for a scale for each row.
        scale: "absmax" to let the largest magnitude be the largest element, or "mse" for the scale with the least sum
            of squared errors that was found: every element may then be a little off, the largest more.

    Raises:
        ValueError: anything else.
    """

    values: str = "int8"
    group_size: int | None = None
    scale: str = "absmax"

    def __post_init__(self) -> None:
        if self.values not in VALUES:
            raise ValueError(f"values must be 'int8' or 'fp8', not {self.values!r}")
        if self.group_size is not None and self.group_size not in GROUP_SIZES:
            raise ValueError(f"group_size must be None, 32, 64 or 128, not {self.group_size!r}")
        if self.scale not in SCALES:
            raise ValueError(f"scale must be 'absmax' or 'mse', not {self.scale!r}")

    @classmethod
    def of(cls, values: str | None, group_size: int | None, scale: str) -> Quantization | None:
        """The arguments of public functions; None where values are to stay as they are.

        Raises:
            ValueError: as for the class; a group_size or a scale without values.
        """
        if values is not None:
            return cls(values, group_size, scale)
        if group_size is not None or scale != "absmax":
            raise ValueError("group_size and scale are for values='int8' or 'fp8'")
        return None

    @property
    def dtype(self) -> str:
        """Name of the dtype of the elements."""
        return _DTYPES[self.values]

    @property
    def largest(self) -> int:
        """The largest magnitude of an element."""
        return _LARGEST[self.values]

    def width(self, cols: int) -> int:
        """Columns that share a scale.

        Raises:
            UnsupportedError: groups do not divide the columns.
        """
        if self.group_size is None:
            return max(cols, 1)
        if cols % self.group_size:
            raise UnsupportedError(
                "quantize-groups", f"groups of {self.group_size} columns do not divide its {cols:,} columns"
            )
        return self.group_size


class Loss(NamedTuple):
    """What quantizing has lost.

    Attributes:
        largest_error: the largest |w - q * scale|.
        sum_of_errors: the sum of them.
        stored: weights that were not zero.
        became_zero: those of them whose element is zero: they are pruned now.
    """

    largest_error: float = 0.0
    sum_of_errors: float = 0.0
    stored: int = 0
    became_zero: int = 0

    @classmethod
    def total(cls, losses: Iterable[Loss]) -> Loss:
        """Of several matrices together."""
        total = cls()
        for loss in losses:
            total = cls(
                max(total.largest_error, loss.largest_error),
                total.sum_of_errors + loss.sum_of_errors,
                total.stored + loss.stored,
                total.became_zero + loss.became_zero,
            )
        return total

    @property
    def mean_error(self) -> float:
        """Of the weights that were not zero."""
        return self.sum_of_errors / self.stored if self.stored else 0.0

    def __str__(self) -> str:
        zeros = f", {self.became_zero:,} became zero" if self.became_zero else ""
        return f"lossy: errors of {self.largest_error:.3g} at most and {self.mean_error:.3g} in the mean{zeros}"

    def as_metadata(self, how: Quantization) -> str:
        """What a file's metadata says of it, as JSON."""
        said: dict[str, object] = {"type": how.values, "scale": how.scale}
        if how.group_size is not None:
            said["group_size"] = how.group_size
        said |= {"largest_error": float(f"{self.largest_error:.6g}"), "mean_error": float(f"{self.mean_error:.6g}")}
        return json.dumps(said | {"became_zero": self.became_zero})
