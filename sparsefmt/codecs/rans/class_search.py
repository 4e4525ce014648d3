"""Which class to give each row and column of a tensor, and which sums of classes share a table.

Writers are free in that: readers take any classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparsefmt.codecs.rans.classes import MAX_CLASSES

_ROUNDS = 4
"""How often rows get other classes, given those that the others have."""

_COSTS = 1 << 19
"""Costs of rows (or columns) that are computed at a time: 4 MiB. More of them are computed anew for every round."""


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
    from sparsefmt.codecs.rans.jitted import classes as jitted

    assigned, names = np.empty(count, np.uint8), np.zeros(classes)
    height = max(_COSTS // classes, 1)
    parts = [slice(begin, min(begin + height, count)) for begin in range(0, count, height)]
    only = costs(parts[0]) if len(parts) == 1 else None
    for _ in range(1 + _ROUNDS):
        # a class that nobody has may come back, but is dear
        often = np.full(classes, 0.1)
        for part in parts:
            jitted.assign(costs(part) if only is None else only, names, assigned[part], often)
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
    from sparsefmt.codecs.rans.jitted import classes as jitted

    table_of = np.empty(len(counts), np.uint8)
    return jitted.merge(counts, of_table, of_symbol, of_popcounts, table_of), table_of


def counts_by_table(counts: np.ndarray, table_of: np.ndarray) -> np.ndarray:
    """The sums' counts added up for each table: (tables, symbols)."""
    return np.add.reduceat(counts, np.searchsorted(table_of, np.arange(table_of[-1] + 1)), axis=0)
