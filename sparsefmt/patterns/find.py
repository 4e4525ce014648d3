"""Finds the pattern of a mask.

Each pattern that a mask may have is a shorter way to say where its zeros are. How many bits it takes to say so is
estimated, the elements that are not as the pattern says included. The shortest way wins, if it is far shorter than to
say which of the elements are zero: a mask at random has no short way, whatever its share of zeros, and a small one has
none that chance does not have, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, floor, gcd, lgamma, log, log2

import numpy as np

from sparsefmt.patterns.mask import Mask, passes
from sparsefmt.patterns.pattern import Kind, Pattern

LEAST_GAIN = 32.0
"""Bits that a pattern has to save. Chance saves so many once in billions of masks, and in masks with equally many zeros
in each row, of which there are fewer, once in many thousands."""

MOST_ERRORS = 0.05
"""Elements that may not be as the pattern says, as a share of the zeros, or of the others if they are fewer."""

MOST_IN_REMOVED = 0.01
"""Share of nonzeros of a row or column that counts as removed all the same."""

LEAST_HEAD = 16
"""Rows from which on removed groups of rows are called heads."""

_LONG = 32
"""Length from which on one nonzero is not too many."""

_GROUPS = (4, 8)
_POWERS = (64, 32, 16, 8, 4, 2, 1)
_SAMPLED = 1 << 16
"""Elements of a mask in which it is seen which blocks are worth a look at all of it."""


@dataclass(frozen=True)
class _Found:
    """A pattern that may hold.

    Attributes:
        errors: elements that are not as it says.
        cost: bits to say where the zeros are if it is known, its errors aside.
    """

    pattern: Pattern
    errors: int
    cost: float


@dataclass
class _Search:
    """The search for the shortest way to say where the zeros of a mask are.

    Attributes:
        zeros, nonzeros: of the mask; neither are none.
        most: the most errors of a pattern.
        shortest: bits of the shortest way so far, less LEAST_GAIN as long as it is a list of the zeros.
        best: the pattern that it goes by.
    """

    mask: Mask
    zeros: int
    nonzeros: int
    best: _Found | None = None

    def __post_init__(self) -> None:
        self.most = MOST_ERRORS * min(self.zeros, self.nonzeros)
        self.shortest = _subset_cost(self.mask.elements, self.zeros) - LEAST_GAIN

    def offer(self, found: _Found) -> None:
        """Take a pattern if its way is shorter than any before."""
        if found.errors > self.most:
            return
        cost = found.cost + _subset_cost(self.mask.elements, found.errors)
        if cost < self.shortest:
            self.shortest, self.best = cost, found


def pattern_of(mask: Mask) -> Pattern:
    """The pattern of a mask, and its counts.

    Cost: reads of the mask, of which a few are made for each pattern that is not ruled out by a part of it, or by a
    shorter one before it.
    """
    rows, columns = mask.row_counts(), mask.column_counts()
    zeros = mask.elements - int(rows.sum())
    counted = Pattern(
        "unstructured",
        elements=mask.elements,
        zeros=zeros,
        negative_zeros=mask.negative_zeros,
        nans=mask.nans,
        infinities=mask.infinities,
        zero_rows=int(np.count_nonzero(rows == 0)) if mask.cols else 0,
        zero_columns=int(np.count_nonzero(columns == 0)),
    )
    if not mask.elements:
        return replace(counted, kind="empty")
    if zeros in (0, mask.elements):
        return replace(counted, kind="zero" if zeros else "dense")
    search = _Search(mask, zeros, mask.elements - zeros)
    for found in (*_removed(mask, rows, columns), *_bands(search)):
        search.offer(found)
    _look_for_blocks(search)
    for found in _groups(mask):
        search.offer(found)
    if search.best is None:
        return counted
    best = search.best.pattern
    share = 1 - search.best.errors / mask.elements
    return replace(counted, kind=best.kind, sizes=best.sizes, along=best.along, share=share)


def _subset_cost(things: int, taken: int) -> float:
    """Bits to say which of the things were taken, if it is known how many."""
    if taken <= 0 or taken >= things:
        return 0.0
    return (lgamma(things + 1) - lgamma(taken + 1) - lgamma(things - taken + 1)) / log(2)


def _removed(mask: Mask, rows: np.ndarray, columns: np.ndarray) -> Iterator[_Found]:
    """Whole rows, columns, and groups of them."""
    zeros = mask.elements - int(rows.sum())
    no_rows = rows <= _most_in_removed(mask.cols)
    no_columns = columns <= _most_in_removed(mask.height)
    matrices = mask.rows // mask.height
    rows_gone, columns_gone = int(np.count_nonzero(no_rows)), int(np.count_nonzero(no_columns))
    in_rows, in_columns = int(rows[no_rows].sum()), int(columns[no_columns].sum())
    row_cost, column_cost = _subset_cost(mask.rows, rows_gone), _subset_cost(columns.size, columns_gone)
    if 0 < rows_gone < mask.rows:
        errors = zeros - rows_gone * mask.cols + 2 * in_rows
        yield _Found(Pattern("rows"), errors, row_cost)
        yield from _heads(no_rows.reshape(matrices, -1), "columns", errors)
    if 0 < columns_gone < columns.size:
        errors = zeros - columns_gone * mask.height + 2 * in_columns
        yield _Found(Pattern("columns"), errors, column_cost)
        yield from _heads(no_columns, "rows", errors)
    if rows_gone and columns_gone:
        twice = int((np.count_nonzero(no_rows.reshape(matrices, -1), 1) * np.count_nonzero(no_columns, 1)).sum())
        inside = rows_gone * mask.cols + columns_gone * mask.height - twice
        filled = in_rows + in_columns - _in_both(mask, no_rows, no_columns)
        errors = zeros - inside + 2 * filled
        yield _Found(Pattern("rows and columns"), errors, row_cost + column_cost)


def _most_in_removed(length: int) -> int:
    """How many nonzeros a row or column of such a length may have and count as removed."""
    return max(int(length * MOST_IN_REMOVED), int(length >= _LONG))


def _in_both(mask: Mask, rows: np.ndarray, columns: np.ndarray) -> int:
    """Nonzeros that stand both in one of these rows (rows,) and in one of these columns (matrices, cols)."""
    found, row = 0, np.zeros(8 * mask.words.shape[1], np.uint8)
    for number, wanted in enumerate(columns):
        as_bytes = np.packbits(wanted, bitorder="little")
        row[: as_bytes.size] = as_bytes
        matrix = slice(number * mask.height, (number + 1) * mask.height)
        for words in mask.words[matrix][rows[matrix]]:
            found += int(np.bitwise_count(words & row.view(np.uint64)).sum())
    return found


def _heads(removed: np.ndarray, along: str, errors: int) -> Iterator[_Found]:
    """The largest groups of which removed rows or columns (matrices, each) are made, if they are large."""
    size = removed.shape[1]
    for matrix in removed:
        for edge in np.flatnonzero(matrix[1:] != matrix[:-1]) + 1:
            size = gcd(size, int(edge))
            if size < LEAST_HEAD:
                return
    if size < removed.shape[1]:
        gone = int(np.count_nonzero(removed)) // size
        pattern = Pattern("heads", (size,), "columns" if along == "columns" else "rows")
        yield _Found(pattern, errors, _subset_cost(removed.size // size, gone) + log2(removed.shape[1]))


def _bands(search: _Search) -> Iterator[_Found]:
    """Triangles and bands."""
    mask = search.mask
    if mask.height < 2 or mask.cols < 2:
        return
    first, last = np.empty(mask.rows, np.int64), np.empty(mask.rows, np.int64)
    passes().extents(mask.words, first, last)
    number = np.arange(mask.rows) % mask.height
    filled = first >= 0
    left, right = (number - first)[filled], (last - number)[filled]
    all_left, all_right = mask.height - 1, mask.cols - 1
    tried = set()
    nearly_all = 98 * (left.size - 1) // 100
    for below, above in (
        (int(left.max()), int(right.max())),
        (int(np.partition(left, nearly_all)[nearly_all]), int(np.partition(right, nearly_all)[nearly_all])),
    ):
        tried |= {(below, above), (all_left, above), (below, all_right)}
    for below, above in sorted(tried):
        if below >= all_left and above >= all_right:
            continue
        begin, end = np.maximum(number - below, 0), np.minimum(number + above + 1, mask.cols)
        area = int(np.maximum(end - begin, 0).sum())
        if abs(area - search.nonzeros) > search.most:  # there are at least so many errors
            continue
        inside = int(passes().in_band(mask.words, mask.height, below, above))
        kind: Kind = "banded"
        if below >= all_left:
            kind = "lower triangular"
        elif above >= all_right:
            kind = "upper triangular"
        sizes = (below, above) if kind == "banded" else ()
        errors = area - inside + search.nonzeros - inside
        yield _Found(Pattern(kind, sizes), errors, 2 * log2(mask.height + mask.cols))


def _look_for_blocks(search: _Search) -> None:
    """Offer blocks of each size that may win, the largest first."""
    mask = search.mask
    steps = _steps(mask)
    # blocks are made of such with one row and such with one column, which have no more errors
    heights = _not_ruled_out(search, [(tall, 1) for tall in _POWERS if not mask.height % tall], steps)
    widths = _not_ruled_out(search, [(1, wide) for wide in _POWERS if not mask.cols % wide], steps)
    sizes = [(tall, wide) for tall, _ in heights for _, wide in widths if tall * wide > 1]
    for size in sorted(sizes, key=lambda size: (size[0] * size[1], min(size)), reverse=True):
        size_cost = log2(len(_POWERS) ** 2)
        if _least_cost_of_blocks(search, size) + size_cost >= search.shortest:
            continue
        if _may_hold(search, size, steps):
            errors, zero, blocks, _ = _looked_at(mask, size, (1, 1))
            search.offer(_Found(Pattern("blocks", size), errors, _subset_cost(blocks, zero) + size_cost))


def _not_ruled_out(search: _Search, sizes: list[tuple[int, int]], steps: tuple[int, int]) -> list[tuple[int, int]]:
    """Of sizes each of which is made of those after it, the last being (1, 1), those that may hold."""
    may_hold = [(1, 1)]
    for size in sizes[-2::-1]:
        if not _may_hold(search, size, steps):
            break
        # the smallest is a part of all: it is worth a look at the whole mask, where a part of it has not told
        if len(may_hold) == 1 and steps != (1, 1) and _looked_at(search.mask, size, (1, 1))[0] > search.most:
            break
        may_hold.append(size)
    return may_hold


def _may_hold(search: _Search, size: tuple[int, int], steps: tuple[int, int]) -> bool:
    """Whether a part of the mask, or all of it with steps of 1, leaves it open that it has blocks of that size."""
    errors, _, blocks, nonzeros = _looked_at(search.mask, size, steps)
    if steps == (1, 1):
        return errors <= search.most
    looked_at = blocks * size[0] * size[1]
    # twice as many as may be, since the part may be worse than all of it
    return errors <= 2 * MOST_ERRORS * min(nonzeros, looked_at - nonzeros) + 2 * size[0] * size[1]


def _least_cost_of_blocks(search: _Search, size: tuple[int, int]) -> float:
    """Bits that it takes at least to say which blocks are zero, if there are no more errors than there may be."""
    area = size[0] * size[1]
    blocks = search.mask.elements // area
    ends = floor((search.zeros - search.most) / area), ceil((search.zeros + search.most) / area)
    return min(_subset_cost(blocks, number) for number in ends)


def _looked_at(mask: Mask, size: tuple[int, int], steps: tuple[int, int]) -> list[int]:
    found = np.zeros(4, np.int64)
    passes().blocks(mask.words, mask.cols, size, steps, found)
    return found.tolist()


def _steps(mask: Mask) -> tuple[int, int]:
    """How many times 64 rows, and how many words, to go on at once for a part of the mask."""
    words = min(mask.words.shape[1], 8)
    across = mask.words.shape[1] // words
    panels = max(_SAMPLED // (64 * 64 * words), 1)
    # odd steps, so that what repeats itself every few heads is not seen from one side alone
    return max(-(-mask.rows // 64) // panels, 1) | 1, across


def _groups(mask: Mask) -> Iterator[_Found]:
    """N:M, in both directions."""
    along_rows = [np.zeros(size + 1, np.int64) for size in _GROUPS]
    if mask.cols % _GROUPS[0] == 0:
        passes().groups_along_rows(mask.words, *along_rows)
    for size, found in zip(_GROUPS, along_rows, strict=True):
        if mask.cols % size == 0:
            found[0] -= mask.rows * (mask.words.shape[1] * 64 - mask.cols) // size
            yield from _n_of_m(Pattern("n:m", (0, size), "rows"), found)
        if mask.height % size == 0:
            found = np.zeros(size + 1, np.int64)
            passes().groups_along_columns(mask.words, size, found)
            found[0] -= mask.rows // size * (mask.words.shape[1] * 64 - mask.cols)
            yield from _n_of_m(Pattern("n:m", (0, size), "columns"), found)


def _n_of_m(pattern: Pattern, found: np.ndarray) -> Iterator[_Found]:
    """N:M with the N that most groups have, if they have it far more often than at random.

    Args:
        found: int64 (M + 1,), how many groups have so many nonzeros.
    """
    size, groups = pattern.sizes[1], int(found.sum())
    most = int(found.argmax())
    if not 0 < most < size or 2 * found[most] < groups:
        return
    filled = float((found * np.arange(size + 1)).sum()) / (groups * size)
    chance = [2 ** _subset_cost(size, number) * filled**number * (1 - filled) ** (size - number) for number in range(9)]
    more = found[most + 1 :]
    if found[most] < groups * (1 + chance[most]) / 2 or more.sum() > groups * sum(chance[most + 1 : size + 1]) / 10:
        return
    cost = (lgamma(groups + 1) - sum(lgamma(int(count) + 1) for count in found)) / log(2)
    cost += sum(int(count) * _subset_cost(size, number) for number, count in enumerate(found))
    errors = int((more * np.arange(1, len(more) + 1)).sum())
    yield _Found(replace(pattern, sizes=(most, size)), errors, cost)
