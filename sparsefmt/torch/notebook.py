"""What notebooks show of a model whose layers were compressed."""

from __future__ import annotations

from collections.abc import Mapping

from sparsefmt import notebooks
from sparsefmt.notebooks import Row
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.stack import SparseStack


def of_layers(summary: str, sparse: Mapping[str, SparseLinear | SparseStack]) -> str:
    """A summary, and a table of layers, the largest if they are many, with pictures as long as these take no time.

    Args:
        sparse: with weights, by name. Of a stack, each expert is a layer.
    """
    layers: dict[str, SparseLinear] = {}
    for name, layer in sparse.items():
        if isinstance(layer, SparseStack):
            layers |= {f"{name}.{number}": expert for number, expert in enumerate(layer.layers)}
        else:
            layers[name] = layer
    tensors = {name: layer.sparse_tensor() for name, layer in layers.items() if layer.has_weight}
    shown = notebooks.largest([(name, tensor.nbytes) for name, tensor in tensors.items()])
    rows, drawn = [], 0
    for name in shown:
        tensor, scale = tensors[name], layers[name].weight_scale
        drawn += tensor.size
        rows.append(
            Row(
                name,
                tensor.shape,
                str(tensor.dtype),
                tensor.layout,
                tensor.sparsity,
                tensor.nbytes + (0 if scale is None else scale.nbytes),
                tensor.size * layers[name].weight_dtype.itemsize,
                tensor.picture(notebooks.SMALL_PIXELS) if drawn <= notebooks.MOST_DRAWN else "",
            )
        )
    return notebooks.box(summary.split("; "), below=notebooks.table(rows, len(tensors) - len(shown)) if rows else "")
