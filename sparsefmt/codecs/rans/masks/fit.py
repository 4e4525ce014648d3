"""The model for the masks of a tensor: classes of rows and columns by how many positions they keep, and copies."""

from __future__ import annotations

import numpy as np

from sparsefmt.codecs.contract import ArrayInfo, Chunk, Each
from sparsefmt.codecs.rans.class_search import assign_classes, classes_between
from sparsefmt.codecs.rans.classes import MAX_CLASSIFIED_COLS
from sparsefmt.codecs.rans.masks.candidate import Candidate
from sparsefmt.codecs.rans.masks.model import Model
from sparsefmt.positions.masks import SLICE_ROWS, in_slices, slices_of

_WORTH_SAMPLING = 1 << 20
"""Positions of a mask from which on not all of them are counted for each candidate."""

_SAMPLED = 4
"""The part of each tile that is counted then."""

_STEPS = ((0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5))
"""How far classes of rows and of columns are apart, of what is tried: in log2 of the odds that a position is kept. 0
for no classes."""


def fit(info: ArrayInfo, each: Each) -> tuple[Model, np.ndarray]:
    """(the model for the masks of all tiles of a tensor, the symbol of each row: uint8).

    Beside the tiles, it takes up to 16 bytes for each row, and for each column if they get classes.
    """
    candidates = _candidates(info, each)
    # of large masks, a part of each tile says which of them it will be
    share = _SAMPLED if len(candidates) > 1 and info.rows * info.cols >= _WORTH_SAMPLING else 1
    _count(candidates, share, info, each)
    best = min(candidates, key=lambda candidate: candidate.cost(share))
    if share > 1:
        best.counts[:] = 0
        _count([best], 1, info, each)
        best.cost(1)
    return best.model(), best.row_symbols


def _count(candidates: list[Candidate], share: int, info: ArrayInfo, each: Each) -> None:
    """Count the bytes that each of the candidates makes of the first of so many parts of each tile."""

    def count(chunk: Chunk) -> list[np.ndarray]:
        slices = -(-slices_of(len(chunk.rows)) // share)
        mask, rows = in_slices(chunk.raw, len(chunk.rows), info.cols), chunk.rows[: slices * SLICE_ROWS]
        return [candidate.histogram(mask[:slices], rows) for candidate in candidates]

    for histograms in each(count):
        for candidate, histogram in zip(candidates, histograms, strict=True):
            candidate.counts += histogram


def _candidates(info: ArrayInfo, each: Each) -> list[Candidate]:
    """The classes that are tried: those of _STEPS, each once."""
    from sparsefmt.codecs.rans.jitted import masks as jitted

    rows, cols, with_columns = info.rows, info.cols, info.cols <= MAX_CLASSIFIED_COLS
    # a row has less than 2^32 columns
    row_counts, copies = np.empty(rows, np.uint32), np.empty(rows, np.bool_)
    positions = -(-cols // 64) * 64  # those of whole words
    column_counts = np.zeros(cols if with_columns else 0, np.int64)

    def look(chunk: Chunk) -> np.ndarray:
        mask, some = in_slices(chunk.raw, len(chunk.rows), cols), chunk.rows
        kept, differing = np.empty((2, len(some)), np.int64)
        jitted.count_rows(mask, kept, differing)
        # those that differ from the row above in so few places that this is shorter to write down
        copied = 4 * differing < np.minimum(kept, positions - kept)
        copied[:1] = False
        copies[some.start : some.stop], row_counts[some.start : some.stop] = copied, kept
        return _column_counts(mask, copied) if with_columns else column_counts

    for counts in each(look):
        column_counts += counts
    plain_rows = rows - int(np.count_nonzero(copies))
    row_steps, column_steps = map(set, zip(*_STEPS, strict=True))
    by_row_step: dict[float, np.ndarray] = {}
    for step in sorted(row_steps):
        row_classes = np.zeros(rows, np.uint8)
        row_classes[~copies] = _classes(row_counts[~copies], cols, step)
        _unless_known(by_row_step, step, row_classes)
    by_column_step: dict[float, np.ndarray] = {}
    for step in sorted(column_steps) if with_columns else [0]:
        _unless_known(by_column_step, step, _classes(column_counts, plain_rows, step))
    candidates: dict[tuple[int, int], Candidate] = {}
    for row_step, column_step in _STEPS:
        if column_step in by_column_step:
            row_classes, column_classes = by_row_step[row_step], by_column_step[column_step]
            several = column_classes if column_classes.any() else None
            both = id(row_classes), id(column_classes)
            if both not in candidates:
                candidates[both] = Candidate(row_classes, several, cols, copies)
    return list(candidates.values())


def _column_counts(mask: np.ndarray, copied: np.ndarray) -> np.ndarray:
    """How many rows that are not copies have each column: uint32 (cols,). mask: uint16 (slices, cols)."""
    if copied.any():
        plain = np.zeros(len(mask) * SLICE_ROWS, np.bool_)
        plain[: copied.size] = ~copied
        mask = mask & np.packbits(plain, bitorder="little").view(mask.dtype)[:, None]
    return np.bitwise_count(mask).sum(0, dtype=np.uint32)


def _odds(kept: float, total: float) -> float:
    """log2 of the odds that a position is kept."""
    share = (kept + 0.5) / (total + 1)
    return float(np.log2(share / (1 - share)))


def _classes(counts: np.ndarray, total: int, step: float) -> np.ndarray:
    """A class for each row (or column) of which `counts` of `total` positions are kept: uint8 (rows,), from 0 on.

    Classes are `step` apart, in log2 of the odds that a position is kept.
    """
    if not step or not counts.size or not total:
        return np.zeros(counts.size, np.uint8)
    base = _odds(float(counts.sum(dtype=np.int64)), float(total) * counts.size)
    least, most = ((_odds(float(kept), total) - base) / step for kept in (counts.min(), counts.max()))
    numbers = classes_between(least, most)
    share = 1 / (1 + np.exp2(-(base + step * numbers)))
    log_kept, log_left = np.log2(share), np.log2(1 - share)

    def costs(some: slice) -> np.ndarray:
        kept = counts[some, None].astype(np.int64)
        return -kept * log_kept - (total - kept) * log_left

    return assign_classes(costs, counts.size, numbers.size)


def _unless_known(by_step: dict[float, np.ndarray], step: float, classes: np.ndarray) -> None:
    """Add the classes of a step: the array of another step if that has the same."""
    by_step[step] = next((known for known in by_step.values() if np.array_equal(known, classes)), classes)
