"""The leaves of the tree over keys that make elements and model shortest."""

from __future__ import annotations

import numpy as np

from sparsefmt.jit import jit

ONE = np.uint64(1)


@jit
def best_leaves(prefixes, counts, left_out, key_nbits, cost_of_bin, max_width, scratch, lows, widths, sizes):
    """Fill `lows`, `widths` and `sizes` with those leaves, ascending: (cost of all, how many).

    prefixes: uint64 (n,), the highest bits of keys, ascending, all of which occur. counts: int64, how often. left_out:
    lower bits of a key that the prefixes have not. cost_of_bin: in bits. lows (uint64), widths, sizes (int64): (n,).

    scratch: nodes of a level, their elements, what the best leaves below them cost, and the first prefix below them;
    and for each prefix, the highest level at which a node that begins with it is better as a leaf: uint64, float64,
    float64, int64, int64 (n,) each.
    """
    levels, count, total = key_nbits - left_out + 1, prefixes.shape[0], 0.0
    nodes, sums, best, firsts, leaf_levels = scratch
    for node in range(count):
        nodes[node], sums[node], firsts[node] = prefixes[node], counts[node], node
        total += counts[node]
    here = count
    for level in range(levels):
        width = left_out + level
        for node in range(here):
            leaf = sums[node] * (width + np.log2(total / sums[node])) + cost_of_bin
            if width <= max_width and (level == 0 or leaf <= best[node]):
                best[node], leaf_levels[firsts[node]] = leaf, level
        if level == levels - 1:
            break
        parents = 0
        for node in range(here):
            parent = nodes[node] >> ONE
            if parents and nodes[parents - 1] == parent:
                sums[parents - 1] += sums[node]
                # a split is a bit, an empty half is two more
                best[parents - 1] += best[node] - 2
            else:
                nodes[parents], sums[parents], best[parents] = parent, sums[node], best[node] + 3
                firsts[parents] = firsts[node]
                parents += 1
        here = parents
    found, at = 0, 0
    while at < count:
        level, size = leaf_levels[at], 0
        shift = np.uint64(level)
        node = prefixes[at] >> shift
        while at < count and prefixes[at] >> shift == node:
            size += counts[at]
            at += 1
        lows[found], widths[found], sizes[found] = node << np.uint64(left_out + level), left_out + level, size
        found += 1
    return best[0], found
