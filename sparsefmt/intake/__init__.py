"""What users hand in, brought to one form at the border: one file for each kind, and the choice among them."""

from __future__ import annotations

from typing import Any

from sparsefmt.container.index import matrix_view
from sparsefmt.dtypes import DType
from sparsefmt.intake.arrays import ArrayIntake, BytesIntake
from sparsefmt.intake.contract import Intake, Survey
from sparsefmt.intake.scipy import ScipyIntake, is_scipy_sparse
from sparsefmt.layouts import LAYOUTS, choose

__all__ = [
    "ArrayIntake",
    "BytesIntake",
    "Intake",
    "ScipyIntake",
    "Survey",
    "choose_layout",
    "intake_of",
    "is_scipy_sparse",
]


def intake_of(value: Any) -> Intake:
    """The intake for an array, a scipy.sparse matrix, or what is one already."""
    if isinstance(value, Intake):
        return value
    return ScipyIntake(value) if is_scipy_sparse(value) else ArrayIntake(value)


def choose_layout(dtype: DType, shape: tuple[int, ...], wanted: str, nnz: int, entropy_coded: bool) -> str:
    """The layout that `wanted` ("auto" or a name) means for a tensor; "dense" where the format allows nothing else."""
    if wanted != "auto" and wanted not in LAYOUTS:
        raise ValueError(f"layout must be 'auto' or one of {', '.join(map(repr, LAYOUTS))}, not {wanted!r}")
    rows, cols = matrix_view(shape)
    if not choose.can_be_sparse(dtype, shape, cols):
        return "dense"
    if wanted != "auto":
        return wanted
    rule = choose.for_storing if entropy_coded else choose.for_computing
    return rule(dtype, rows, cols, nnz)
