"""The leaves of the tree over keys that make elements and model shortest."""

from __future__ import annotations

import numpy as np

from sparsefmt.jit import jit

ONE = np.uint64(1)


@jit
def best_leaves(prefixes, counts, left_out, key_bits, cost_of_bin, max_width, lows, widths, sizes):
    """Fill `lows`, `widths` and `sizes` with those leaves, ascending: (cost of all, how many).

    prefixes: uint64 (n,), the highest bits of keys, ascending, all of which occur. counts: int64, how often. left_out:
    lower bits of a key that the prefixes have not. cost_of_bin: in bits. lows (uint64), widths, sizes (int64): (n,).
    """
    levels, here, total = key_bits - left_out + 1, prefixes.shape[0], np.float64(counts.sum())
    is_leaf, first = np.empty((levels, here), np.bool_), np.empty((levels + 1, here + 1), np.int64)
    nodes, sums, best = prefixes.copy(), counts.astype(np.float64), np.zeros(here)
    for level in range(levels):
        width = left_out + level
        for node in range(here):
            leaf = sums[node] * (width + np.log2(total / sums[node])) + cost_of_bin
            is_leaf[level, node] = width <= max_width and (level == 0 or leaf <= best[node])
            if is_leaf[level, node]:
                best[node] = leaf
        if level == levels - 1:
            break
        parents = 0
        for node in range(here):
            parent = nodes[node] >> ONE
            if node and nodes[parents - 1] == parent:
                sums[parents - 1] += sums[node]
                # a split is a bit, an empty half is two more
                best[parents - 1] += best[node] - 2
            else:
                nodes[parents], sums[parents], best[parents] = parent, sums[node], best[node] + 3
                first[level + 1, parents] = node
                parents += 1
        first[level + 1, parents] = here
        here = parents
    return best[0], _collect(prefixes, counts, left_out, is_leaf, first, lows, widths, sizes)


@jit
def _collect(prefixes, counts, left_out, is_leaf, first, lows, widths, sizes):
    """Fill `lows`, `widths` and `sizes` with the leaves that are reached from the root; how many.

    is_leaf: (levels, nodes). first: the first child of each node, one level below, and behind the last node its end.
    """
    found, pending, top = 0, 1, is_leaf.shape[0] - 1
    pending_levels, pending_nodes = np.zeros(130, np.int64), np.zeros(130, np.int64)
    pending_levels[0] = top
    while pending:
        pending -= 1
        level, node = pending_levels[pending], pending_nodes[pending]
        if is_leaf[level, node]:
            begin, end = node, node + 1
            for below in range(level, 0, -1):
                begin, end = first[below, begin], first[below, end]
            lows[found] = prefixes[begin] >> np.uint64(level) << np.uint64(left_out + level)
            widths[found], sizes[found] = left_out + level, counts[begin:end].sum()
            found += 1
            continue
        for child in range(first[level, node + 1] - 1, first[level, node] - 1, -1):
            pending_levels[pending], pending_nodes[pending] = level - 1, child
            pending += 1
    return found
