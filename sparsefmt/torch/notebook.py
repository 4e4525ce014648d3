"""What notebooks show of a model whose layers were compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sparsefmt import notebooks
from sparsefmt.notebooks import Row
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.stack import SparseStack
from sparsefmt.torch.summary import Summary


def of_model(
    summary: Summary | None,
    sparse: Mapping[str, SparseLinear | SparseStack],
    dense: Mapping[str, str],
    keys: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """A summary, a table of layers, the largest if they are many, with pictures as long as these take no time, and
    what stays dense, by reason.

    Args:
        sparse: with weights, by name. Of a stack, each expert is a layer.
        dense: names of what stays dense, and why.
        keys: names of other kinds, by what is said of them.
    """
    reasons: dict[str, list[str]] = {}
    for name, why in dense.items():
        reasons.setdefault(why, []).append(name)
    lines = [] if summary is None else str(replace(summary, surprises={}, dense={})).split("; ")
    named = notebooks.names("stays dense", reasons) if reasons else ""
    others = {what: found for what, found in (keys or {}).items() if found}
    named += notebooks.names("names without a match", others) if others else ""
    return notebooks.box(lines, below=_table(sparse) + named)


def _table(sparse: Mapping[str, SparseLinear | SparseStack]) -> str:
    """A table of layers; "" without any."""
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
    return notebooks.table(rows, len(tensors) - len(shown)) if rows else ""
