"""Frequencies of bytes by their number of set bits."""

from __future__ import annotations

import numpy as np

from sparsefmt.jit import jit


@jit
def normalise_popcounts(counts, multiplicity, precision, found):
    """Fill `found` (9,) with the frequency of each byte with 0, 1, … 8 set bits; False if they do not fit.

    counts: int64 (9,), how many bytes have as many. multiplicity: int64 (9,), how many different ones there are.
    Multiplied by that, frequencies sum to 2^precision. That of no set bits makes up for the others, which are rounded,
    and then changed by one as long as that makes the bytes shorter.
    """
    total, occurrences = 1 << precision, max(counts.sum(), 1)
    for popcount in range(9):
        ideal = counts[popcount] * (total / occurrences) / multiplicity[popcount]
        found[popcount] = max(np.int64(np.rint(ideal)), np.int64(counts[popcount] > 0))
    # rounded up, they may be too many together
    for popcount in range(8, 0, -1):
        while found[popcount] > (counts[popcount] > 0) and _cost(counts, multiplicity, total, found) == np.inf:
            found[popcount] -= 1
    best = _cost(counts, multiplicity, total, found)
    if best == np.inf:
        return False
    improved = True
    while improved:
        improved = False
        for popcount in range(1, 9):
            for step in (1, -1):
                found[popcount] += step
                tried = _cost(counts, multiplicity, total, found)
                if counts[popcount] and tried < best:
                    best, improved = tried, True
                else:
                    found[popcount] -= step
    found[0] = total - (found[1:] * multiplicity[1:]).sum()
    return True


@jit
def _cost(counts, multiplicity, total, frequencies):
    """Bits of all bytes, that of no set bits having what the others leave; infinite if that is not enough."""
    left, cost = total, 0.0
    for popcount in range(1, 9):
        left -= frequencies[popcount] * multiplicity[popcount]
        if counts[popcount]:
            if frequencies[popcount] < 1:
                return np.inf
            cost -= counts[popcount] * np.log2(np.float64(frequencies[popcount]))
    if left < (counts[0] > 0):
        return np.inf
    return cost - counts[0] * np.log2(np.float64(left)) if counts[0] else cost
