"""The one pass over the elements of two tensors: which masks they have, and how far they are apart."""

from __future__ import annotations

import numpy as np

from sparsefmt.jit import jit

BLOCK = 512
"""Elements of which distances are kept before they are added up: each loop is then one that LLVM turns into vectors."""


@jit
def _distances(ours, theirs, found, counts):
    """Fill `found` with |ours - theirs|, in float64, 0 where it is not finite, and add to `counts` as `compare`."""
    both, here_only, there_only = np.int64(0), np.int64(0), np.int64(0)
    equal, infinite = np.int64(0), np.int64(0)
    for place in range(ours.size):
        here, there = np.int64(ours[place] != 0), np.int64(theirs[place] != 0)
        both += here & there
        here_only += here
        there_only += there
    for place in range(ours.size):
        one, two = ours[place], theirs[place]
        same = np.int64(one == two) | (np.int64(one != one) & np.int64(two != two))
        # the difference of two float32 may be no float32
        distance = abs(np.float64(one) - np.float64(two))
        finite = distance < np.inf
        found[place] = distance if finite else 0.0
        equal += same
        infinite += (1 - same) & (1 - np.int64(finite))
    counts[0] += both
    counts[1] += here_only - both
    counts[2] += there_only - both
    counts[3] += equal
    counts[4] += infinite


@jit
def _summed(distances):
    """The largest and the sum of distances. Four chains of additions, so that they need not wait for each other."""
    zero = np.float64(0)
    sum0, sum1, sum2, sum3 = zero, zero, zero, zero
    most0, most1, most2, most3 = zero, zero, zero, zero
    for place in range(distances.size // 4):
        first = 4 * place
        one, two, three, four = (distances[first], distances[first + 1], distances[first + 2], distances[first + 3])
        sum0 += one
        sum1 += two
        sum2 += three
        sum3 += four
        most0 = one if one > most0 else most0
        most1 = two if two > most1 else most1
        most2 = three if three > most2 else most2
        most3 = four if four > most3 else most3
    for place in range(distances.size & -4, distances.size):
        sum0 += distances[place]
        most0 = max(most0, distances[place])
    return max(max(most0, most1), max(most2, most3)), (sum0 + sum1) + (sum2 + sum3)


@jit
def compare(ours, theirs, counts):
    """Compare two flat arrays of one length, both float32 or both float64, element by element.

    Args:
        counts: int64 (5,), to which is added how many elements are other than zero in both, in ours alone and in theirs
            alone; how many are the same number, all NaNs being the same; and of how many the difference is neither that
            nor finite.

    Returns:
        The largest and the sum of all finite differences, float64.
    """
    largest, total = np.float64(0), np.float64(0)
    distances = np.empty(BLOCK, np.float64)
    for begin in range(0, ours.size, BLOCK):
        end = min(begin + BLOCK, ours.size)
        block = distances[: end - begin]
        _distances(ours[begin:end], theirs[begin:end], block, counts)
        most, part = _summed(block)
        largest = max(largest, most)
        total += part
    return largest, total
