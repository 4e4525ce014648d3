"""torch.onnx.export of a model with compressed layers: a standard graph, in which their weights are dense.

ONNX has no operator for compressed weights, and torch's exporters, the one that traces and the one that is based on
torch.export, give up at an operator that they do not know. So they see a model whose layers are dense, for as long as
they look, and the graph is the dense model's, with the same elements.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sparsefmt.torch.dense_layers import dense_layer
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.to_dense import make_dense
from sparsefmt.torch.when_imported import when_imported

_MARK = "_of_sparsefmt"


def install() -> None:
    """Let torch.onnx.export take models with compressed layers, as soon as torch.onnx is imported."""
    when_imported("torch.onnx", _wrap)


def _wrap() -> None:
    original = torch.onnx.export
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def export(model: Any, *args: Any, **kwargs: Any) -> Any:
        return _export(original, model, *args, **kwargs)

    setattr(export, _MARK, True)
    torch.onnx.export = export


def _export(original: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    """What torch.onnx.export is, for models with compressed layers too.

    Raises:
        ValueError: an exported program with products of compressed weights, whose dense ones cannot take their place.

    Cost: the dense weights of all layers, for the time of the call.
    """
    if isinstance(model, torch.export.ExportedProgram) and _has_products(model):
        raise ValueError(
            "this program multiplies by compressed weights, for which ONNX has no operator: give torch.onnx.export the"
            " model itself, whose weights are made dense for it, or a program of it after"
            " sparsefmt.torch.make_dense(model)"
        )
    if not isinstance(model, torch.nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return original(model, *args, **kwargs)
    if isinstance(model, SparseLinear):
        weight = torch.nn.Parameter(model.weight.to_dense(), requires_grad=False)
        return original(dense_layer(model, weight), *args, **kwargs)
    with _dense_for_a_while(model):
        return original(model, *args, **kwargs)


def _has_products(program: torch.export.ExportedProgram) -> bool:
    return any(
        getattr(node.target, "namespace", None) == "sparsefmt"
        for module in program.graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
    )


@contextmanager
def _dense_for_a_while(model: torch.nn.Module) -> Iterator[None]:
    """Have dense layers in place of the compressed ones of a model, which come back afterwards, the same objects."""
    before = [
        (module, type(module), dict(module._modules), dict(module._parameters)) for module in list(model.modules())
    ]
    make_dense(model)
    try:
        yield
    finally:
        for module, kind, children, parameters in before:
            # those of experts have another class while they are dense, and Parameters in place of modules
            module.__class__ = kind
            for held, old in ((module._modules, children), (module._parameters, parameters)):
                held.clear()
                held.update(old)  # type: ignore[arg-type]
