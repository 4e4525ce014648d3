"""Which class to give each row or column, and which neighbouring sums of classes to give one table."""

from __future__ import annotations

import numpy as np

from sparsefmt.jit import jit

POPCOUNTS = np.bitwise_count(np.arange(256, dtype=np.uint8)).astype(np.int64)
BYTES_OF_POPCOUNT = np.bincount(POPCOUNTS)


@jit
def assign(costs, names, assigned, often):
    """Fill `assigned` (rows,) with the class that makes each row shortest, and add to `often` (classes,) who has it.

    costs: float64 (rows, classes), bits without naming the class. names: float64 (classes,), bits that this takes.
    """
    rows, classes = costs.shape
    for row in range(rows):
        best = 0
        for class_ in range(1, classes):
            if costs[row, class_] + names[class_] < costs[row, best] + names[best]:
                best = class_
        assigned[row] = best
        often[best] += 1


@jit
def entropy_bits(counts):
    """Bits that symbols take if coded as well as possible."""
    total, cost = 0, 0.0
    for count in counts:
        if count:
            total += count
            cost -= count * np.log2(np.float64(count))
    return cost + total * np.log2(np.float64(total)) if total else 0.0


@jit
def table_bits(counts, of_table, of_symbol, of_popcounts):
    """Bits of symbols with a table of their own, and of that: of_table, and of_symbol for each symbol that occurs; and
    of bytes with a table of popcounts, if of_popcounts is not infinite: (the less of the two, whether by popcount)."""
    used = 0
    for count in counts:
        used += count > 0
    cost = entropy_bits(counts) + of_table + of_symbol * used
    if not of_popcounts < np.inf:
        return cost, False
    by_popcount = np.zeros(9, np.int64)
    for byte in range(256):
        by_popcount[POPCOUNTS[byte]] += counts[byte]
    popcount_bits = entropy_bits(by_popcount) + of_popcounts
    for popcount in range(9):
        popcount_bits += by_popcount[popcount] * np.log2(np.float64(BYTES_OF_POPCOUNT[popcount]))
    return min(cost, popcount_bits), popcount_bits <= cost


@jit
def merge(counts, of_table, of_symbol, of_popcounts, table_of):
    """Fill `table_of` (sums,) with the number of each sum's table, so that symbols and tables are shortest: the bits.

    counts: int64 (sums, symbols), how often each symbol occurs. The others: as in `table_bits`.
    """
    sums = counts.shape[0]
    best, came_from = np.full(sums + 1, np.inf), np.zeros(sums + 1, np.int64)
    best[0] = 0
    for begin in range(sums):
        line = np.zeros(counts.shape[1], np.int64)
        for end in range(begin + 1, sums + 1):
            line += counts[end - 1]
            cost = best[begin] + table_bits(line, of_table, of_symbol, of_popcounts)[0]
            if cost < best[end]:
                best[end], came_from[end] = cost, begin
    end = sums
    while end:
        table_of[came_from[end] : end] = 0
        table_of[came_from[end]] = came_from[end] > 0
        end = came_from[end]
    for sum_ in range(1, sums):
        table_of[sum_] += table_of[sum_ - 1]
    return best[sums]
