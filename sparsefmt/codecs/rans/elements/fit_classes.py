"""Classes for the rows and columns of a tensor, by how large their elements are.

Where rows and columns of a matrix differ in that, the class of the row and the class of the column (`classes.py`)
together say which frequencies bins have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sparsefmt.codecs.contract import ArrayInfo, Chunk, Each
from sparsefmt.codecs.rans.class_search import assign_classes, classes_between, counts_by_table, merge_tables
from sparsefmt.codecs.rans.classes import CLASS_PRECISION, MAX_CLASSIFIED_COLS, Classes, member_counts
from sparsefmt.codecs.rans.elements.bins import Bins, Keys
from sparsefmt.codecs.rans.elements.contexts import Contexts
from sparsefmt.codecs.rans.elements.counting import AT_ONCE
from sparsefmt.codecs.rans.elements.model import Model
from sparsefmt.codecs.rans.elements.splitting import Splitter, elements_of
from sparsefmt.codecs.rans.frequencies import entropy_cost, normalised

_STEPS = ((0.5, 0), (0, 0.5), (0.5, 0.5), (0.25, 0.25))
"""How far classes of rows and of columns are apart, of what is tried, in standard deviations of what they measure."""


def with_classes(plain: Model, bins: Bins, info: ArrayInfo, each: Each) -> tuple[Model, np.ndarray] | None:
    """(the model with classes of rows and columns, the class of each row: uint8), if that makes the elements shorter.

    The model has no lag.
    """
    if info.cols > MAX_CLASSIFIED_COLS or info.cols == 1:  # a class for each element takes more bits than it saves
        return None
    measured = _measured(plain.keys, info, each)
    if measured is None:
        return None
    candidates = _candidates(*measured)
    if not candidates:
        return None
    counting = _Counting(Splitter(plain.keys, plain.lows, plain.widths), len(plain.lows), info)
    # the first tile says which of them it will be
    first = each(counting.of(candidates))
    sample = next(first)
    del first  # the other tiles need not be counted
    share = int(bins.counts.sum()) / max(int(sample[0].sum()), 1)
    scaled = [np.rint(counts * share).astype(np.int64) for counts in sample]
    best = min(range(len(candidates)), key=lambda index: candidates[index].merged(scaled[index])[0])
    candidate = candidates[best]
    counts = sample[best]
    if share != 1:
        counts = np.zeros_like(counts)
        for (of_tile,) in each(counting.of([candidate])):
            counts += of_tile
    cost, table_of = candidate.merged(counts)
    if cost >= entropy_cost(bins.counts) + _table_cost(1, len(plain.lows)) or not table_of[-1]:
        return None
    precision = min(plain.precision + 1, 12)
    tables = [normalised(line, precision) for line in counts_by_table(counts, table_of)]
    classes = Classes(
        int(candidate.rows.max()) + 1,
        table_of,
        normalised(member_counts(candidate.rows), CLASS_PRECISION),
        candidate.columns if candidate.columns.any() else None,
    )
    model = Model(plain.keys, 0, plain.lows, plain.widths, precision, classes, np.array(tables))
    return model, candidate.rows


class _Scale:
    """How large the elements of rows (or columns) are.

    Attributes:
        sums: of their sizes (`Keys.sizes`), int64.
        counts: elements but zeros, uint32.
    """

    def __init__(self, count: int) -> None:
        self.sums, self.counts = np.zeros(count, np.int64), np.zeros(count, np.uint32)

    def _means(self, some: slice, mean: float) -> np.ndarray:
        return np.where(self.counts[some] > 0, self.sums[some] / np.maximum(self.counts[some], 1), mean)

    def classes(self, mean: float, deviation: float, step: float) -> np.ndarray:
        """A class for each, uint8, from 0 on, `step` apart."""
        if not step:
            return np.zeros(self.sums.size, np.uint8)
        least, most = mean, mean
        for begin in range(0, self.sums.size, AT_ONCE):
            means = self._means(slice(begin, begin + AT_ONCE), mean)
            least, most = min(least, float(means.min())), max(most, float(means.max()))
        numbers = classes_between((least - mean) / step, (most - mean) / step)

        def costs(some: slice) -> np.ndarray:
            apart = (self._means(some, mean)[:, None] - mean - step * numbers) / deviation
            # what elements of a normal distribution lose if it is taken to be elsewhere
            return self.counts[some, None] * np.log2(math.e) / 2 * apart**2

        return assign_classes(costs, self.sums.size, numbers.size)


def _measured(keys: Keys, info: ArrayInfo, each: Each) -> tuple[_Scale, _Scale, float] | None:
    """(how large elements are by row, by column, sum of the squares of all sizes); None if they have no positions."""
    from sparsefmt.codecs.rans.jitted import eight_lanes
    from sparsefmt.codecs.rans.jitted import measuring as jitted
    from sparsefmt.isa import ISA

    of_rows, of_columns = _Scale(info.rows), _Scale(info.cols)
    how = keys.sizes
    shuffles = eight_lanes.APART[: 0 if ISA == "portable" else None]

    def measure(chunk: Chunk) -> tuple[_Scale, float] | None:
        elements, rows, positions = elements_of(chunk.raw, info.width), chunk.rows, chunk.positions
        if positions is None or positions.elements() != elements.size:
            return None
        tile_rows, tile_columns = _Scale(len(rows)), _Scale(info.cols)
        into = tile_rows.sums, tile_rows.counts, tile_columns.sums, tile_columns.counts
        if positions.mask is None:
            squares = jitted.measure_rows(elements, *how, *into)
        else:
            squares = jitted.measure_slices(positions.mask, elements, *how, shuffles, *into)
        of_rows.sums[rows.start : rows.stop] = tile_rows.sums
        of_rows.counts[rows.start : rows.stop] = tile_rows.counts
        return tile_columns, squares

    squares = 0.0
    for tile in each(measure):
        if tile is None:
            return None
        of_columns.sums += tile[0].sums
        of_columns.counts += tile[0].counts
        squares += tile[1]
    return of_rows, of_columns, squares


class _Candidate(NamedTuple):
    """Classes of all rows and columns."""

    rows: np.ndarray
    columns: np.ndarray

    @property
    def sums(self) -> int:
        """How many sums of two classes there can be."""
        return int(self.rows.max(initial=0)) + int(self.columns.max(initial=0)) + 1

    def merged(self, counts: np.ndarray) -> tuple[float, np.ndarray]:
        """(bits of elements counted as (sums, symbols), and of the model; the table of each sum)."""
        cost, table_of = merge_tables(counts, _table_cost(2, counts.shape[1]), 0.0)
        return cost + sum(entropy_cost(member_counts(part)) for part in (self.rows, self.columns)), table_of


def _candidates(of_rows: _Scale, of_columns: _Scale, squares: float) -> list[_Candidate]:
    """The classes that are tried: those of _STEPS with which rows, or columns, differ."""
    count = max(int(of_rows.counts.sum(dtype=np.int64)), 1)
    mean = float(of_rows.sums.sum() / count)
    deviation = float(np.sqrt(max(squares / count - mean**2, 1e-9)))
    by_row_step, by_column_step = (
        {step: scale.classes(mean, deviation, step * deviation) for step in set(steps)}
        for scale, steps in zip((of_rows, of_columns), zip(*_STEPS, strict=True), strict=True)
    )
    found = [_Candidate(by_row_step[row_step], by_column_step[column_step]) for row_step, column_step in _STEPS]
    return [candidate for candidate in found if candidate.rows.any() or candidate.columns.any()]


class _Counting:
    """Counts the symbols of tiles by sum of classes."""

    def __init__(self, splitter: Splitter, symbols: int, info: ArrayInfo) -> None:
        self._splitter, self._symbols, self._info = splitter, symbols, info

    def of(self, candidates: list[_Candidate]) -> Callable[[Chunk], list[np.ndarray]]:
        """Work for `Each`: the counts (sums, symbols) of a tile, for each of the candidates."""
        from sparsefmt.codecs.rans.jitted import elements as jitted

        every_sum = [
            Contexts(int(some.rows.max()) + 1, some.columns, self._info.cols, np.arange(some.sums, dtype=np.uint8))
            for some in candidates
        ]

        def count(chunk: Chunk) -> list[np.ndarray]:
            symbols = self._splitter.symbols(elements_of(chunk.raw, self._info.width))
            found: list[np.ndarray] = []
            for candidate, contexts in zip(candidates, every_sum, strict=True):
                assert chunk.positions is not None
                row_classes = candidate.rows[chunk.rows.start : chunk.rows.stop]
                found.append(np.zeros((candidate.sums, self._symbols), np.int64))
                jitted.histogram(symbols, contexts.of(row_classes, chunk.positions), found[-1])
            return found

        return count


def _table_cost(tables: int, bins: int) -> float:
    """Bits of a table: of the only one (1), and of one of several (2), where bins may not occur."""
    return (6.0 + tables) * bins
