"""Classes that the rows and columns of a tensor could have, and how short its masks are with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsefmt.codecs.rans.class_search import counts_by_table, merge_tables, table_costs
from sparsefmt.codecs.rans.classes import CLASS_PRECISION, Classes, member_counts
from sparsefmt.codecs.rans.frequencies import (
    BYTES,
    BYTES_OF_POPCOUNT,
    MAX_PRECISION,
    POPCOUNTS,
    entropy_cost,
    normalised,
    normalised_popcounts,
)
from sparsefmt.codecs.rans.masks.groups import ColumnOrder, contexts_of, tables_by_class
from sparsefmt.codecs.rans.masks.model import Model
from sparsefmt.lazily import computed_once

_TABLE_COST = (256.0, 7.0, 55.0)
"""What a table costs in the model, about: one of bytes, and for each byte that occurs; one of popcounts."""

_WASTE = 0.001
"""Part of the bits that may be lost to frequencies that cannot be less than 1."""


@dataclass
class Candidate:
    """Classes of all rows and columns, and what bytes they make.

    Attributes:
        row_classes: uint8 (rows,).
        column_classes: uint8 (cols,), or None if all have the same.
        cols: how many columns there are.
        copies: which rows are coded as what differs from the row above. bool (rows,).
        counts: int64 (sums of classes, 256), how often each byte occurs, the last line for copies if there are some.
            The caller adds up what `histogram` gives for each tile.
    """

    row_classes: np.ndarray
    column_classes: np.ndarray | None
    cols: int
    copies: np.ndarray

    def __post_init__(self) -> None:
        self._order = ColumnOrder(self.column_classes, self.cols)
        self._copy = int(self.row_classes.max(initial=0)) + 1 if self.copies.any() else -1
        highest = 0 if self.column_classes is None else int(self.column_classes.max(initial=0))
        self._sums = int(self.row_classes.max(initial=0)) + highest + 1
        self.counts = np.zeros((self._sums + (self._copy >= 0), BYTES), np.int64)
        self._table_of = np.zeros(self._sums, np.uint8)
        symbols = int(self.row_classes.max(initial=0)) + 1 + (self._copy >= 0)
        every_sum = np.arange(len(self.counts), dtype=np.uint8)
        self._every_sum = tables_by_class(every_sum, symbols, highest + 1, self._copy)

    def histogram(self, mask: np.ndarray, rows: range) -> np.ndarray:
        """How often each byte occurs in a tile, by sum of classes; last, in copies. mask: (slices, cols), read-only."""
        from sparsefmt.codecs.rans.jitted import elements as jitted

        symbols, some = self.row_symbols[rows.start : rows.stop], self.copies[rows.start : rows.stop]
        groups = self._order.groups(mask, len(rows), some if self._copy >= 0 else None)
        counts = np.zeros_like(self.counts)
        jitted.histogram(groups, contexts_of(symbols, self._order.group_classes, self._every_sum), counts)
        return counts

    @computed_once
    def row_symbols(self) -> np.ndarray:
        """The symbol of each row of the tensor: its class, or the one for copies. uint8 (rows,)."""
        if self._copy < 0:
            return self.row_classes
        return np.where(self.copies, np.uint8(self._copy), self.row_classes)

    def _symbol_counts(self) -> np.ndarray:
        """How many rows have each symbol. int64 (symbols,)."""
        counts = member_counts(self.row_classes if self._copy < 0 else self.row_classes[~self.copies])
        if self._copy < 0:
            return counts
        return np.concatenate([counts, np.zeros(self._copy - counts.size, np.int64), [np.count_nonzero(self.copies)]])

    def cost(self, share: int) -> float:
        """Bits of all masks and of the model, about, if one of so many bytes was counted."""
        counts = self.counts * share
        cost, self._table_of = merge_tables(counts[: self._sums], *_TABLE_COST)
        if self._copy >= 0:
            cost += merge_tables(counts[-1:], *_TABLE_COST)[0]
        cost += entropy_cost(self._symbol_counts())
        return cost + (0.0 if self.column_classes is None else entropy_cost(member_counts(self.column_classes)))

    def model(self) -> Model:
        """The model, once `cost` was called."""
        tables = [*counts_by_table(self.counts[: self._sums], self._table_of)]
        if self._copy >= 0:
            tables.append(self.counts[-1])
        by_popcount = table_costs(np.array(tables), *_TABLE_COST)[1].tolist()
        precision, frequencies = _frequencies(tables, by_popcount)
        classes = Classes(
            int(self.row_classes.max(initial=0)) + 1,
            self._table_of,
            normalised(self._symbol_counts(), CLASS_PRECISION),
            self.column_classes,
        )
        return Model(precision, classes, self._copy >= 0, frequencies, by_popcount)


def _frequencies(tables: list[np.ndarray], by_popcount: list[bool]) -> tuple[int, np.ndarray]:
    """(precision, frequencies of all tables): the least precision that loses little."""
    # a table for what never occurs can be any
    tables = [table if table.any() else np.ones(BYTES, np.int64) for table in tables]
    shared = [
        (np.bincount(POPCOUNTS, table, 9) / BYTES_OF_POPCOUNT)[POPCOUNTS] if popcounts else table
        for table, popcounts in zip(tables, by_popcount, strict=True)
    ]
    ideal = sum(entropy_cost(table) for table in shared)
    for precision in range(11, MAX_PRECISION + 1):
        wasted = sum(_wasted_cost(table, precision) for table in shared)
        if wasted > _WASTE * ideal and precision < MAX_PRECISION:
            continue
        found = [
            normalised_popcounts(np.bincount(POPCOUNTS, table, 9).astype(np.int64), precision)
            if popcounts
            else normalised(table, precision)
            for table, popcounts in zip(tables, by_popcount, strict=True)
        ]
        fitting = [table for table in found if table is not None]
        if len(fitting) == len(found):
            pairs = zip(fitting, by_popcount, strict=True)
            return precision, np.array([table[POPCOUNTS] if popcounts else table for table, popcounts in pairs])
    raise AssertionError("every table fits the highest precision")


def _wasted_cost(counts: np.ndarray, precision: int) -> float:
    """Bits that bytes counted as `counts` lose since no frequency is below 1."""
    used = counts[counts > 0]
    total = float(used.sum())
    excess = float(np.maximum(2.0**-precision - used / total, 0).sum())
    return -total * float(np.log2(max(1 - excess, 0.01)))
