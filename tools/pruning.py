"""Ways of pruning: which elements of a weight stay.

They work on plain numpy arrays. A mask has the shape of its weight and is True where the weight is kept, and the matrix
view of a weight has `rows = shape[0]` and `cols` = the product of the other dimensions.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Mask = NDArray[np.bool_]


def magnitudes(weight: Array) -> Array:
    """|weight| as its (rows, cols) matrix view, in float32 (float64 for float64). O(size) time, one copy."""
    score_dtype = np.float64 if weight.dtype == np.float64 else np.float32
    scores: Array = np.abs(weight.reshape(weight.shape[0], -1).astype(score_dtype))
    return scores


def prune_lowest_per_row(scores: Array, pruned_per_row: int) -> Mask:
    """Mask of shape (rows, cols) that drops exactly `pruned_per_row` lowest scores of each row.

    Of equal scores the earliest are dropped; a NaN counts as infinite. O(rows * cols) time by
    selection rather than sorting; about 26 bytes of scratch memory per score.
    """
    if pruned_per_row == 0:
        return np.ones(scores.shape, np.bool_)
    scores = np.where(np.isnan(scores), np.inf, scores)
    last = pruned_per_row - 1
    threshold = np.partition(scores, last, axis=1)[:, [last]]
    pruned = scores < threshold
    ties = scores == threshold
    ties_to_prune = pruned_per_row - np.count_nonzero(pruned, axis=1, keepdims=True)
    pruned |= ties & (np.cumsum(ties, axis=1) <= ties_to_prune)
    return ~pruned


def magnitude_mask(weight: Array, sparsity: float, scope: str = "tensor") -> Mask:
    """Mask of weight's shape (any, 1-d or more) that drops the smallest |weight|.

    Scope "tensor" drops exactly round(sparsity * size) positions, scope "row" exactly round(sparsity * cols)
    in every row of the matrix view. O(size) time, about 30 bytes of scratch memory per weight.
    """
    scores = magnitudes(weight)
    if scope == "tensor":
        scores = scores.reshape(1, -1)
    return prune_lowest_per_row(scores, round(sparsity * scores.shape[1])).reshape(weight.shape)


def global_magnitude_masks(weights: Mapping[str, Array], sparsity: float) -> dict[str, Mask]:
    """One mask per weight (same shape) that together drop round(sparsity * total size) smallest |weight|.

    Equal magnitudes are dropped in the order of the mapping. O(total size) time, about 30 bytes of scratch
    memory per weight.
    """
    scores = np.concatenate([magnitudes(weight).ravel() for weight in weights.values()])
    mask = magnitude_mask(scores, sparsity)
    ends = np.cumsum([weight.size for weight in weights.values()])
    parts = np.split(mask, ends[:-1])
    return {name: part.reshape(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def wanda_mask(weight: Array, input_norms: Array, sparsity: float) -> Mask:
    """Mask of weight's shape that drops round(sparsity * cols) lowest |weight| * input_norms in every row.

    `input_norms` has shape (cols,): the norm of each input feature over calibration data. O(size) time, about
    30 bytes of scratch memory per weight.
    """
    scores = magnitudes(weight)
    cols = scores.shape[1]
    if input_norms.shape != (cols,):
        raise ValueError(f"input norms have shape {input_norms.shape}, the weight needs ({cols},)")
    return prune_lowest_per_row(scores * input_norms, round(sparsity * cols)).reshape(weight.shape)


def nm_mask(weight: Array, n: int, m: int) -> Mask:
    """Mask of weight's shape that keeps the n largest |weight| of every m consecutive columns of a row.

    The last cols % m columns make no whole group and stay dense. O(size) time, about 30 bytes of scratch
    memory per weight.
    """
    scores = magnitudes(weight)
    rows, cols = scores.shape
    grouped_cols = cols - cols % m
    mask = np.ones((rows, cols), np.bool_)
    groups = scores[:, :grouped_cols].reshape(-1, m)
    mask[:, :grouped_cols] = prune_lowest_per_row(groups, m - n).reshape(rows, grouped_cols)
    return mask.reshape(weight.shape)


def block_mask(weight: Array, block: tuple[int, int], sparsity: float, norm: str = "l1") -> Mask:
    """Mask of weight's shape that drops the round(sparsity * blocks) blocks of the smallest norm.

    The matrix view is cut into blocks of `block` = (r, c) from its upper left corner; the blocks at the right
    and lower edges may be smaller. O(size) time, about 16 bytes of scratch memory per weight.
    """
    scores = magnitudes(weight).astype(np.float64)
    row_starts, col_starts = (np.arange(0, extent, step) for extent, step in zip(scores.shape, block, strict=True))
    row_extents = np.diff(row_starts, append=scores.shape[0])
    col_extents = np.diff(col_starts, append=scores.shape[1])
    if norm == "l2":
        scores = scores**2
    # The mean, not the sum, so that a smaller block at an edge is not dropped for being small. Between blocks
    # of one size it gives the order of the norm itself, for L2 too, whose root changes no order.
    sums = np.add.reduceat(np.add.reduceat(scores, row_starts, axis=0), col_starts, axis=1)
    means = sums / np.outer(row_extents, col_extents)
    kept_blocks = prune_lowest_per_row(means.reshape(1, -1), round(sparsity * means.size)).reshape(means.shape)
    return np.repeat(np.repeat(kept_blocks, row_extents, axis=0), col_extents, axis=1).reshape(weight.shape)


def apply_mask(weight: Array, mask: Mask, multiply: bool) -> Array:
    """New array of weight's shape and dtype: weight where mask is True, elsewhere zero. O(size) time.

    With `multiply` the zero is weight * 0, which is -0.0 for a negative weight (and NaN for an infinite one),
    as torch.nn.utils.prune leaves it; otherwise it is +0.0.
    """
    if multiply:
        with np.errstate(invalid="ignore"):
            product: Array = weight * mask.astype(weight.dtype)
        return product
    return np.where(mask, weight, weight.dtype.type(0))
