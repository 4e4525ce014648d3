"""Which class to give each row and column of a tensor, and which sums of classes share a table.

Writers may choose any classes, since readers take them all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from sparsefmt.codecs.rans.classes import MAX_CLASSES
from sparsefmt.codecs.rans.frequencies import BYTES_OF_POPCOUNT, POPCOUNTS

_ROUNDS = 4
"""How often rows get other classes, given those that the others have."""

_COSTS = 1 << 19
"""Costs of rows (or columns) that are computed at a time: 4 MiB. More of them are computed anew for every round."""

_COUNTS = 1 << 16
"""Counts of symbols that are added up for possible tables at a time: 512 KiB."""


def classes_between(least: float, most: float) -> np.ndarray:
    """Classes for rows (or columns) that would lie between these if any number were a class: not too many integers."""
    low, high = (int(np.clip(np.rint(place), -MAX_CLASSES // 2, MAX_CLASSES // 2 - 1)) for place in (least, most))
    return np.arange(min(low, 0), max(high, 0) + 1)


def assign_classes(costs: Callable[[slice], np.ndarray], count: int, classes: int) -> np.ndarray:
    """The class of each of `count` rows (or columns), uint8 (count,), from 0 on.

    The classes have to be written down too: those that many rows have are cheap. So rows that differ by no more than
    chance have all the same. Beside the result, it takes memory for the costs of _COSTS at a time.

    Args:
        costs: costs(rows) gives the bits that some of the rows take with each class, float64 (rows, classes).
    """
    assigned, names = np.empty(count, np.uint8), np.zeros(classes)
    height = max(_COSTS // classes, 1)
    parts = [slice(begin, min(begin + height, count)) for begin in range(0, count, height)]
    only = costs(parts[0]) if len(parts) == 1 else None
    often = np.zeros(classes)
    for _ in range(1 + _ROUNDS):
        # a class that nobody has may come back, but is dear
        before, often = often, np.full(classes, 0.1)
        for part in parts:
            assigned[part] = ((costs(part) if only is None else only) + names).argmin(1)
            often += np.bincount(assigned[part], minlength=classes)
        if np.array_equal(often, before):
            break  # the next rounds would not change anything
        names = np.log2(often.sum() / often)
    assigned -= assigned.min(initial=255)
    return assigned


def merge_tables(
    counts: np.ndarray, of_table: float, of_symbol: float, of_popcounts: float = np.inf
) -> tuple[float, np.ndarray]:
    """Which neighbours of the sums to give one table, at best: (bits of all, uint8 (sums,) the table of each).

    Args:
        counts: int64 (sums, symbols), how often each symbol occurs.
        of_table, of_symbol: bits that a table costs, and each symbol in it.
        of_popcounts: bits of a table of popcounts; infinite if tables cannot be such.
    """
    sums = len(counts)
    sizes = _sizes_of_runs(counts, of_table, of_symbol, of_popcounts)
    best, came_from = np.full(sums + 1, np.inf), [0] * (sums + 1)
    best[0] = 0
    for begin in range(sums):
        ends = best[begin] + sizes[begin, begin + 1 :]
        for end in (begin + 1 + np.flatnonzero(ends < best[begin + 1 :])).tolist():
            best[end], came_from[end] = ends[end - begin - 1], begin
    is_first, end = np.zeros(sums, np.uint8), sums
    while came_from[end]:
        end = came_from[end]
        is_first[end] = 1
    return float(best[sums]), np.cumsum(is_first, dtype=np.uint8)


def _sizes_of_runs(counts: np.ndarray, of_table: float, of_symbol: float, of_popcounts: float) -> np.ndarray:
    """Bits of the sums from the first to before the second number, with one table: float64 (sums + 1, sums + 1).

    The arguments: as in `merge_tables`.
    """
    begins, ends = _runs(len(counts))
    before = np.concatenate([np.zeros_like(counts[:1]), np.cumsum(counts, 0)])
    sizes, at_once = np.empty((len(before), len(before))), max(_COUNTS // counts.shape[1], 1)
    for first in range(0, begins.size, at_once):
        some = begins[first : first + at_once], ends[first : first + at_once]
        lines = before[some[1]] - before[some[0]]
        sizes[some] = table_costs(lines, of_table, of_symbol, of_popcounts)[0]
    return sizes


@lru_cache(1)
def _runs(sums: int) -> tuple[np.ndarray, ...]:
    """The begin and the end of each run of so many."""
    return np.triu_indices(sums + 1, 1)


def table_costs(
    counts: np.ndarray, of_table: float, of_symbol: float, of_popcounts: float
) -> tuple[np.ndarray, np.ndarray]:
    """(bits that each line of symbols takes with a table of its own, and that; whether the table is one of popcounts).

    counts: int64 (lines, symbols). The others: as in `merge_tables`.
    """
    sizes = _entropies(counts) + of_table
    if of_symbol:
        sizes += of_symbol * np.count_nonzero(counts, axis=1)
    if not of_popcounts < np.inf:
        return sizes, np.zeros(len(counts), np.bool_)
    by_popcount = np.add.reduceat(counts[:, _BY_POPCOUNT], _FIRST_OF_POPCOUNT, axis=1)
    of_popcount = _entropies(by_popcount) + of_popcounts + by_popcount @ np.log2(BYTES_OF_POPCOUNT)
    return np.minimum(sizes, of_popcount), of_popcount <= sizes


_BY_POPCOUNT = np.argsort(POPCOUNTS, kind="stable")
_FIRST_OF_POPCOUNT = np.cumsum(BYTES_OF_POPCOUNT) - BYTES_OF_POPCOUNT
"""Bytes sorted by their number of set bits, and where those with each number begin."""


def _entropies(counts: np.ndarray) -> np.ndarray:
    """Bits that each line of symbols takes if coded as well as possible. counts: int64 (lines, symbols)."""
    totals = counts.sum(1)
    return totals * np.log2(np.maximum(totals, 1)) - (counts * np.log2(np.maximum(counts, 1))).sum(1)


def counts_by_table(counts: np.ndarray, table_of: np.ndarray) -> np.ndarray:
    """The sums' counts added up for each table: (tables, symbols)."""
    return np.add.reduceat(counts, np.searchsorted(table_of, np.arange(table_of[-1] + 1)), axis=0)
