"""What was found in a mask."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import floor
from typing import Any, Literal

Kind = Literal[
    "empty",
    "dense",
    "zero",
    "n:m",
    "blocks",
    "rows",
    "columns",
    "rows and columns",
    "heads",
    "banded",
    "lower triangular",
    "upper triangular",
    "unstructured",
]


@dataclass(frozen=True)
class Pattern:
    """Which pattern the zeros of a tensor have, and what was counted on the way.

    A pattern says of each element whether it is zero, or, for N:M, how many of a group may be other than zero. It was
    found because it says so far better than chance could.

    Attributes:
        kind: "n:m", "blocks" (all zero or all not), "rows", "columns" or both (whole ones are zero), "heads" (groups of
            rows or columns are zero), "banded", "lower triangular", "upper triangular" (zero elsewhere);
            "unstructured" if none of these; "dense" without zeros, "zero" with nothing else, "empty" without elements.
        sizes: (n, m); (rows, columns) of a block; (rows,) of a head; how far a band reaches to the left and to the
            right of the diagonal; otherwise ().
        along: of n:m and heads, "rows" if a group lies in a row or has whole columns, "columns" if it lies in a column
            or has whole rows; otherwise "".
        share: of the elements that are as the pattern says; 1.0 only if all are.
        elements, zeros: -0.0 is a zero.
        negative_zeros, nans, infinities: how many elements are that.
        zero_rows, zero_columns: how many are zero throughout; of a stack, in all its matrices.
    """

    kind: Kind
    sizes: tuple[int, ...] = ()
    along: Literal["", "rows", "columns"] = ""
    share: float = 1.0
    elements: int = 0
    zeros: int = 0
    negative_zeros: int = 0
    nans: int = 0
    infinities: int = 0
    zero_rows: int = 0
    zero_columns: int = 0

    @property
    def sparsity(self) -> float:
        """Share of the elements that is zero; 0.0 without elements."""
        return self.zeros / self.elements if self.elements else 0.0

    @property
    def label(self) -> str:
        """In a few words, without the share: "2:4", "4x4 blocks", "heads of 64 rows", "diagonal", "unstructured"."""
        if self.kind == "n:m":
            return f"{self.sizes[0]}:{self.sizes[1]}{' down columns' if self.along == 'columns' else ''}"
        if self.kind == "blocks":
            return f"{self.sizes[0]}x{self.sizes[1]} blocks"
        if self.kind == "heads":
            return f"heads of {self.sizes[0]} {'rows' if self.along == 'columns' else 'columns'}"
        if self.kind == "banded":
            return f"banded, -{self.sizes[0]} to +{self.sizes[1]}" if any(self.sizes) else "diagonal"
        return self.kind

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"label": self.label}

    def __str__(self) -> str:
        """The label, and the share if it is not all. Less than all is never rounded to 100 %."""
        return self.label if self.share == 1 else f"{self.label}, {floor(self.share * 10_000) / 100:g}%"
