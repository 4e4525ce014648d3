"""Products of several SparseLinear layers, each with tokens of its own, in one call of the kernels.

To call a layer takes as long as a small product. Layers that do more than multiply, or whose calls somebody sees, are
left to be called.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch

from sparsefmt.torch.eager import is_just_called, is_unwatched
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.operator import check_input, known_of_module, rounded, thread_limit
from sparsefmt.torch.registry import Known


def grouped_product(
    layers: Sequence[torch.nn.Module], x: torch.Tensor, bounds: Sequence[tuple[int, int]]
) -> torch.Tensor | None:
    """What layers give if each is called with some rows of x, one result below the other, with the same bits.

    Args:
        x: (rows, in_features).
        bounds: which rows each layer takes, from the first one of x to the last; at least one.

    Returns:
        (rows, out_features) of the dtype of x. None if the layers have to be called: somebody wants gradients, or sees
        the calls; or not all are SparseLinear on the CPU without bias and scales, with weights of one shape.
    """
    if not layers or torch.compiler.is_compiling() or not x.is_cpu or not is_unwatched(x, None):
        return None
    found = []
    for layer in layers:
        known = _weights_of(layer)
        if known is None:
            return None
        found.append(known)
    rows, cols, wide = found[0].operand.rows, found[0].operand.cols, found[0].wide
    if any((each.operand.rows, each.operand.cols, each.wide) != (rows, cols, wide) for each in found):
        return None
    check_input(x, cols)
    summed = torch.float64 if wide or x.dtype == torch.float64 else torch.float32
    y = torch.empty((len(x), rows), dtype=summed)
    kernels = _grouped()
    products = [kernels.Product(known.operand, *tokens) for known, tokens in zip(found, bounds, strict=True)]
    kernels.multiply_grouped(products, x.detach().to(summed).resolve_neg().numpy(), y.numpy(), thread_limit())
    return y if x.dtype == summed else rounded(y, x.dtype)


def _weights_of(layer: torch.nn.Module) -> Known | None:
    """The weights of a layer of which a call is the product with them, and nothing else."""
    if type(layer) is not SparseLinear or not is_just_called(layer):
        return None
    # from the dictionaries, as `SparseLinear.forward` does
    buffers = layer._buffers
    arrays, table = buffers["weight_arrays"], buffers["weight_table"]
    if arrays is None or table is None or not arrays.is_cpu or buffers.get("weight_scale") is not None:
        return None
    if "bias" not in layer._parameters or layer._parameters["bias"] is not None:
        return None
    return known_of_module(arrays, table, layer.out_features, layer.in_features)


@cache
def _grouped() -> ModuleType:
    """The kernels, which take a while to import."""
    from sparsefmt.kernels import grouped

    return grouped
