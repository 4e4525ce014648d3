"""The model for the elements of a tensor: whether they are coded as differences, how they make keys, their bins."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from sparsefmt.codecs.contract import ArrayInfo, Chunk, Each, Result
from sparsefmt.codecs.rans.classes import CLASS_PRECISION, Classes
from sparsefmt.codecs.rans.elements.bins import PREFIX_NBITS, TOP_NBITS, Bins, Keys, best_bins
from sparsefmt.codecs.rans.elements.counting import MAX_DISTINCT, Total, counted, parts_of, united
from sparsefmt.codecs.rans.elements.fit_classes import with_classes
from sparsefmt.codecs.rans.elements.lags import LAGS, differences
from sparsefmt.codecs.rans.elements.model import Model
from sparsefmt.codecs.rans.elements.splitting import elements_of
from sparsefmt.codecs.rans.frequencies import normalised

WORTH_CLASSES = 2000
"""Elements of a tensor below which no classes are tried: they would take more than they save."""

_SAMPLE = 4096
"""Elements of a tile of which the lag is judged."""


def fit(info: ArrayInfo, each: Each) -> tuple[Model, np.ndarray | None] | None:
    """(the model for all elements of a tensor, the class of each row if it has classes); None if there are none.

    Beside the tiles, it takes up to 16 bytes for each row, and for each column if they get classes.
    """
    nbits = 8 * info.width

    def lag_of(chunk: Chunk) -> int | None:
        # what a mask keeps is not next to each other
        has_mask = chunk.positions is not None and chunk.positions.mask is not None
        return 0 if has_mask else _best_lag(elements_of(chunk.raw, info.width))

    lag = next((found for found in each(lag_of) if found is not None), 0)

    def each_coded(work: Callable[[np.ndarray], Result]) -> Iterator[Result]:
        return each(lambda chunk: work(differences(elements_of(chunk.raw, info.width), lag)))

    found = list(_binned(each_coded, nbits))
    if not found:
        return None
    bins, keys = min(found, key=lambda candidate: candidate[0].cost)
    precision = 11 if len(bins.lows) <= 64 else 12 if len(bins.lows) <= 256 else 14
    one = Classes(1, np.zeros(1, np.uint8), np.array([1 << CLASS_PRECISION]), None)
    table = normalised(bins.counts, precision)
    model = Model(keys, lag, bins.lows, bins.widths, precision, one, table[None])
    if int(bins.counts.sum()) >= WORTH_CLASSES and not lag and 1 < len(bins.lows) <= 256:
        return with_classes(model, bins, info, each) or (model, None)
    return model, None


def _best_lag(elements: np.ndarray) -> int | None:
    """The lag that makes the first elements of a tile shortest, by far; None if there are none."""
    if not elements.size:
        return None
    sample, costs = elements[:_SAMPLE], {}
    for lag in LAGS:
        keys, counts = np.unique(differences(sample, lag), return_counts=True)
        costs[lag] = best_bins(keys, counts, 0, 8 * elements.itemsize).cost
    best = min(costs, key=lambda lag: costs[lag])
    return best if costs[best] < 0.9 * costs[0] else 0


EachCoded = Callable[[Callable[[np.ndarray], Result]], Iterator[Result]]
"""each_coded(work): like `Each`, with what is coded of each chunk: elements, or their differences."""


def _binned(each_coded: EachCoded, nbits: int) -> Iterator[tuple[Bins, Keys]]:
    """The best bins for each way of making keys; nothing if there are no elements."""
    every, total = 0, Total(1 << min(nbits, TOP_NBITS))
    for tile in each_coded(counted):
        every |= tile.every
        total.add(tile.tops, tile.counts)
    tops, counts = total.used()
    if not tops.size:
        return
    # elements are at least as many as their highest bits
    distinct = _distinct(each_coded) if nbits > PREFIX_NBITS and tops.size <= MAX_DISTINCT else None
    for keys in _ways(every, nbits):
        left_out = keys.key_nbits - keys.prefix_nbits
        if left_out and distinct is not None:
            of_all = keys.of(distinct[0].astype(f"u{nbits // 8}")).astype(np.uint64)
            order = np.argsort(of_all)
            yield best_bins(of_all[order], distinct[1][order], 0, keys.key_nbits), keys
        else:
            prefixes = np.bincount(keys.prefixes_of_tops(tops), counts)
            used = np.flatnonzero(prefixes)
            yield best_bins(used.astype(np.uint64), prefixes[used].astype(np.int64), left_out, keys.key_nbits), keys


def _ways(every: int, nbits: int) -> list[Keys]:
    """How keys can be made of elements, `every` being all of them or'ed together."""
    ways = []
    for folded in (False, True):
        low = every & ~(int(folded) << (nbits - 1))
        ways.append(Keys(nbits, (low & -low).bit_length() - 1 if low else nbits - 1, folded))
    return ways


def _distinct(each_coded: EachCoded) -> tuple[np.ndarray, np.ndarray] | None:
    """All elements and their counts, if they are few."""

    def few(elements: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        if np.unique(elements[: 4 * MAX_DISTINCT]).size > MAX_DISTINCT:
            return None
        return united(np.unique(part, return_counts=True) for part in parts_of(elements))

    return united(each_coded(few))
