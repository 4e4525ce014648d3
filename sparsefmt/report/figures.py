"""Reads tensors, each once, and counts what charts and pictures show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from sparsefmt.adapters import Rows
from sparsefmt.patterns import Magnitudes, Mask, Pattern, have_magnitudes, mask_of_runs, pattern_of

SIDE = 256
"""Most boxes of a picture of a mask, in each direction."""

CLOSE_UP = 64
"""Rows and columns of the corner of a mask whose elements are shown one by one."""

MOST_PICTURES = 3
"""Patterns of a group that have a picture."""

Progress = Callable[[int], object]
"""Called with the dense bytes of each run of rows that was read."""


@dataclass(frozen=True)
class Picture:
    """The mask of a tensor as people see it.

    Attributes:
        name: of the tensor.
        label: of its pattern.
        density: share of nonzeros, float64 (at most SIDE, at most SIDE).
        corner: whether elements of the first rows and columns are other than zero, bool (at most CLOSE_UP, …).
    """

    name: str
    label: str
    density: np.ndarray
    corner: np.ndarray

    def coarser(self) -> Picture:
        """With half as many boxes in each direction, where there are more than half of SIDE."""
        density = self.density
        for axis in (0, 1):
            length = density.shape[axis]
            if length > SIDE // 2:
                starts = np.arange(0, length, 2)
                sums = np.add.reduceat(density, starts, axis)
                counts = np.diff(np.append(starts, length)).reshape((-1, 1) if axis == 0 else (1, -1))
                density = sums / counts
        return replace(self, density=density)


@dataclass(frozen=True)
class Looked:
    """What one read of a tensor tells.

    Attributes:
        row_counts: int64 (columns + 1,): how many rows have so many nonzeros.
        column_counts: int64 (rows of a matrix + 1,): how many columns have so many.
        magnitudes: None of types that have none.
        picture: None if the group has one of such a pattern.
    """

    pattern: Pattern
    row_counts: np.ndarray
    column_counts: np.ndarray
    magnitudes: Magnitudes | None
    picture: Picture | None


class Figures:
    """What was counted in the tensors of a group, which have one dtype and shape.

    Args:
        first: any of them.

    Attributes:
        row_counts, column_counts, magnitudes: as of `Looked`, of all tensors.
        thresholds: the smallest magnitude of each tensor that has zeros and others, in any order.
        pictures: by the label of a pattern.
    """

    def __init__(self, first: Rows) -> None:
        self.row_counts = np.zeros(first.cols + 1, np.int64)
        self.column_counts = np.zeros(first.matrix_rows + 1, np.int64)
        self.magnitudes = Magnitudes(first.dtype) if have_magnitudes(first.dtype) else None
        self.thresholds: list[float] = []
        self.pictures: dict[str, Picture] = {}

    def wants_picture_of(self, label: str) -> bool:
        return label not in self.pictures and len(self.pictures) < MOST_PICTURES

    def add(self, looked: Looked) -> None:
        self.row_counts += looked.row_counts
        self.column_counts += looked.column_counts
        if self.magnitudes is not None and looked.magnitudes is not None:
            self.magnitudes.merge(looked.magnitudes)
            if looked.pattern.zeros and looked.magnitudes.smallest:
                self.thresholds.append(looked.magnitudes.smallest)
        if looked.picture is not None and self.wants_picture_of(looked.picture.label):
            self.pictures[looked.picture.label] = looked.picture

    def merge(self, other: Figures, places: Mapping[str, int]) -> None:
        """Add what was counted in other tensors of the group. In whatever order parts are merged, the result is that of
        adding all tensors in the order of the group.

        Args:
            places: where in the group a tensor stands, by its name.
        """
        self.row_counts += other.row_counts
        self.column_counts += other.column_counts
        if self.magnitudes is not None and other.magnitudes is not None:
            self.magnitudes.merge(other.magnitudes)
        self.thresholds += other.thresholds
        pictures = sorted([*self.pictures.values(), *other.pictures.values()], key=lambda picture: places[picture.name])
        self.pictures = {}
        for picture in pictures:
            if self.wants_picture_of(picture.label):
                self.pictures[picture.label] = picture


def look_at(
    name: str, rows: Rows, figures: Figures | None, threads: int | None = None, progress: Progress | None = None
) -> Looked:
    """Read a tensor once.

    Args:
        figures: to which the result will be added, in the order of the tensors; it is not changed here. None if what
            is not in the pattern is of no interest.

    Raises:
        as reading the rows.

    Cost: a bit for each element, and a few runs of rows.
    """
    magnitudes = Magnitudes(rows.dtype) if figures is not None and figures.magnitudes is not None else None

    def read(run: tuple[int, int]) -> np.ndarray:
        bits = rows.bits(*run)
        if magnitudes is not None:
            magnitudes.add(bits, rows.dtype)
        if progress:
            progress(rows.dtype.nbytes(bits.size))
        return bits

    height = rows.tile_rows("dense")
    runs = [(begin, min(begin + height, rows.rows)) for begin in range(0, rows.rows if height else 0, height or 1)]
    mask = mask_of_runs(rows.dtype, (rows.rows, rows.cols, rows.matrix_rows), (runs, read), threads)
    pattern = pattern_of(mask)
    by_row = np.zeros(rows.cols + 1, np.int64)
    by_column = np.zeros(rows.matrix_rows + 1, np.int64)
    if mask.elements:
        by_row += np.bincount(mask.row_counts(), minlength=by_row.size)
        by_column += np.bincount(mask.column_counts().reshape(-1), minlength=by_column.size)
    picture = None
    if mask.elements and figures is not None and figures.wants_picture_of(pattern.label):
        picture = Picture(name, pattern.label, mask.density(SIDE, SIDE), corner_of(mask))
    return Looked(pattern, by_row, by_column, magnitudes, picture)


def corner_of(mask: Mask) -> np.ndarray:
    """The first rows and columns of a mask as bool (at most CLOSE_UP, at most CLOSE_UP)."""
    words = np.ascontiguousarray(mask.words[: min(CLOSE_UP, mask.height), :1])
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    return bits[:, : min(CLOSE_UP, mask.cols)].astype(bool)
