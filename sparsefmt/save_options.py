"""SaveOptions: how tensors are written, as one object for all that write files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from sparsefmt.layouts import auto

NegativeZeros = Literal["keep", "drop"]

RowDims = int | Mapping[str, int] | None
"""How many leading dimensions make rows: of every tensor that has more, or by name; None for what is usual."""


@dataclass(frozen=True)
class SaveOptions:
    """How tensors are written. `sparsefmt.save_file` says what each option does.

    A function for users lists its options as keywords, so that `help` shows them, and makes this of them at once. What
    is below takes the object. tests/test_save_options.py holds names, types and defaults equal.

    Raises:
        ValueError: a layout that does not exist, another value of `negative_zeros`, or a number of dimensions below 1.
        TypeError: `row_dims` is neither a number nor numbers by name.
    """

    layout: str = "auto"
    codec: str = "auto"
    negative_zeros: NegativeZeros = "keep"
    row_dims: RowDims = None
    threads: int | None = None

    def __post_init__(self) -> None:
        auto.expect_name(self.layout)
        if self.negative_zeros not in ("keep", "drop"):
            raise ValueError(f"negative_zeros must be 'keep' or 'drop', not {self.negative_zeros!r}")
        _expect_row_dims(self.row_dims)

    def as_keywords(self) -> dict[str, Any]:
        """For a function that lists them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def purpose(self) -> auto.Purpose:
        """What "auto" chooses a layout for."""
        return "raw" if self.codec == "raw" else "coded"

    @property
    def drops_signs(self) -> bool:
        """Whether -0.0 becomes 0.0."""
        return self.negative_zeros == "drop"


def _expect_row_dims(row_dims: object) -> None:
    """Raise TypeError or ValueError if this says nothing about dimensions."""
    numbers = row_dims.values() if isinstance(row_dims, Mapping) else () if row_dims is None else (row_dims,)
    for number in numbers:
        if type(number) is not int:
            raise TypeError(f"row_dims takes a number of dimensions, or numbers by name, not {number!r}")
        if number < 1:
            raise ValueError(f"row_dims must be 1 or more, not {number}")
