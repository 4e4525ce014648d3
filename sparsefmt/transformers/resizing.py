"""resize_token_embeddings of a model whose output layer is compressed: transformers takes dense ones alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.utils import logging

from sparsefmt.adapters.torch import rows_of
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.dense_layers import dense_layer
from sparsefmt.torch.layers import replace
from sparsefmt.torch.linear import SparseLinear

_logger = logging.get_logger("transformers.sparsefmt")


def resize_token_embeddings(original: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    """What PreTrainedModel has, for an output layer that is a SparseLinear too.

    It is dense for the time of the call, and compressed again afterwards: rows that were there keep their bits, and the
    new ones are as transformers makes them, without zeros. One with scaled weights stays dense, since new rows would
    have to be rounded; the log says so. If the call fails, the layer is what it was.

    Args:
        original: PreTrainedModel.resize_token_embeddings.
        model, args, kwargs: its arguments.

    Cost: the dense weight of the output layer, for a moment.
    """
    try:
        head = model.get_output_embeddings()
    except NotImplementedError:
        head = None
    if not isinstance(head, SparseLinear) or not head.has_weight:
        return original(model, *args, **kwargs)
    weight = torch.nn.Parameter(head.weight.to_dense(), requires_grad=head.weight_requires_grad)
    dense = dense_layer(head, weight)
    replace(model, head, dense)
    try:
        made = original(model, *args, **kwargs)
    except BaseException:
        replace(model, dense, head)
        raise
    resized = model.get_output_embeddings()
    if resized.weight.shape == weight.shape:
        # nothing was to be done
        replace(model, resized, head)
    elif head.weight_scale is None:
        replace(model, resized, _compressed(resized, head))
    else:
        _logger.warning(
            "sparsefmt: the output layer has scaled weights, and is dense now that it has been resized: quantize it"
            " anew with sparsefmt.torch.sparsify(model, values=...)"
        )
    return made


def _compressed(resized: torch.nn.Module, head: SparseLinear) -> SparseLinear:
    """A SparseLinear in place of a resized Linear, with weights of the dtype and in the layout that the head has."""
    layout = head.sparse_tensor().layout
    matrix = rows_of(resized.weight.detach().to(head._dtype))  # type: ignore[operator]
    made = SparseLinear(matrix.cols, matrix.rows, bias=False, device="cpu", dtype=head._dtype)
    made.set_weight(SparseTensor.from_dense(matrix, "auto" if layout == "dense" else layout))
    made.compute_dtype, made.name = head.compute_dtype, head.name
    made.bias = resized._parameters.get("bias")
    return made.like(resized)
