"""The model for the elements of a tensor: whether they are coded as differences, how they make keys, their bins."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from sparsefmt.codecs.contract import ArrayInfo, Chunk, Each, Result
from sparsefmt.codecs.rans.classes import CLASS_PRECISION, Classes
from sparsefmt.codecs.rans.elements.bins import PREFIX_BITS, Bins, Keys, best_bins
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


def fit(info: ArrayInfo, each: Each) -> Model | None:
    """The model for all elements of a tensor; None if there are none.

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
        model = with_classes(model, bins, info, each) or model
    return model


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
    if nbits <= PREFIX_BITS:
        yield from _binned_short(each_coded, nbits)
        return
    every, count = 0, 0
    for tile_or, tile_count in each_coded(lambda elements: (int(np.bitwise_or.reduce(elements)), elements.size)):
        every, count = every | tile_or, count + tile_count
    if not count:
        return
    ways = _ways(every, nbits)

    def count_prefixes(elements: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        numbers = (map(keys.prefixes, parts_of(elements)) for keys in ways)
        return [counted(of, elements.size, 1 << keys.prefix_bits) for of, keys in zip(numbers, ways, strict=True)]

    totals = [Total(1 << keys.prefix_bits) for keys in ways]
    for tile in each_coded(count_prefixes):
        for total, found in zip(totals, tile, strict=True):
            total.add(*found)
    for keys, total in zip(ways, totals, strict=True):
        left_out = keys.key_bits - keys.prefix_bits
        if left_out and (distinct := _distinct(each_coded, keys)) is not None:
            yield best_bins(*distinct, 0, keys.key_bits), keys
        else:
            used, counts = total.used()
            yield best_bins(used.astype(np.uint64), counts, left_out, keys.key_bits), keys


def _binned_short(each_coded: EachCoded, nbits: int) -> Iterator[tuple[Bins, Keys]]:
    """`_binned` for elements that are no longer than prefixes: they are counted once for all keys."""
    total = Total(1 << nbits)
    for tile in each_coded(lambda elements: counted(parts_of(elements), elements.size, 1 << nbits)):
        total.add(*tile)
    used, counts = total.used()
    elements = used.astype(f"u{nbits // 8}")
    for keys in _ways(int(np.bitwise_or.reduce(used)), nbits) if used.size else ():
        of_elements = keys.of(elements)
        order = np.argsort(of_elements)
        yield best_bins(of_elements[order].astype(np.uint64), counts[order], 0, keys.key_bits), keys


def _ways(every: int, nbits: int) -> list[Keys]:
    """How keys can be made of elements, `every` being all of them or'ed together."""
    ways = []
    for folded in (False, True):
        low = every & ~(int(folded) << (nbits - 1))
        ways.append(Keys(nbits, (low & -low).bit_length() - 1 if low else nbits - 1, folded))
    return ways


def _distinct(each_coded: EachCoded, keys: Keys) -> tuple[np.ndarray, np.ndarray] | None:
    """All keys and their counts, if they are few."""

    def few(elements: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        if np.unique(keys.of(elements[: 4 * MAX_DISTINCT])).size > MAX_DISTINCT:
            return None
        return united(np.unique(keys.of(part), return_counts=True) for part in parts_of(elements))

    return united(each_coded(few))
