"""How small tensors can become: the entropies that `sizes.py` compares with.

The tool imports this file; it is not a program.
"""

from __future__ import annotations

import numpy as np

from sparsefmt.dtypes import dtype_of
from tools.bench.sizes_contenders import WORTH_PRUNING, Tensors, bits_of
from tools.bench.sizes_tensors import zeros_of

CLASSES = 32

INDEPENDENT, BY_DENSITY = "bound: independent", "bound: row and column density"


def entropy_cost(counts: np.ndarray) -> float:
    """Bits of that many symbols of each kind, by order-0 entropy."""
    counts = counts[counts > 0]
    return float(np.sum(counts * np.log2(counts.sum() / counts)))


def element_cost(elements: np.ndarray, dtype: np.dtype) -> float:
    """Entropy of elements of a dtype, given as unsigned integers. Wide floats have the lower bits as they are."""
    if elements.itemsize <= 2:
        return entropy_cost(np.bincount(elements, minlength=1))
    if dtype_of(dtype).negative_zero:
        rest = 8 * elements.itemsize - 16
        return entropy_cost(np.bincount((elements >> rest).astype(np.uint16))) + elements.size * rest
    return entropy_cost(np.unique(elements, return_counts=True)[1])


def position_cost(kept: np.ndarray) -> float:
    """Entropy of a bitmap whose positions are all alike."""
    ones = np.count_nonzero(kept)
    return entropy_cost(np.array([ones, kept.size - ones]))


def position_cost_by_density(kept: np.ndarray) -> float:
    """Entropy of a bitmap of two dimensions given the class of each position."""
    log_odds = []
    for axis in (1, 0):
        density = (np.count_nonzero(kept, axis=axis) + 0.5) / (kept.shape[axis] + 1)
        log_odds.append(np.log(density / (1 - density)).astype(np.float32))
    total = np.add.outer(*log_odds).reshape(-1)
    limits = np.quantile(total, np.arange(1, CLASSES) / CLASSES)
    classes = np.searchsorted(limits, total, side="right")
    sizes = np.bincount(classes, minlength=CLASSES)
    ones = np.bincount(classes[kept.reshape(-1)], minlength=CLASSES)
    return sum(entropy_cost(np.array(pair)) for pair in zip(ones, sizes - ones, strict=True))


def bounds(tensors: Tensors) -> dict[str, float]:
    """Bytes by name of the bound."""
    independent = by_density = 0.0
    for array in tensors.values():
        bits = bits_of(array)
        zero = zeros_of(array)
        if np.mean(zero) < WORTH_PRUNING:
            elements = element_cost(bits.reshape(-1), array.dtype)
            independent += elements
            by_density += elements
            continue
        signs = entropy_cost(np.array([np.count_nonzero(bits == 0), np.count_nonzero(zero & (bits != 0))]))
        elements = element_cost(bits[~zero], array.dtype) + signs
        independent += elements + position_cost(~zero)
        # a vector has a row for each element, whose density would tell it
        kept = ~zero.reshape(len(zero) if zero.ndim > 1 else 1, -1)
        by_density += elements + (position_cost_by_density(kept) if zero.ndim > 1 else position_cost(kept))
    return {INDEPENDENT: independent / 8, BY_DENSITY: by_density / 8}
