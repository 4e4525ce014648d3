"""make_dense: a model with SparseLinear layers becomes dense again."""

from __future__ import annotations

import torch

from sparsefmt.torch.compress_experts import make_stack_dense
from sparsefmt.torch.dense_layers import dense_layer
from sparsefmt.torch.layers import replace
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.with_stacks import stacks_of


def make_dense(model: torch.nn.Module, dtype: torch.dtype | None = None) -> None:
    """Replace every SparseLinear in a model by a torch.nn.Linear, or the Conv1D that it was, in place.

    Modules of experts have their Parameters again, in place of each SparseStack.

    The weights are Parameters with the elements of the compressed ones, bit for bit, and require gradients if the
    weights did that the layers were made of, so that the model trains as before. Layers that share their weights share
    one Parameter. Biases stay the Parameters that they are.

    Args:
        model: any model. A SparseLinear that is the model itself cannot be replaced.
        dtype: of the weights; by default the one that each has, which is float32 in a model that computes in float32
            with weights of 16 bits.

    Raises:
        TypeError: the model is a SparseLinear itself.
        RuntimeError: a layer has no weights yet.

    Cost: the dense weights. Each compressed one is freed as its layer is replaced, unless somebody else keeps it.

    Example:
        >>> result = sparsefmt.torch.sparsify(model)
        >>> sparsefmt.torch.make_dense(model)
    """
    if isinstance(model, SparseLinear):
        raise TypeError("the model is a SparseLinear itself, which cannot be replaced in itself: use weight.to_dense()")
    for module in list(model.modules()):
        for attribute in stacks_of(module):
            make_stack_dense(module, attribute, dtype)
    layers = [module for module in model.modules() if isinstance(module, SparseLinear)][::-1]
    made: dict[tuple[int, bool], torch.nn.Parameter] = {}
    while layers:
        _replace_by_dense(model, layers.pop(), dtype, made)


def _replace_by_dense(
    model: torch.nn.Module,
    layer: SparseLinear,
    dtype: torch.dtype | None,
    made: dict[tuple[int, bool], torch.nn.Parameter],
) -> None:
    """Replace one layer. made: the weights of layers that others are tied to."""
    key = id(layer._tie), layer.transposed
    weight = made.get(key)
    if weight is None:
        dense = layer.weight.to_dense().to(layer.weight.dtype if dtype is None else dtype)
        trained = layer.weight_requires_grad and dense.is_floating_point()
        weight = torch.nn.Parameter(dense, requires_grad=trained)
    if layer._tie is not None:
        made[key] = weight
    replace(model, layer, dense_layer(layer, weight))
