"""Compressed tensors of more than two dimensions as matrices, and back: the weights of convolutions.

A row of the matrix is all that the first dimension has at one index, as in files.
"""

from __future__ import annotations

import math
from dataclasses import replace

from sparsefmt.tensor import SparseTensor


def as_matrix(tensor: SparseTensor) -> SparseTensor:
    """A tensor as a matrix with a row for each index of its first dimension, on the same arrays.

    A stack of matrices, whose rows are others, is dense for a moment, and laid out anew.
    """
    shape = tensor.shape[0], math.prod(tensor.shape[1:])
    if tensor.tiling.row_dims > 1:
        return SparseTensor.from_dense(tensor.todense().reshape(shape), tensor.layout)
    return in_shape(tensor, shape)


def in_shape(tensor: SparseTensor, shape: tuple[int, ...]) -> SparseTensor:
    """A tensor whose first dimension makes rows in another shape with the same rows, on the same arrays."""
    if tensor.shape == shape:
        return tensor
    bare = tensor.with_signs(None)
    tiles = [bare.tile(number) for number in range(tensor.tiling.tiles)]
    return SparseTensor(replace(tensor.tiling, shape=shape), tiles, tensor.budget, tensor.signs)
