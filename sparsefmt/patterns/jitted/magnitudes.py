"""The one pass over dense bits that counts magnitudes."""

from __future__ import annotations

import numpy as np

from sparsefmt.jit import jit

LANES = 4
"""Tables that are filled in turns: most elements of a pruned tensor are 0, and the next one need not wait for it."""


@jit
def count(bits, bounds, shift, counts):
    """Count the elements by the highest bits of their magnitudes.

    Args:
        bits: unsigned integers, flat.
        bounds: uint64 (2,): the bits of a magnitude, and the first magnitude that is not a number.
        shift: how many of its lowest bits do not count.
        counts: uint32 (LANES, keys), to which is added; their sum counts.

    Returns:
        The smallest magnitude that is not 0, and the largest, as int64 bits, of those that are numbers; if there is
        none, the first that is not a number, and 0.
    """
    kept, end = bounds[0], np.int64(bounds[1])
    smallest, largest = end, np.int64(0)
    for place in range(bits.size):
        magnitude = np.int64(np.uint64(bits[place]) & kept)
        counts[place & (LANES - 1), magnitude >> shift] += np.uint32(1)
        if magnitude < end:
            largest = max(largest, magnitude)
            if magnitude > 0:
                smallest = min(smallest, magnitude)
    return smallest, largest
